// The whole flow with nothing faked between a person and a token: Chromium, Envoy, envoy-cimd with its own
// choreographer, and oidc-provider as the authorization server.
//
// https://notes.localhost, tickets.localhost and other.localhost are routes of the Envoy at 127.0.0.1:E2E_ENVOY_PORT,
// whose certificate E2E_CA vouches for. All lead to the upstream E2E_UPSTREAM. The provider is E2E_AS_HOST on a port of
// its own, with E2E_AS_CERT and E2E_AS_KEY. Addresses beside the upstream take a PUT: /issuer, from then on its
// authorization server; /token, the client_id of a route, to be answered with the token that envoy-cimd hands out for
// it; /disconnect, the same, to disconnect it; and /report, what was given out and what nobody may have said.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { begun as begunAt, cancel, consent } from './connecting.mjs';
import { callback, clientId, startProvider } from './oidc_provider.mjs';
import {
  NOTES, TICKETS, follow, goOn, hasLanded, heading, isRefused, launch, scenarios, start, startAgain, until,
} from './person.mjs';
import { LOGIN } from './walker.mjs';

const OTHER = 'https://other.localhost';

const { E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY } = process.env;
for (const [name, value] of Object.entries({
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY,
})) {
  assert.ok(value, `${name} must be set`);
}

const put = (what, body) => fetch(new URL(what, E2E_UPSTREAM), { method: 'PUT', body });

async function tell(what, body) {
  const answer = await put(what, body);
  assert.equal(answer.status, 200, what);
}

/** The access token that envoy-cimd hands out for a route; none where it says that there is none. */
async function handedOut(origin) {
  const answer = await put('/token', clientId(origin));
  const text = await answer.text();
  assert.ok([200, 404].includes(answer.status), `GetUpstreamToken: ${text}`);
  return answer.status === 200 ? text : undefined;
}

// ---- the authorization server ----

/** What came of a refresh stands for a second, in ms; after this it does not. */
const REFRESH_STOOD = 1500;
/** In seconds, and so short that a token is over for envoy-cimd when it comes: whoever asks for it has it refreshed. */
const SHORT = 5;
const LONG = 600;
let lifetime = LONG;

const { issuer, provider, server, close } = await startProvider({
  ca: readFileSync(E2E_CA, 'utf8'),
  envoyPort: Number(E2E_ENVOY_PORT),
  tls: { host: E2E_AS_HOST, cert: readFileSync(E2E_AS_CERT, 'utf8'), key: readFileSync(E2E_AS_KEY, 'utf8') },
  ttl: { AccessToken: () => lifetime },
});

/** The answers of the token endpoint, each with the client that it was for. */
const granted = [];
provider.on('grant.success', ({ oidc: { client, params }, body: { access_token, refresh_token } }) => {
  granted.push({ client_id: client.clientId, access_token, refresh_token });
  keep({ ...params, access_token, refresh_token });
});

/** All requests for tokens, and to revoke them, refused ones too. */
let tokenRequests = 0;
let revocations = 0;
server.on('request', ({ url }) => {
  const { pathname } = new URL(url, issuer);
  if (pathname === '/token') {
    tokenRequests += 1;
  } else if (pathname === '/token/revocation') {
    revocations += 1;
  }
});

const counts = () => ({ tokenRequests, grants: granted.length, revocations });
const NONE = { tokenRequests: 0, grants: 0, revocations: 0 };
const ONE = { ...NONE, tokenRequests: 1, grants: 1 };

// ---- what must be in no log ----

const secrets = {
  code: new Set(), state: new Set(), cookie: new Set(), code_verifier: new Set(), error_description: new Set(),
  access_token: new Set(), refresh_token: new Set(),
};

function keep(parameters) {
  for (const [name, values] of Object.entries(secrets)) {
    if (parameters[name]) {
      values.add(parameters[name]);
    }
  }
}

async function keepCookies(context) {
  for (const { name, value } of await context.cookies()) {
    if (name.startsWith('__Host-envoy_cimd_')) {
      keep({ cookie: value });
    }
  }
}

// ---- a person at the authorization server ----

const begun = (context, origin, returnTo) => begunAt(context, origin, returnTo, issuer);

/** Decides on that page, and gives the address that the person comes back to, and the answer that ends there. */
async function decide(page, origin, act) {
  const [request, response] = await Promise.all([
    page.waitForRequest((sent) => sent.url().startsWith(`${callback(origin)}?`)),
    follow(page, () => act(page)),
  ]);
  const url = new URL(request.url());
  keep(Object.fromEntries(url.searchParams));
  await keepCookies(page.context());
  return { url, response };
}

