// An MCP server as the official SDK makes it, which takes tokens of ISSUER for RESOURCE and no others. They are JWTs,
// which it checks by the keys at JWKS; or it asks about them at INTROSPECTION, as a client that was registered by hand.

import http from 'node:http';

import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import express from 'express';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { z } from 'zod';

import { says } from './says.mjs';

const { RESOURCE, ISSUER, JWKS, INTROSPECTION } = process.env;
const keys = JWKS && createRemoteJWKSet(new URL(JWKS));
const { origin, pathname } = new URL(RESOURCE);
const METADATA = `/.well-known/oauth-protected-resource${pathname}`;

/** What a good token says of itself. */
async function claims(token) {
  if (keys) {
    return (await jwtVerify(token, keys, { issuer: ISSUER, audience: RESOURCE })).payload;
  }
  const answer = await fetch(INTROSPECTION, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from('mcp-server:a secret of the MCP server').toString('base64')}` },
    body: new URLSearchParams({ token }),
  });
  const said = await answer.json();
  if (!said.active || ![said.aud].flat().includes(RESOURCE)) {
    throw new Error(`${answer.status} ${JSON.stringify({ active: said.active, aud: said.aud })}`);
  }
  return said;
}

const verifier = {
  async verifyAccessToken(token) {
    try {
      const { client_id: clientId, scope, exp: expiresAt } = await claims(token);
      return { token, clientId, scopes: scope?.split(' ') ?? [], expiresAt, resource: new URL(RESOURCE) };
    } catch (error) {
      console.error(`a token is refused: ${error.message}`);
      throw new InvalidTokenError('not for this server, or over');
    }
  },
};

const app = express();
app.get(METADATA, (_request, response) => {
  response.json({ resource: RESOURCE, authorization_servers: [ISSUER], scopes_supported: ['mcp'] });
});
app.use(pathname, requireBearerAuth({ verifier, requiredScopes: ['mcp'], resourceMetadataUrl: origin + METADATA }));
app.post(pathname, express.json(), async (request, response) => {
  const server = new McpServer({ name: 'acceptance', version: '1' });
  server.registerTool('add', { inputSchema: { a: z.number(), b: z.number() } }, ({ a, b }) => ({
    content: [{ type: 'text', text: String(a + b) }],
  }));
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  response.on('close', () => server.close());
  await server.connect(transport);
  await transport.handleRequest(request, response, request.body);
});
app.all(pathname, (_request, response) => response.status(405).end());
says(http.createServer(app));
