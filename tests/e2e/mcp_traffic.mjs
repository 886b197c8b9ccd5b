// An MCP client and an MCP server of the official SDK with Envoy and envoy-cimd between them: the client has no token, and
// the server demands one of oidc-provider's. A person connects each route once, in Chromium.
//
// https://notes.localhost and tickets.localhost are routes of the Envoy at 127.0.0.1:E2E_ENVOY_PORT, whose certificate
// E2E_CA vouches for. Both lead to E2E_UPSTREAM, whose port is the listening socket E2E_UPSTREAM_FD. The provider is
// E2E_AS_HOST on a port of its own, with E2E_AS_CERT and E2E_AS_KEY. A streamed result takes E2E_STREAM_SECONDS (3).

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http2 from 'node:http2';
import https from 'node:https';
import { text } from 'node:stream/consumers';
import tls from 'node:tls';

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { LoggingMessageNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { fetch as fetchWith } from 'undici';

import { begun, consent } from './connecting.mjs';
import { startMcpServer } from './mcp_server.mjs';
import { clientId, startProvider } from './oidc_provider.mjs';
import { NOTES, START, TICKETS, follow, hasLanded, launch, scenarios, until } from './person.mjs';
import { agent } from './to_envoy.mjs';

const { E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY } = process.env;
for (const [name, value] of Object.entries({
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY,
})) {
  assert.ok(value, `${name} must be set`);
}
const SECONDS = Number(process.env.E2E_STREAM_SECONDS || 3);
const UPLOAD = 40 * 1024 * 1024;
const INITIALIZE = JSON.stringify({
  jsonrpc: '2.0', id: 1, method: 'initialize',
  params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'raw', version: '1' } },
});

const ca = readFileSync(E2E_CA, 'utf8');
const port = Number(E2E_ENVOY_PORT);

const { issuer, provider, close: closeProvider } = await startProvider({
  ca,
  envoyPort: port,
  tls: { host: E2E_AS_HOST, cert: readFileSync(E2E_AS_CERT, 'utf8'), key: readFileSync(E2E_AS_KEY, 'utf8') },
  ttl: { AccessToken: 600 },
});
const { seen, sessions, close: closeServer } = await startMcpServer({
  listen: { fd: Number(E2E_UPSTREAM_FD) }, resource: E2E_UPSTREAM, issuer, provider,
});

/** What the provider gave each client last. */
const tokens = new Map();
provider.on('grant.success', ({ oidc: { client }, body: { access_token } }) => {
  tokens.set(client.clientId, access_token);
});

// ---- an MCP client ----

/** Runs `body` with a client of a route that was connected to by MCP. */
async function withClient(origin, version, body) {
  const dispatcher = agent({ ca, port, version });
  const transport = new StreamableHTTPClientTransport(new URL('/mcp', origin), {
    fetch: (url, init) => fetchWith(url, { ...init, dispatcher }),
  });
  const client = new Client({ name: 'e2e', version: '1' });
  try {
    await body({ client, transport, connect: () => client.connect(transport) });
  } finally {
    await client.close();
    await dispatcher.destroy();
  }
}

const toolText = ({ content }) => content[0].text;

/** Whether all that came since is of this route: its own token, once, and nothing that the caller sent. */
function allOfRoute(origin, since) {
  const arrived = seen.slice(since);
  assert.ok(arrived.length > 0, 'nothing arrived');
  const authorization = [`Bearer ${tokens.get(clientId(origin))}`];
  for (const request of arrived) {
    const { cookie, proxyAuthorization } = request;
    assert.deepEqual({ authorization: request.authorization, cookie, proxyAuthorization }, {
      authorization, cookie: [], proxyAuthorization: [],
    });
  }
  return arrived;
}

// ---- requests that no SDK sends ----

/** A request over HTTP/1.1 with these header lines, as they stand. */
async function raw(origin, { path = '/mcp', method = 'POST', headers, body, expect = false }) {
  const { hostname } = new URL(origin);
  const request = https.request({
    host: '127.0.0.1', port, servername: hostname, path, method, ca, agent: false,
    headers: ['host', hostname, ...headers, 'content-length', String(Buffer.byteLength(body))],
  });
  if (expect) {
    request.flushHeaders();
    await once(request, 'continue');
  }
  request.end(body);
  const [response] = await once(request, 'response');
  return { status: response.statusCode, body: await text(response) };
}

