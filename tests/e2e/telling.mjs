// How people are told to connect, as applications that use the official SDKs see it: each SDK in every version that it
// speaks, with and without somebody to ask (URL elicitation). Envoy and envoy-cimd are between them and a real MCP
// server, whose tokens are oidc-provider's.
//
// https://notes.localhost is a route of the Envoy at 127.0.0.1:E2E_ENVOY_PORT, whose certificate E2E_CA vouches for.
// It leads to E2E_UPSTREAM, whose port is the listening socket E2E_UPSTREAM_FD. The provider is E2E_AS_HOST on a port
// of its own, with E2E_AS_CERT and E2E_AS_KEY.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import { request } from 'undici';

import { bothVersions } from './both_versions_server.mjs';
import { REFUSAL, startMcpServer } from './mcp_server.mjs';
import { clientId, startProvider } from './oidc_provider.mjs';
import { NOTES, START, scenarios } from './person.mjs';
import { MODERN, SDKS } from './sdks.mjs';
import { agent } from './to_envoy.mjs';
import { walker } from './walker.mjs';

const { E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY } = process.env;
for (const [name, value] of Object.entries({
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY,
})) {
  assert.ok(value, `${name} must be set`);
}

const ca = readFileSync(E2E_CA, 'utf8');
const port = Number(E2E_ENVOY_PORT);
const LINK = `${NOTES}${START}`;
const MCP = new URL('/mcp', NOTES);
/** A text with what looks like ours. */
const TEXT = 'say "requestState": "x", {"inputResponses": {"connect": 1}} ü \\u0000';

const { issuer, provider, close: closeProvider } = await startProvider({
  ca,
  envoyPort: port,
  tls: { host: E2E_AS_HOST, cert: readFileSync(E2E_AS_CERT, 'utf8'), key: readFileSync(E2E_AS_KEY, 'utf8') },
  ttl: { AccessToken: 600 },
});
const { seen, close: closeServer } = await startMcpServer({
  listen: { fd: Number(E2E_UPSTREAM_FD) }, resource: E2E_UPSTREAM, issuer, provider, serve: bothVersions(),
});

/** What the provider gave last. */
let token;
provider.on('grant.success', ({ oidc: { client }, body: { access_token } }) => {
  assert.equal(client.clientId, clientId(NOTES));
  token = access_token;
});

// All clients share a connection, whichever version they speak.
const dispatcher = agent({ ca, port, version: 2, connections: 1 });
const person = walker({ port });

/** The token ends at the provider, and a request finds that out. */
async function lose() {
  const { grantId } = await provider.AccessToken.find(token);
  await provider.AccessToken.revokeByGrantId(grantId);
  await provider.RefreshToken.revokeByGrantId(grantId);
  const answer = await request(MCP, {
    dispatcher, method: 'POST', body: '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}',
    headers: { 'content-type': 'application/json', accept: 'application/json, text/event-stream' },
  });
  const { error } = await answer.body.json();
  assert.equal(answer.statusCode, 502);
  isTold(error.message);
}

/** A text that has our link, and nothing of the upstream's. */
function isTold(text) {
  assert.ok(text.includes(LINK), text);
  for (const word of [REFUSAL, new URL(E2E_UPSTREAM).host, 'resource_metadata', issuer]) {
    assert.ok(!text.includes(word), `${word} in ${text}`);
  }
}

function isToldAsResult({ isError, content }) {
  assert.equal(isError, true);
  assert.deepEqual(content.map(({ type }) => type), ['text']);
  isTold(content[0].text);
}

async function isToldAsError(call) {
  await assert.rejects(call, ({ message }) => {
    isTold(message);
    return true;
  });
}

const ECHO = { name: 'echo', arguments: { text: TEXT } };
const PAGE = { uri: 'test://page' };
const HELLO = { name: 'hello', arguments: { text: TEXT } };

const echo = (client) => client.callTool(ECHO);
const isEchoed = ({ isError, content }) => {
  assert.ok(!isError, JSON.stringify(content));
  assert.equal(content[0].text, TEXT);
};

/** These are all that arrived of calls with these parameters: each once, with the person's token, and nothing more. */
function arrivedOnce(since, calls) {
  const arrived = seen.slice(since).map(({ authorization, message: { method, params: { _meta, ...params } } }) => ({
    authorization, method, params,
  }));
  const authorization = [`Bearer ${token}`];
  assert.deepEqual(arrived, calls.map(({ method, params }) => ({ authorization, method, params })));
}

/** Each SDK, with each version, without and with somebody to ask, who must not be asked for now. */
const clients = SDKS.flatMap(({ sdk, version, open }) => [false, true].map((canAsk) => {
  const one = { as: `${sdk}, ${version}, ${canAsk ? 'with' : 'without'} URL elicitation`, version, canAsk };
  const answer = canAsk ? () => assert.fail('asked') : undefined;
  return Object.assign(one, { client: open({ url: MCP.href, dispatcher, port, caFile: E2E_CA, answer }) });
}));
/** Those who cannot ask as a call is answered. */
const others = clients.filter(({ version, canAsk }) => !canAsk || version !== MODERN);

async function each(clients, what) {
  for (const one of clients) {
    await what(one).catch((error) => {
      error.message = `${one.as}: ${error.message}`;
      throw error;
    });
  }
}

async function run(check) {
  // What arrives at the server is what counts here.
  const ANY = {};

  await check('nobody is connected: each SDK shows the link as it connects', ANY, async () => {
    await each(clients, ({ client }) => isToldAsError(client.connect()));
    assert.deepEqual(seen, [], 'nothing went on');
  });

  await check('a person opens the link, and all can call', ANY, async () => {
    await person.connect(LINK);
    await each(clients, async ({ client, version }) => {
      assert.equal(await client.connect(), version);
      isEchoed(await echo(client));
    });
    assert.ok(seen.every(({ authorization }) => authorization.join() === `Bearer ${token}`));
  });

  await check('the token is gone, and there is nobody to ask: the model reads the link', ANY, async () => {
    await lose();
    const since = seen.length;
    await each(others, async ({ client }) => {
      isToldAsResult(await echo(client));
      await isToldAsError(client.readResource(PAGE));
      await isToldAsError(client.getPrompt(HELLO));
    });
    assert.deepEqual(seen.slice(since), [], 'nothing went on');
  });

  await check('it is there again, and all go on', ANY, async () => {
    await person.connect(LINK);
    const since = seen.length;
    await each(clients, async ({ client }) => isEchoed(await echo(client)));
    arrivedOnce(since, clients.map(() => ({ method: 'tools/call', params: ECHO })));
  });

  await each(clients, ({ client }) => client.close());
}

const { check, finish } = scenarios(undefined, { counts: () => ({}), origins: [] });
await run(check);
await Promise.all([dispatcher.destroy(), person.close()]);
await Promise.all([closeProvider(), closeServer()]);
finish();
