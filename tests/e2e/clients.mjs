// An authorization server that takes no metadata documents: oidc-provider, which registers clients, and has two that
// somebody registered by hand. For each of the three, a person connects, an MCP client calls, the token is refreshed,
// and the person disconnects.
//
// https://notes.localhost, tickets.localhost and other.localhost are routes of the Envoy at 127.0.0.1:E2E_ENVOY_PORT,
// whose certificate E2E_CA vouches for. All lead to E2E_UPSTREAM, whose port is the listening socket E2E_UPSTREAM_FD.
// The provider is E2E_AS_HOST on the listening socket E2E_AS_FD, with E2E_AS_CERT and E2E_AS_KEY. E2E_CLIENTS are the
// clients by hand, a JSON array, each with the `from` of its route. What nobody may have said is left in the file
// E2E_SECRETS.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';

import { startMcpServer } from './mcp_server.mjs';
import { callback, expectedClient, startProvider } from './oidc_provider.mjs';
import { NOTES, START, scenarios } from './person.mjs';
import { SDKS } from './sdks.mjs';
import { agent } from './to_envoy.mjs';
import { walker } from './walker.mjs';

const {
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_FD, E2E_AS_CERT, E2E_AS_KEY, E2E_CLIENTS,
  E2E_SECRETS,
} = process.env;
for (const [name, value] of Object.entries({
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_FD, E2E_AS_CERT, E2E_AS_KEY, E2E_CLIENTS,
  E2E_SECRETS,
})) {
  assert.ok(value, `${name} must be set`);
}
const byHand = JSON.parse(E2E_CLIENTS);
const ca = readFileSync(E2E_CA, 'utf8');
const port = Number(E2E_ENVOY_PORT);

/** In seconds, and so short that a token is over for envoy-cimd when it comes: whoever asks for it has it refreshed. */
const SHORT = 5;
const LONG = 600;
let lifetime = LONG;

const METHODS = ['client_secret_basic', 'client_secret_post'];
const { issuer, provider, server, close: closeProvider } = await startProvider({
  ca,
  envoyPort: port,
  listen: { fd: Number(E2E_AS_FD) },
  tls: { host: E2E_AS_HOST, cert: readFileSync(E2E_AS_CERT, 'utf8'), key: readFileSync(E2E_AS_KEY, 'utf8') },
  ttl: { AccessToken: () => lifetime },
  clientAuthMethods: METHODS,
  clients: byHand.map(({ from, ...client }) => ({
    ...client,
    redirect_uris: [callback(from)],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
  })),
  features: { clientIdMetadataDocument: { enabled: false }, registration: { enabled: true } },
});
const { seen, close: closeServer } = await startMcpServer({
  listen: { fd: Number(E2E_UPSTREAM_FD) }, resource: E2E_UPSTREAM, issuer, provider,
});

// ---- what goes on at the provider ----

const secrets = byHand.map(({ client_secret: secret }) => secret);
/** What it registered. */
const registered = [];
provider.on('registration_create.success', ({ body }, client) => {
  registered.push(client.metadata());
  secrets.push(body.client_secret, body.registration_access_token);
});

/** What it gave out, each with the client, and how that one authenticated. */
const granted = [];
provider.on('grant.success', ({ headers, oidc: { client, params }, body: { access_token, refresh_token } }) => {
  granted.push({
    client: client.clientId,
    grant: params.grant_type,
    method: headers.authorization?.startsWith('Basic ') ? METHODS[0] : params.client_secret && METHODS[1],
    access_token,
    refresh_token,
  });
  secrets.push(access_token, refresh_token);
});

let revocations = 0;
let managed = 0;
server.on('request', ({ url }) => {
  const { pathname } = new URL(url, issuer);
  revocations += pathname === '/token/revocation' ? 1 : 0;
  managed += pathname.startsWith('/reg/') ? 1 : 0;
});

const counts = () => ({ registrations: registered.length, grants: granted.length, revocations, managed });

// ---- the scenarios, and what each makes of the provider ----

