// An MCP server as the official SDK makes it, which takes nothing but tokens of this provider for itself: the SDK reads
// them, asks for them with its own challenge, and describes itself with its own metadata (RFC 9728).

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { getOAuthProtectedResourceMetadataUrl, mcpAuthMetadataRouter } from '@modelcontextprotocol/sdk/server/auth/router.js';
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { isInitializeRequest } from '@modelcontextprotocol/sdk/types.js';
import express from 'express';
import { z } from 'zod';

const TICK = 250;

/** What the challenge says of a token that is not good. */
export const REFUSAL = 'unknown, or over';

/**
 * Serves `resource`, the URL of the server, on `listen`. `seen` grows by one record for each request that Envoy brings:
 * its method, its version, the credentials that came with it, each as it stood, and with a good token its `message`.
 * `sessions` are those that are open, where not `serve` answers, which gets a request that has a good token.
 */
export async function startMcpServer({ listen, resource, issuer, provider, serve }) {
  const seen = [];
  const sessions = new Map();
  const app = express();
  app.use((request, _response, next) => {
    // Others than Envoy come for the challenge and the metadata.
    if (request.headers['x-request-id']) {
      request.record = record(request);
      seen.push(request.record);
    }
    next();
  });
  app.use(mcpAuthMetadataRouter({
    oauthMetadata: {
      issuer,
      authorization_endpoint: `${issuer}/auth`,
      token_endpoint: `${issuer}/token`,
      response_types_supported: ['code'],
    },
    resourceServerUrl: new URL(resource),
    scopesSupported: ['mcp'],
  }));
  app.get('/mcp', pageForPeople);
  app.use('/mcp', requireBearerAuth({
    verifier: verifier(provider),
    requiredScopes: ['mcp'],
    resourceMetadataUrl: getOAuthProtectedResourceMetadataUrl(new URL(resource)),
    expectedResource: new URL(resource),
  }));
  app.post('/mcp', upload);
  app.all('/mcp', express.json(), (request, _response, next) => {
    request.record.message = request.body;
    next();
  }, serve ?? inSessions(sessions));
  const server = app.listen(listen);
  await once(server, 'listening');
  const close = async () => {
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  };
  return { seen, sessions, close };
}

function record({ method, httpVersion, rawHeaders, url }) {
  const values = (name) => rawHeaders.filter((_, at) => at % 2 === 1 && rawHeaders[at - 1].toLowerCase() === name);
  return {
    method,
    url,
    httpVersion,
    authorization: values('authorization'),
    cookie: values('cookie'),
    proxyAuthorization: values('proxy-authorization'),
  };
}

/** Asks the provider about a token, as the SDK wants to know it. */
const verifier = (provider) => ({
  async verifyAccessToken(token) {
    const found = await provider.AccessToken.find(token);
    if (!found?.isValid) {
      throw new InvalidTokenError(REFUSAL);
    }
    return {
      token, clientId: found.clientId, scopes: [...found.scopes], expiresAt: found.exp, resource: new URL(found.aud),
    };
  },
});

/** Where people land who were connected. */
function pageForPeople(request, response, next) {
  if (!request.headers.accept?.includes('text/html')) {
    next();
    return;
  }
  response.type('html').send('<!doctype html><title>The upstream</title><link rel="icon" href="data:,"><h1>The upstream</h1>');
}

/** Tells what came of a body of any size and kind, in place of MCP. */
async function upload(request, response, next) {
  if (!('upload' in request.query)) {
    next();
    return;
  }
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const chunk of request) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  response.json({ bytes, sha256: hash.digest('hex'), trailers: request.rawTrailers });
}

const inSessions = (sessions) => async (request, response) => {
  const transport = await transportFor(request, sessions);
  if (!transport) {
    response.status(404).json({ jsonrpc: '2.0', error: { code: -32001, message: 'Session not found' }, id: null });
    return;
  }
  await transport.handleRequest(request, response, request.body);
};

/** The session that a request names, or a new one for whoever begins. */
async function transportFor(request, sessions) {
  const id = request.headers['mcp-session-id'];
  if (id || !isInitializeRequest(request.body)) {
    return sessions.get(id)?.transport;
  }
  const server = mcpServer();
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => crypto.randomUUID(),
    onsessioninitialized: (started) => { sessions.set(started, { transport, server }); },
    onsessionclosed: (ended) => { sessions.delete(ended); },
  });
  await server.connect(transport);
  return transport;
}

function mcpServer() {
  const server = new McpServer({ name: 'real', version: '1' }, { capabilities: { logging: {} } });
  let sawFirst;
  const firstIsSeen = new Promise((resolve) => { sawFirst = resolve; });
  server.registerTool('whoami', { description: 'Whose client this is' }, ({ authInfo }) => ({
    content: [{ type: 'text', text: JSON.stringify({ clientId: authInfo.clientId, scopes: authInfo.scopes }) }],
  }));
  server.registerTool('saw', { description: 'The first of what `count` counts was seen' }, () => {
    sawFirst();
    return { content: [{ type: 'text', text: 'good' }] };
  });
  server.registerTool(
    'count',
    { description: 'Counts for a while, and no further than one until that was seen', inputSchema: { seconds: z.number().min(0).max(120) } },
    async ({ seconds }, { _meta, sendNotification }) => {
      const ticks = Math.ceil((seconds * 1000) / TICK);
      for (let progress = 1; progress <= ticks; progress += 1) {
        await sleep(TICK);
        await sendNotification({
          method: 'notifications/progress', params: { progressToken: _meta.progressToken, progress, total: ticks },
        });
        await firstIsSeen;
      }
      return { content: [{ type: 'text', text: `${ticks} ticks` }] };
    },
  );
  return server;
}
