// An authorization server and its MCP server in one worker. The namespace of Workers KV is a map here, and the consent
// page takes whoever comes for one and the same person.

import { OAuthAuthorizationServer, OAuthResourceServer } from '@cloudflare/workers-oauth-provider';
import { env as bindings } from 'cloudflare:workers';

const { ISSUER, RESOURCE } = bindings;
const AUTHORIZE = '/authorize';
const kept = new Map();
const env = {
  ...bindings,
  OAUTH_KV: {
    async get(key, { type } = {}) {
      const value = kept.get(key)?.value;
      return value === undefined ? null : type === 'json' ? JSON.parse(value) : value;
    },
    async put(key, value, { metadata } = {}) {
      kept.set(key, { value, metadata });
    },
    async delete(key) {
      kept.delete(key);
    },
    async list({ prefix = '' }) {
      const names = [...kept.keys()].filter((name) => name.startsWith(prefix));
      return { keys: names.map((name) => ({ name, metadata: kept.get(name).metadata })), list_complete: true };
    },
  },
};

const authorizationServer = new OAuthAuthorizationServer({
  issuer: ISSUER,
  resources: [RESOURCE],
  scopesSupported: ['mcp', 'offline_access'],
  clientIdMetadataDocumentEnabled: true,
});

const mcpServer = new OAuthResourceServer({
  resourceMetadata: { resource: RESOURCE, authorization_servers: [ISSUER] },
  requiredScopes: ['mcp'],
  validateToken: () => (resource, token) => authorizationServer.validateToken(resource, token, env),
  handler: { fetch: mcp },
});

/** As little of MCP as one tool takes. */
async function mcp(request) {
  if (request.method !== 'POST') {
    return new Response(null, { status: 405 });
  }
  const { id, method, params } = await request.json();
  if (id === undefined) {
    return new Response(null, { status: 202 });
  }
  const number = { type: 'number' };
  const result = {
    initialize: () => ({
      protocolVersion: params.protocolVersion,
      capabilities: { tools: {} },
      serverInfo: { name: 'acceptance', version: '1' },
    }),
    'tools/list': () => ({
      tools: [{ name: 'add', inputSchema: { type: 'object', properties: { a: number, b: number } } }],
    }),
    'tools/call': () => ({ content: [{ type: 'text', text: String(params.arguments.a + params.arguments.b) }] }),
  }[method]?.();
  const answer = result ? { result } : { error: { code: -32601, message: 'unknown' } };
  return Response.json({ jsonrpc: '2.0', id, ...answer });
}

/** The page to consent, as the package's docs have it. */
async function authorize(request) {
  const oauth = authorizationServer.getOAuthApi(env);
  if (request.method === 'GET') {
    const asked = await oauth.parseAuthRequest(request);
    const { clientDomain } = await oauth.describeConsent(asked);
    const { handle, headers } = await oauth.beginConsent(asked);
    headers.set('content-type', 'text/html');
    return new Response(`<!doctype html><h1>Allow ${clientDomain}?</h1>
<form method="post"><input type="hidden" name="handle" value="${handle}">
<button name="decision" value="approve">Allow</button></form>`, { headers });
  }
  const form = await request.formData();
  const approved = await oauth.approveConsent(request, form.get('handle'));
  const { redirectTo } = await oauth.completeAuthorization({
    request: approved.request, userId: 'somebody', metadata: {}, scope: approved.request.scope, props: {},
  });
  approved.headers.set('location', redirectTo);
  return new Response(null, { status: 302, headers: approved.headers });
}

export default {
  fetch(request, _env, context) {
    const { pathname } = new URL(request.url);
    if (pathname === AUTHORIZE) {
      return authorize(request);
    }
    const isMcp = pathname === '/mcp' || pathname.startsWith('/.well-known/oauth-protected-resource');
    return (isMcp ? mcpServer : authorizationServer).fetch(request, env, context);
  },
};
