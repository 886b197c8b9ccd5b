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

// The clients share connections, whichever version they speak.
const dispatcher = agent({ ca, port, version: 2 });
const person = walker({ port });

/** The person has a token, which then ends at the provider. */
async function revoke() {
  await person.connect(LINK);
  const { grantId } = await provider.AccessToken.find(token);
  await provider.AccessToken.revokeByGrantId(grantId);
  await provider.RefreshToken.revokeByGrantId(grantId);
}

/** The same, and a request finds that out. */
async function lose() {
  await revoke();
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

/** The calls that can wait for a person, and what comes of them. */
const CALLS = [
  { method: 'tools/call', params: ECHO, call: echo, isGood: isEchoed },
  {
    method: 'resources/read',
    params: PAGE,
    call: (client) => client.readResource(PAGE),
    isGood: ({ contents }) => assert.equal(contents[0].text, 'the page'),
  },
  {
    method: 'prompts/get',
    params: HELLO,
    call: (client) => client.getPrompt(HELLO),
    isGood: ({ messages }) => assert.equal(messages[0].content.text, TEXT),
  },
];

/** That a person was asked with our link alone. */
function isQuestion({ mode, url, message, ...more }) {
  assert.deepEqual({ mode, url, more }, { mode: 'url', url: LINK, more: {} });
  isTold(`${message} ${url}`);
}

/** What came of a call is not to be known before something else happened, which takes no token. */
const before = (result, happens) =>
  Promise.race([happens, result.then((early) => assert.fail(`too early: ${JSON.stringify(early)}`))]);

/** These are all that arrived of calls with these parameters: each once, with the person's token, and nothing of ours. */
function arrivedOnce(since, calls) {
  const arrived = seen.slice(since).map(({ authorization, message: { method, params: { _meta, ...params } } }) => ({
    authorization, method, params,
  }));
  const authorization = [`Bearer ${token}`];
  assert.deepEqual(arrived, calls.map(({ method, params }) => ({ authorization, method, params })));
}

/** Each SDK, with each version, without and with somebody to ask. What they are to answer is the client's `action`. */
const clients = SDKS.flatMap(({ sdk, version, open }) => [false, true].map((canAsk) => {
  const one = { as: `${sdk}, ${version}, ${canAsk ? 'with' : 'without'} URL elicitation`, version, canAsk };
  const answer = canAsk ? () => one.action ?? assert.fail('asked') : undefined;
  return Object.assign(one, { client: open({ url: MCP.href, dispatcher, port, caFile: E2E_CA, answer }) });
}));
/** Those whose people are asked. */
const askers = clients.filter(({ version, canAsk }) => canAsk && version === MODERN);
const others = clients.filter((one) => !askers.includes(one));

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

  await check('the call that finds out fails with the link, and is not made again', ANY, async () => {
    await each(clients, async ({ client }) => {
      await revoke();
      const since = { seen: seen.length, sent: client.sent.methods.length };
      await isToldAsError(echo(client));
      assert.equal(seen.length, since.seen + 1);
      assert.deepEqual(client.sent.methods.slice(since.sent), ['tools/call']);
    });
  });

  await check('it is there again, and all go on', ANY, async () => {
    await person.connect(LINK);
    const since = seen.length;
    await each(clients, async ({ client }) => isEchoed(await echo(client)));
    arrivedOnce(since, clients.map(() => CALLS[0]));
  });

  for (const asker of askers) {
    for (const { method, params, call, isGood } of CALLS) {
      await check(`${asker.as}: ${method} waits for the person, and goes on by itself`, ANY, async () => {
        await lose();
        const since = seen.length;
        const { result, question, done } = await ask([asker], call);
        await person.connect(question.url);
        const connected = Date.now();
        isGood((await result)[0]);
        console.log(`# it went on ${Date.now() - connected} ms after the person had connected`);
        arrivedOnce(since, [{ method, params }]);
        done([method, method]);
      });
    }
  }

  await check('accepted without opening the link: it waits on, and asks no more', ANY, async () => {
    await lose();
    const since = seen.length;
    const { result, done } = await ask(askers, echo);
    // Each of these is one that was held for as long as we hold any.
    await before(result, Promise.all(askers.map(({ client, sent }) => client.sent.reaches(sent + 3))));
    assert.equal(seen.length, since, 'nothing went on');
    await person.connect(LINK);
    (await result).forEach(isEchoed);
    arrivedOnce(since, askers.map(() => CALLS[0]));
    done(['tools/call', 'tools/call', 'tools/call']);
  });

  await check('while one waits, others call, in both versions: each is told in its own way', ANY, async () => {
    await lose();
    const since = seen.length;
    const { result, question, done } = await ask([askers[0]], echo);
    await before(result, each(others, async ({ client }) => isToldAsResult(await echo(client))));
    assert.equal(seen.length, since, 'nothing went on');
    await person.connect(question.url);
    (await result).forEach(isEchoed);
    await each(others, async ({ client }) => isEchoed(await echo(client)));
    arrivedOnce(since, [askers[0], ...others].map(() => CALLS[0]));
    done(['tools/call', 'tools/call']);
  });

  for (const action of ['decline', 'cancel']) {
    await check(`the person answers ${action}: the model reads the link, an application the error`, ANY, async () => {
      await lose();
      const since = seen.length;
      await each(askers, async (one) => {
        const asked = one.client.asked.length;
        one.action = action;
        isToldAsResult(await echo(one.client));
        await isToldAsError(one.client.readResource(PAGE));
        await isToldAsError(one.client.getPrompt(HELLO));
        one.action = undefined;
        const questions = one.client.asked.slice(asked);
        assert.equal(questions.length, 3);
        questions.forEach(isQuestion);
      });
      assert.deepEqual(seen.slice(since), [], 'nothing went on');
      await person.connect(LINK);
    });
  }

  await check('elicitation without a word of URLs is that of forms: the model reads the link', ANY, async () => {
    const { open } = SDKS.find(({ sdk, version }) => sdk === 'TypeScript 2' && version === MODERN);
    const client = open({
      url: MCP.href, dispatcher, capabilities: { elicitation: {} }, answer: () => assert.fail('asked'),
    });
    await person.connect(LINK);
    await client.connect();
    await lose();
    const since = seen.length;
    isToldAsResult(await echo(client));
    assert.deepEqual(seen.slice(since), [], 'nothing went on');
    await client.close();
  });

  await check('the person disconnected: nobody is asked', ANY, async () => {
    await person.connect(LINK);
    await person.disconnect(LINK);
    const since = seen.length;
    await each(clients, async ({ client }) => isToldAsResult(await echo(client)));
    assert.deepEqual(seen.slice(since), [], 'nothing went on');
  });

  await each(clients, ({ client }) => client.close());
}

/**
 * Has these call, who are asked, and accept; when all have called again. `done` says whether these were all of their
 * requests, and the question the only one.
 */
async function ask(some, call) {
  for (const one of some) {
    Object.assign(one, { action: 'accept', sent: one.client.sent.methods.length, asked: one.client.asked.length });
  }
  const result = Promise.all(some.map(({ client }) => call(client)));
  await before(result, Promise.all(some.map(({ client, sent }) => client.sent.reaches(sent + 2))));
  const [question] = some[0].client.asked.slice(some[0].asked);
  const done = (methods) => {
    for (const { client, sent, asked } of some) {
      assert.deepEqual(client.sent.methods.slice(sent), methods);
      const [shown, ...more] = client.asked.slice(asked);
      isQuestion(shown);
      assert.deepEqual(more, [], 'one question');
    }
    some.forEach((one) => { one.action = undefined; });
  };
  return { result, question, done };
}

const { check, finish } = scenarios(undefined, { counts: () => ({}), origins: [] });
await run(check);
await Promise.all([dispatcher.destroy(), person.close()]);
await Promise.all([closeProvider(), closeServer()]);
finish();
