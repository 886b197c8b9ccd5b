// An MCP server as the official SDK makes it, which takes tokens of ISSUER for RESOURCE and no others. They are JWTs,
// which it checks by the keys at JWKS.

import http from 'node:http';

import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import express from 'express';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { z } from 'zod';

import { says } from './says.mjs';

const { RESOURCE, ISSUER, JWKS } = process.env;
const keys = createRemoteJWKSet(new URL(JWKS));
const { origin, pathname } = new URL(RESOURCE);
const METADATA = `/.well-known/oauth-protected-resource${pathname}`;

const verifier = {
  async verifyAccessToken(token) {
    try {
      const { payload } = await jwtVerify(token, keys, { issuer: ISSUER, audience: RESOURCE });
      const { client_id: clientId, scope, exp: expiresAt } = payload;
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