/** A person connects a route; what the provider gave for it. */
async function connect(context, origin) {
  const before = granted.length;
  const page = await begun(context, origin, '/mcp');
  await decide(page, origin, consent);
  await hasLanded(page, '/mcp', origin);
  const [answer, ...more] = granted.slice(before);
  assert.deepEqual([answer?.client_id, more.length], [clientId(origin), 0]);
  return answer;
}

// ---- what the provider holds of what it gave out ----

async function isGood({ client_id, access_token, refresh_token }) {
  const access = await provider.AccessToken.find(access_token);
  const refresh = await provider.RefreshToken.find(refresh_token);
  const { kind, isValid, aud, scope, clientId: client, accountId } = access ?? {};
  assert.deepEqual({ kind, isValid, aud, scope, client, accountId }, {
    kind: 'AccessToken', isValid: true, aud: E2E_UPSTREAM, scope: 'mcp', client: client_id, accountId: LOGIN,
  });
  assert.deepEqual([refresh?.isValid, refresh?.resource, refresh?.clientId], [true, E2E_UPSTREAM, client_id]);
  assert.ok(await provider.Grant.find(access.grantId), 'the grant was not revoked');
}

/** The grant that it gave tokens of. */
const grantOf = async ({ refresh_token }) => (await provider.RefreshToken.find(refresh_token)).grantId;

// ---- the scenarios, and what each makes the token endpoint do ----