/** The same over HTTP/2, with trailers. */
async function rawHttp2(origin, { path = '/mcp', headers, body, trailers = {} }) {
  const { hostname } = new URL(origin);
  const session = http2.connect(`https://${hostname}`, {
    createConnection: () => tls.connect({ host: '127.0.0.1', port, servername: hostname, ca, ALPNProtocols: ['h2'] }),
  });
  try {
    const stream = session.request(
      { ':method': 'POST', ':path': path, ':authority': hostname, ...headers }, { waitForTrailers: true },
    );
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    stream.end(body);
    const [answer] = await once(stream, 'response');
    return { status: answer[':status'], body: await text(stream) };
  } finally {
    session.close();
  }
}

const MCP = ['content-type', 'application/json', 'accept', 'application/json, text/event-stream'];

// ---- the scenarios, and what arrives at the server ----

async function run(check) {
  // What arrives at the server is what counts here.
  const ANY = {};

  for (const version of [1, 2]) {
    await check(`nobody is connected: the client is told where to, over HTTP/${version}`, ANY, async () => {
      const before = seen.length;
      await withClient(NOTES, version, async ({ connect }) => {
        await assert.rejects(connect(), ({ message }) => message.includes(`${NOTES}${START}`));
      });
      assert.deepEqual(seen.slice(before), [], 'nothing went on');
    });
  }

  await check('a person connects in a browser', ANY, async ({ openAnywhere }) => {
    const page = await begun(await openAnywhere(), NOTES, '/mcp', issuer);
    await follow(page, () => consent(page));
    // The page is the upstream's, and a browser's navigation has a token now.
    await hasLanded(page, '/mcp');
    assert.ok(tokens.has(clientId(NOTES)));
  });

  for (const version of [1, 2]) {
    await check(`the whole protocol, over HTTP/${version}`, ANY, async () => {
      const before = seen.length;
      await withClient(NOTES, version, async ({ client, transport, connect }) => {
        const messages = [];
        client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => { messages.push(params.data); });
        await connect();
        assert.equal(client.getServerVersion().name, 'real');
        const { tools } = await client.listTools();
        assert.deepEqual(tools.map(({ name }) => name).sort(), ['count', 'saw', 'whoami']);
        const who = JSON.parse(toolText(await client.callTool({ name: 'whoami' })));
        assert.deepEqual(who, { clientId: clientId(NOTES), scopes: ['mcp'] });

        const session = sessions.get(transport.sessionId);
        assert.ok(session, 'its session is open');
        await until('the stream of a GET is open', () => seen.slice(before).some(({ method }) => method === 'GET'));
        await until('it brings what the server says by itself', async () => {
          await session.server.sendLoggingMessage({ level: 'info', data: 'by itself' });
          return messages.includes('by itself');
        });

        await transport.terminateSession();
        assert.ok(!sessions.has(session.transport.sessionId), 'its session is over');
      });
      const arrived = allOfRoute(NOTES, before);
      assert.deepEqual([...new Set(arrived.map(({ method }) => method))].sort(), ['DELETE', 'GET', 'POST']);
    });

    await check(`a result that streams for ${SECONDS} s, over HTTP/${version}`, ANY, async () => {
      const before = seen.length;
      await withClient(NOTES, version, async ({ client, connect }) => {
        await connect();
        const progress = [];
        const result = await client.callTool({ name: 'count', arguments: { seconds: SECONDS } }, undefined, {
          timeout: (SECONDS + 30) * 1000,
          onprogress: async (step) => {
            // Where a stream is held back on its way, the count stops here.
            if (progress.push(step.progress) === 1) {
              await client.callTool({ name: 'saw' });
            }
          },
        });
        assert.equal(toolText(result), `${progress.length} ticks`);
        assert.deepEqual(progress, progress.map((_, at) => at + 1), 'each tick came once, in order');
        assert.ok(progress.length >= SECONDS * 4, `${progress.length} ticks`);
      });
      allOfRoute(NOTES, before);
    });
  }

  await check('the caller\'s own credentials never arrive', ANY, async () => {
    const five = (name, value) => Array.from({ length: 5 }, (_, at) => [name, `${value} ${at}`]).flat();
    for (const headers of [
      ['authorization', 'Bearer of-the-caller'],
      ['Authorization', 'Basic YTpi'],
      ['AUTHORIZATION', 'of the caller'],
      ['aUtHoRiZaTiOn', ''],
      five('Authorization', 'Bearer'),
      ['authorization', 'Bearer a', 'Authorization', 'Bearer b', 'AUTHORIZATION', 'Bearer c'],
      ['Proxy-Authorization', 'Basic YTpi', 'Cookie', 'session=a', 'COOKIE', 'session=b'],
    ]) {
      const before = seen.length;
      const { status } = await raw(NOTES, { headers: [...MCP, ...headers], body: INITIALIZE });
      assert.equal(status, 200, headers.join());
      assert.equal(allOfRoute(NOTES, before).length, 1, headers.join());
    }
    const before = seen.length;
    const { status, body } = await rawHttp2(NOTES, {
      path: '/mcp?upload',
      headers: { authorization: 'Bearer of-the-caller', cookie: 'session=a', 'proxy-authorization': 'Basic YTpi' },
      body: 'a body',
      trailers: { authorization: 'Bearer of-the-caller', cookie: 'session=a' },
    });
    assert.deepEqual([status, JSON.parse(body).trailers, JSON.parse(body).bytes], [200, [], 6]);
    allOfRoute(NOTES, before);
  });

  await check('what is uploaded arrives as it was', ANY, async () => {
    const body = Buffer.alloc(UPLOAD, 'all of it ');
    const expected = { bytes: UPLOAD, sha256: createHash('sha256').update(body).digest('hex'), trailers: [] };
    const before = seen.length;
    const whole = ['content-type', 'application/octet-stream'];
    for (const [headers, expect] of [[whole, false], [[...whole, 'expect', '100-continue'], true]]) {
      const { status, body: said } = await raw(NOTES, { path: '/mcp?upload', headers, body, expect });
      assert.deepEqual([status, JSON.parse(said)], [200, expected]);
    }
    const { status, body: said } = await rawHttp2(NOTES, { path: '/mcp?upload', headers: {}, body });
    assert.deepEqual([status, JSON.parse(said)], [200, expected]);
    assert.equal(allOfRoute(NOTES, before).length, 3);
  });

  await check('another route has its own person\'s token, or none', ANY, async ({ openAnywhere }) => {
    const before = seen.length;
    await withClient(TICKETS, 2, async ({ connect }) => {
      await assert.rejects(connect(), ({ message }) => message.includes(`${TICKETS}${START}`));
    });
    assert.deepEqual(seen.slice(before), [], 'the first route\'s token did not go on');
    const page = await begun(await openAnywhere(), TICKETS, '/mcp', issuer);
    await follow(page, () => consent(page));
    await hasLanded(page, '/mcp', TICKETS);
    for (const origin of [TICKETS, NOTES]) {
      const since = seen.length;
      await withClient(origin, 2, async ({ client, connect }) => {
        await connect();
        const who = JSON.parse(toolText(await client.callTool({ name: 'whoami' })));
        assert.equal(who.clientId, clientId(origin));
      });
      allOfRoute(origin, since);
    }
    assert.notEqual(tokens.get(clientId(NOTES)), tokens.get(clientId(TICKETS)));
  });
}

const browser = await launch([
  `MAP *.localhost:443 127.0.0.1:${E2E_ENVOY_PORT}`,
  'MAP *.localhost 127.0.0.1',
  // The provider's pages ask for a font from elsewhere.
  'MAP * ~NOTFOUND',
]);
const { check, finish } = scenarios(browser, { counts: () => ({}), origins: [] });
try {
  await run(check);
} finally {
  await browser.close();
}
await Promise.all([closeProvider(), closeServer()]);
finish();