const dispatcher = agent({ ca, port, version: 2 });
const person = walker({ port });
const [{ open }] = SDKS;

/** The whole way of a route that is this client there; `clientId` says which, once somebody connected. */
async function wholeWay(from, method, clientId) {
  const link = `${from}${START}`;
  const client = open({ url: new URL('/mcp', from), dispatcher });
  try {
    const [before, grants] = [seen.length, granted.length];
    // What the client before sent last may still be on its way, with a token that was given out before.
    const earlier = new Set(granted.map(({ access_token: token }) => `Bearer ${token}`));
    const credentials = () => seen.slice(before).map(({ authorization }) => authorization.join());
    const own = () => [...new Set(credentials())].filter((token) => !earlier.has(token));
    await assert.rejects(client.connect(), ({ message }) => message.includes(link));
    assert.deepEqual(own(), [], 'nothing went on');

    lifetime = SHORT;
    await person.connect(link);
    lifetime = LONG;
    await client.connect();
    const who = JSON.parse((await client.callTool({ name: 'whoami' })).content[0].text);
    assert.deepEqual(who, { clientId: clientId(), scopes: ['mcp'] });
    const [first, second, ...more] = granted.slice(grants);
    for (const [given, grant] of [[first, 'authorization_code'], [second, 'refresh_token']]) {
      assert.deepEqual([given?.client, given?.method, given?.grant], [clientId(), method, grant]);
    }
    assert.equal(more.length, 0);
    assert.deepEqual(own(), [`Bearer ${second.access_token}`]);
    assert.ok((await provider.RefreshToken.find(first.refresh_token)).consumed, 'it rotated');

    await person.disconnect(link);
    assert.equal(await provider.RefreshToken.find(second.refresh_token), undefined);
    assert.equal(await provider.AccessToken.find(second.access_token), undefined);
    const told = await client.callTool({ name: 'whoami' });
    assert.ok(told.isError && told.content[0].text.includes(link), JSON.stringify(told));
  } finally {
    await client.close();
  }
}

const ONCE = { registrations: 0, grants: 2, revocations: 1, managed: 0 };
const { check, finish } = scenarios(undefined, { counts, origins: [] });

await check('a route registers itself', { ...ONCE, registrations: 1 }, async () => {
  await wholeWay(NOTES, METHODS[0], () => registered[0].client_id);
  const { client_id: _, ...document } = expectedClient(NOTES);
  const members = Object.entries({ ...document, token_endpoint_auth_method: METHODS[0], application_type: 'web' });
  for (const [member, value] of members) {
    assert.deepEqual(registered[0][member], value, member);
  }
});

await check('and once is enough', { ...ONCE, registrations: 0 }, async () => {
  await wholeWay(NOTES, METHODS[0], () => registered[0].client_id);
});

const anew = { ...ONCE, registrations: 1, revocations: 0 };
await check('a route whose client the provider forgot registers again', anew, async () => {
  const link = `${NOTES}${START}`;
  lifetime = SHORT;
  await person.connect(link);
  lifetime = LONG;
  const [{ client_id: forgotten }] = registered;
  await provider.Client.adapter.destroy(forgotten);
  const client = open({ url: new URL('/mcp', NOTES), dispatcher });
  try {
    await assert.rejects(client.connect(), ({ message }) => message.includes(link));
    assert.equal(registered.length, 1, 'a call registers nothing');
    await person.connect(link);
    await client.connect();
    const { clientId } = JSON.parse((await client.callTool({ name: 'whoami' })).content[0].text);
    assert.notEqual(clientId, forgotten);
    assert.equal(clientId, registered[1].client_id);
  } finally {
    await client.close();
  }
});

for (const { from, client_id: clientId, token_endpoint_auth_method: method } of byHand) {
  await check(`a client by hand, with ${method}`, ONCE, () => wholeWay(from, method, () => clientId));
}

writeFileSync(E2E_SECRETS, JSON.stringify(secrets));
await Promise.all([dispatcher.destroy(), person.close(), closeProvider(), closeServer()]);
finish();
