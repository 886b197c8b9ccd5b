// oidc-provider: documents are a feature that is to be turned on, tokens for a resource another. Its pages are those
// that it has for development. It goes out through the proxy, which is what its `fetch` setting is for.

import { randomBytes } from 'node:crypto';
import http from 'node:http';

import Provider from 'oidc-provider';
import { ProxyAgent, fetch } from 'undici';

import { says } from './says.mjs';

const { ISSUER, EGRESS_PROXY } = process.env;
const dispatcher = new ProxyAgent(EGRESS_PROXY);

const provider = new Provider(ISSUER, {
  fetch: (url, options) => fetch(url, { ...options, dispatcher }),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  scopes: ['openid', 'offline_access', 'mcp'],
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  findAccount: (_ctx, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
  features: {
    clientIdMetadataDocument: { enabled: true, ack: 'draft-02' },
    devInteractions: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_ctx, resource) => ({ audience: resource, scope: 'mcp', accessTokenFormat: 'jwt' }),
    },
  },
});
// Its answers never say why.
for (const event of ['authorization.error', 'grant.error', 'server_error']) {
  provider.on(event, (_ctx, { message, error_description, error_detail }) => {
    console.error(`${event}: ${message} ${error_description ?? ''} ${error_detail ?? ''}`);
  });
}
provider.proxy = true;
says(http.createServer(provider.callback()));