async function run(check) {
  await check('a person connects, and a token is given out for the upstream', ONE, async ({ openAnywhere }) => {
    const context = await openAnywhere();
    const page = await context.newPage();
    await page.goto(start(NOTES, '/mcp?tab=1'));
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - notes.localhost?');
    const main = page.locator('main');
    assert.ok((await main.innerText()).includes(E2E_UPSTREAM), 'the page names the upstream');
    await until('the page names the authorization server', async () => {
      await page.reload();
      return (await main.innerText()).includes(issuer);
    });

    const consenting = await begun(context, NOTES, '/mcp?tab=1');
    const asked = await consenting.locator('.login-card').innerText();
    for (const part of [`${E2E_UPSTREAM}:`, 'mcp', 'offline access']) {
      assert.ok(asked.includes(part), `the consent is for ${part}: ${asked}`);
    }
    const { url } = await decide(consenting, NOTES, consent);
    assert.equal(url.searchParams.get('iss'), issuer);
    await hasLanded(consenting, '/mcp?tab=1');
    assert.deepEqual(granted.map(({ client_id }) => client_id), [clientId(NOTES)]);

    // The code must not come twice: the provider would revoke all that it gave for it.
    await isRefused(consenting, await consenting.goto(url.href), 409, 'Already used');
    await follow(consenting, () => goOn(consenting));
    await hasLanded(consenting, '/mcp?tab=1');
    await isGood(granted[0]);
  });

  await check('who cancels is told so, and nothing is asked for', NONE, async ({ openAnywhere }) => {
    const page = await begun(await openAnywhere(), TICKETS, '/mcp?tab=2');
    const { url, response } = await decide(page, TICKETS, cancel);
    assert.deepEqual([url.searchParams.get('error'), url.searchParams.get('iss')], ['access_denied', issuer]);
    await isRefused(page, response, 400, 'Not connected');
    const words = url.searchParams.get('error_description');
    assert.ok(words && !(await page.content()).includes(words), 'the server has no say in our page');
    await follow(page, () => startAgain(page));
    assert.equal(page.url(), start(TICKETS, '/mcp?tab=2'));
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - tickets.localhost?');
    await isRefused(page, await page.goto(url.href), 409, 'Already used');
    // Though a route to the same upstream has one.
    assert.equal(await handedOut(TICKETS), undefined);
  });

  await check('another `iss` ends the flow, and the code goes nowhere', NONE, async ({ openAnywhere }) => {
    const page = await begun(await openAnywhere(), OTHER, '/mcp?tab=3');
    // What it gives to the event is what it then puts into the address.
    provider.once('authorization.success', (_ctx, out) => {
      out.iss = 'https://evil.example';
    });
    const { url, response } = await decide(page, OTHER, consent);
    assert.equal(url.searchParams.get('iss'), 'https://evil.example');
    await isRefused(page, response, 400, 'Not connected');

    url.searchParams.set('iss', issuer);
    await isRefused(page, await page.goto(url.href), 409, 'Already used');
    const code = await provider.AuthorizationCode.find(url.searchParams.get('code'));
    assert.equal(code?.isValid, true, 'nobody redeemed the code');
    assert.equal(await handedOut(OTHER), undefined);
  });

  const twice = { ...NONE, tokenRequests: 3, grants: 3 };
  await check('a token that is over is refreshed, and its refresh token rotates', twice, async ({ openAnywhere }) => {
    lifetime = SHORT;
    const given = [await connect(await openAnywhere(), TICKETS)];
    for (const [rotations, next] of [[1, SHORT], [2, LONG]]) {
      lifetime = next;
      const last = given.at(-1);
      let token;
      // Once what came of the last refresh does not stand any more.
      await until('another token is handed out', async () => {
        token = await handedOut(TICKETS);
        assert.ok(token, 'there is a token all the time');
        return token !== last.access_token;
      });
      const fresh = granted.at(-1);
      assert.deepEqual([fresh.client_id, fresh.access_token], [clientId(TICKETS), token]);
      await isGood(fresh);
      assert.notEqual(fresh.refresh_token, last.refresh_token);
      const [old, held] = await Promise.all([last, fresh].map((of) => provider.RefreshToken.find(of.refresh_token)));
      assert.ok(old.consumed && !old.isValid, 'the refresh token was used');
      assert.deepEqual([held.rotations, held.grantId], [rotations, old.grantId]);
      given.push(fresh);
    }
    assert.equal(await handedOut(TICKETS), given.at(-1).access_token, 'it has time now');
    // Another route's token of the same upstream is its own, and had time from the start.
    assert.equal(await handedOut(NOTES), granted[0].access_token);
  });

  const revoked = { ...NONE, revocations: 1 };
  await check('who disconnects has nothing left, at the provider neither', revoked, async () => {
    const last = granted.at(-1);
    await isGood(last);
    const grant = await grantOf(last);
    await tell('/disconnect', clientId(TICKETS));
    assert.equal(await provider.RefreshToken.find(last.refresh_token), undefined);
    assert.equal(await provider.AccessToken.find(last.access_token), undefined);
    assert.equal(await provider.Grant.find(grant), undefined);
    assert.equal(await handedOut(TICKETS), undefined);

    assert.equal(await handedOut(NOTES), granted[0].access_token);
    await isGood(granted[0]);
  });

  const fromThePage = { ...ONE, revocations: 1 };
  await check('the page says how it stands, and ends it at the provider too', fromThePage, async ({ openAnywhere }) => {
    const context = await openAnywhere();
    const given = await connect(context, TICKETS);
    const page = await context.newPage();
    await page.goto(start(TICKETS));
    const text = await page.locator('main').innerText();
    for (const part of ['Connected. You can go back to your MCP client.', 'Connected since', 'mcp', issuer]) {
      assert.ok(text.includes(part), `${part} in ${text}`);
    }
    await page.locator('summary').click();
    await follow(page, () => page.getByRole('button', { name: 'Yes, disconnect' }).click());
    assert.equal(page.url(), start(TICKETS));
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - tickets.localhost?');
    assert.equal(await provider.RefreshToken.find(given.refresh_token), undefined);
    assert.equal(await handedOut(TICKETS), undefined);
    await isGood(granted[0]);
  });

  const again = { ...NONE, tokenRequests: 3, grants: 2 };
  await check('what the provider ended is gone, and can be connected again', again, async ({ openAnywhere }) => {
    lifetime = SHORT;
    const ended = await connect(await openAnywhere(), OTHER);
    const grant = await provider.Grant.find(await grantOf(ended));
    await grant.destroy();
    assert.equal(await handedOut(OTHER), undefined);
    // Nothing is left to ask the provider with, and `tokenRequests` says that it is not asked.
    await sleep(REFRESH_STOOD);
    assert.equal(await handedOut(OTHER), undefined);

    lifetime = LONG;
    const anew = await connect(await openAnywhere(), OTHER);
    assert.equal(await handedOut(OTHER), anew.access_token);
    await isGood(anew);
  });
}

await tell('/issuer', issuer);
const browser = await launch([
  `MAP *.localhost:443 127.0.0.1:${E2E_ENVOY_PORT}`,
  'MAP *.localhost 127.0.0.1',
  // The provider's pages ask for a font from elsewhere.
  'MAP * ~NOTFOUND',
]);
const { check, finish } = scenarios(browser, { counts, origins: [] });
try {
  await run(check);
} finally {
  await browser.close();
}
await close();
const listed = Object.entries(secrets).map(([kind, values]) => [kind, [...values]]);
await tell('/report', JSON.stringify({ issuer, granted, secrets: Object.fromEntries(listed) }));
finish();
