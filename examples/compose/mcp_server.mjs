// An MCP server that can say who it is, to whoever has a token for it, and the authorization server that gives such
// tokens: oidc-provider with its own pages for trying it out, where any name and password will do.
//
// NAME is the route's name, and LOGIN_PORT the port of the authorization server, inside and outside of the container.

import { readFileSync } from 'node:fs';
import http from 'node:http';
import { json } from 'node:stream/consumers';

import { startProvider } from './oidc_provider.mjs';

const { NAME, LOGIN_PORT } = process.env;
const RESOURCE = `http://${NAME}:3000/mcp`;
const METADATA = '/.well-known/oauth-protected-resource/mcp';

const text = (file) => readFileSync(file, 'utf8');
const { issuer, provider } = await startProvider({
  ca: text('/ca/ca.pem'),
  envoyHost: 'envoy',
  envoyPort: 8443,
  listen: { host: '0.0.0.0', port: Number(LOGIN_PORT) },
  tls: { host: `login.${NAME}.localhost`, cert: text('/keys/public.crt'), key: text('/keys/public.key') },
});

http.createServer(async (request, response) => {
  const answer = (status, headers, body) => response.writeHead(status, headers).end(body);
  const answerJson = (body) => answer(200, { 'content-type': 'application/json' }, JSON.stringify(body));
  if (request.url === METADATA) {
    // RFC 9728.
    // Without a scope, this authorization server would give nothing (RFC 6749, section 3.3).
    return answerJson({ resource: RESOURCE, authorization_servers: [issuer], scopes_supported: ['mcp'] });
  }
  if (request.method === 'GET' && request.headers.accept?.includes('text/html')) {
    // Where the connect page sends a person on to.
    return answer(200, { 'content-type': 'text/html' }, `<!doctype html><title>${NAME}</title><h1>${NAME}</h1>
<p>An MCP server, for programs. You can close this page.</p>`);
  }
  if (!(await accepts(request.headers.authorization))) {
    const challenge = `Bearer resource_metadata="${new URL(METADATA, RESOURCE)}"`;
    return answer(401, { 'www-authenticate': challenge });
  }
  if (request.method !== 'POST') {
    return answer(405, { allow: 'POST' });
  }
  const { id, method } = await json(request).catch(() => ({}));
  const result = {
    protocolVersion: '2025-11-25', capabilities: {}, serverInfo: { name: NAME, version: '1' },
  };
  const error = { code: -32601, message: 'Method not found' };
  return answerJson({ jsonrpc: '2.0', id, ...(method === 'initialize' ? { result } : { error }) });
}).listen(3000, '0.0.0.0');

/** Whether it is a token for this server, and still good. */
async function accepts(authorization = '') {
  const [scheme, value] = authorization.split(' ');
  const token = scheme.toLowerCase() === 'bearer' && value ? await provider.AccessToken.find(value) : undefined;
  return token?.isValid === true && token.aud === RESOURCE;
}
