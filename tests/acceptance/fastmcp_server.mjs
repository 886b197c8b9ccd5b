// fastmcp of npm: documents are a setting of its `OAuthProxy`, which has people sign in at an identity provider, and
// gives tokens of its own. It goes out by the `fetch` of Node.js, which is told of the proxy here.

import diagnostics from 'node:diagnostics_channel';

import { FastMCP } from 'fastmcp';
import { OAuthProxy } from 'fastmcp/auth';
import { EnvHttpProxyAgent, setGlobalDispatcher } from 'undici';
import { z } from 'zod';

import { announce } from './says.mjs';

const { ISSUER, RESOURCE, CLIENT_ORIGIN, IDP, EGRESS_PROXY } = process.env;
setGlobalDispatcher(new EnvHttpProxyAgent({ httpsProxy: EGRESS_PROXY, noProxy: 'localhost' }));

const proxy = new OAuthProxy({
  baseUrl: ISSUER,
  enableCimd: true,
  allowPlainPkce: false,
  allowedRedirectUriPatterns: [`${CLIENT_ORIGIN}/*`],
  scopes: ['openid', 'mcp'],
  upstreamAuthorizationEndpoint: `${IDP}/auth`,
  upstreamTokenEndpoint: `${IDP}/token`,
  upstreamClientId: 'gateway',
  upstreamClientSecret: 'a secret of the gateway',
});

const server = new FastMCP({
  name: 'acceptance',
  version: '1.0.0',
  oauth: {
    enabled: true,
    proxy,
    authorizationServer: proxy.getAuthorizationServerMetadata(),
    protectedResource: { resource: RESOURCE, authorizationServers: [ISSUER], scopesSupported: ['mcp'] },
  },
  authenticate: async ({ headers }) => {
    const [, token] = /^Bearer (.+)$/.exec(headers.authorization ?? '') ?? [];
    return token && await proxy.loadUpstreamTokens(token) || undefined;
  },
});
server.addTool({
  name: 'add',
  parameters: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => String(a + b),
});
// It says nowhere which port it got.
diagnostics.subscribe('tracing:net.server.listen:asyncEnd', ({ server: listener }) => {
  announce(listener.address().port);
});
await server.start({ transportType: 'httpStream', httpStream: { host: '127.0.0.1', port: 0, stateless: true } });
