// The company's identity provider, for servers that have people sign in elsewhere: oidc-provider again, with one
// client, which was registered by hand.

import { randomBytes } from 'node:crypto';
import http from 'node:http';

import Provider from 'oidc-provider';

import { says } from './says.mjs';

const { ISSUER, REDIRECT_URIS } = process.env;
const provider = new Provider(ISSUER, {
  clients: [{
    client_id: 'gateway', client_secret: 'a secret of the gateway', redirect_uris: JSON.parse(REDIRECT_URIS),
    grant_types: ['authorization_code', 'refresh_token'],
  }],
  scopes: ['openid', 'offline_access', 'mcp'],
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  issueRefreshToken: () => true,
  features: { introspection: { enabled: true }, revocation: { enabled: true }, devInteractions: { enabled: true } },
});
provider.proxy = true;
says(http.createServer(provider.callback()));
