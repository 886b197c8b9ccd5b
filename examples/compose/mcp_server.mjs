// An MCP server of the official SDK, for whoever has a token for it, and the authorization server that gives such
// tokens: oidc-provider with its own pages for trying it out, where any name and password will do.
//
// NAME is the route's name, and LOGIN_PORT the port of the authorization server, inside and outside of the container.

import { readFileSync } from 'node:fs';
import http from 'node:http';
import { text } from 'node:stream/consumers';

import { toNodeHandler } from '@modelcontextprotocol/node';
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server';

import { startProvider } from './oidc_provider.mjs';

const { NAME, LOGIN_PORT } = process.env;
const RESOURCE = `http://${NAME}:3000/mcp`;
const METADATA = '/.well-known/oauth-protected-resource/mcp';

const pem = (file) => readFileSync(file, 'utf8');
const { issuer, provider } = await startProvider({
  ca: pem('/ca/ca.pem'),
  envoyHost: 'envoy',
  envoyPort: 8443,
  listen: { host: '0.0.0.0', port: Number(LOGIN_PORT) },
  tls: { host: `login.${NAME}.localhost`, cert: pem('/keys/public.crt'), key: pem('/keys/public.key') },
});
const speakMcp = toNodeHandler(createMcpHandler(mcpServer));

http.createServer(async (request, response) => {
  const answer = (status, headers, body) => response.writeHead(status, headers).end(body);
  if (request.url === METADATA) {
    // RFC 9728.
    // Without a scope, this authorization server would give nothing (RFC 6749, section 3.3).
    const body = { resource: RESOURCE, authorization_servers: [issuer], scopes_supported: ['mcp'] };
    return answer(200, { 'content-type': 'application/json' }, JSON.stringify(body));
  }
  if (request.method === 'GET' && request.headers.accept?.includes('text/html')) {
    // Where the connect page sends a person on to.
    return answer(200, { 'content-type': 'text/html' }, `<!doctype html><title>${NAME}</title><h1>${NAME}</h1>
<p>An MCP server, for programs. You can close this page.</p>`);
  }
  const message = await messageOf(request);
  if (message !== undefined) {
    // For who runs the demo to see what arrives.
    console.log(`came: ${JSON.stringify(message)}`);
  }
  const token = await tokenOf(request);
  if (!token) {
    const challenge = `Bearer resource_metadata="${new URL(METADATA, RESOURCE)}"`;
    return answer(401, { 'www-authenticate': challenge });
  }
  const { jti, clientId, scopes, grantId } = token;
  request.auth = { token: jti, clientId, scopes: [...scopes], extra: { grantId } };
  return speakMcp(request, response, message);
}).listen(3000, '0.0.0.0');

/** What a request says, where that is JSON. */
async function messageOf(request) {
  try {
    return JSON.parse(await text(request));
  } catch {
    return undefined;
  }
}

/** The token of a request, where it is for this server, and still good. */
async function tokenOf({ headers: { authorization = '' } }) {
  const [scheme, value] = authorization.split(' ');
  const token = scheme.toLowerCase() === 'bearer' && value ? await provider.AccessToken.find(value) : undefined;
  return token?.isValid === true && token.aud === RESOURCE ? token : undefined;
}

function mcpServer() {
  const server = new McpServer({ name: NAME, version: '1' });
  const says = (said) => ({ content: [{ type: 'text', text: said }] });
  server.registerTool(
    'whoami',
    { description: 'Says whose token came along' },
    ({ http: { authInfo } }) => says(`This is the ${NAME} MCP server, and your OAuth client is ${authInfo.clientId}`),
  );
  server.registerTool(
    'end_grant',
    { description: 'Ends what you allowed, as you could where you allowed it: the next call asks you to connect' },
    async ({ http: { authInfo: { extra: { grantId } } } }) => {
      await provider.RefreshToken.revokeByGrantId(grantId);
      await provider.AccessToken.revokeByGrantId(grantId);
      return says('It is over');
    },
  );
  return server;
}
