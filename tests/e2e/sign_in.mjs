// A person and an MCP client sign in at a company's identity provider, by what `envoy-config --sign-in` prints:
// oidc-provider is that provider, and another one is the authorization server of the MCP server. The client is the
// official SDK's, with nothing but the route's address; the person is at Chromium.
//
// https://notes.localhost is a route of the Envoy at 127.0.0.1:E2E_ENVOY_PORT, whose certificate E2E_CA vouches for. It
// leads to E2E_UPSTREAM, whose port is the listening socket E2E_UPSTREAM_FD. The authorization server is E2E_AS_HOST on
// a port of its own; the identity provider is E2E_ISSUER on the listening socket E2E_IDP_FD, for the application
// E2E_APPLICATION with E2E_APPLICATION_SECRET. E2E_AS_CERT and E2E_AS_KEY are of both, and E2E_AS_CA vouches for them.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';

import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { Agent, buildConnector, fetch as fetchWith } from 'undici';

import { begun, consent } from './connecting.mjs';
import { startMcpServer } from './mcp_server.mjs';
import { clientId, startProvider } from './oidc_provider.mjs';
import { NOTES, START, follow, heading, launch, scenarios, start } from './person.mjs';

const {
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY, E2E_AS_CA,
  E2E_ISSUER, E2E_IDP_FD, E2E_APPLICATION, E2E_APPLICATION_SECRET,
} = process.env;
for (const [name, value] of Object.entries({
  E2E_CA, E2E_ENVOY_PORT, E2E_UPSTREAM, E2E_UPSTREAM_FD, E2E_AS_HOST, E2E_AS_CERT, E2E_AS_KEY, E2E_AS_CA,
  E2E_ISSUER, E2E_IDP_FD, E2E_APPLICATION, E2E_APPLICATION_SECRET,
})) {
  assert.ok(value, `${name} must be set`);
}
const MCP = `${NOTES}/mcp`;
const SIGNED_IN = '/.pomerium/sign-in/callback';
const ca = readFileSync(E2E_CA, 'utf8');
const [cert, key, asCa] = [E2E_AS_CERT, E2E_AS_KEY, E2E_AS_CA].map((file) => readFileSync(file, 'utf8'));
const port = Number(E2E_ENVOY_PORT);

const { issuer, provider, close: closeProvider } = await startProvider({
  ca, envoyPort: port, tls: { host: E2E_AS_HOST, cert, key }, ttl: { AccessToken: 600 },
});
const { seen, close: closeServer } = await startMcpServer({
  listen: { fd: Number(E2E_UPSTREAM_FD) }, resource: E2E_UPSTREAM, issuer, provider,
});

/** What the identity provider let each client have. */
const granted = [];
const { issuer: company, provider: identity, close: closeCompany } = await startProvider({
  ca,
  envoyPort: port,
  listen: { fd: Number(E2E_IDP_FD) },
  tls: { host: new URL(E2E_ISSUER).hostname, cert, key },
  ttl: { AccessToken: 600, IdToken: 600 },
  // A client registers with the scope that it was told to ask for.
  scopes: ['openid', 'offline_access', 'mcp'],
  clients: [{
    client_id: E2E_APPLICATION,
    client_secret: E2E_APPLICATION_SECRET,
    redirect_uris: [`${NOTES}${SIGNED_IN}`],
    grant_types: ['authorization_code', 'refresh_token'],
    token_endpoint_auth_method: 'client_secret_basic',
  }],
  features: {
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      // The one resource that clients may ask for, as a token that Envoy can check.
      getResourceServerInfo: (_ctx, resource) => {
        assert.equal(resource, MCP);
        return { audience: resource, scope: 'mcp', accessTokenFormat: 'jwt' };
      },
    },
  },
});
assert.equal(company, E2E_ISSUER);
identity.on('grant.success', ({ oidc: { client, entities } }) => {
  granted.push({ client: client.clientId, account: entities.Account?.accountId });
});

// ---- an MCP client ----

/** Where a client has the browser come back to. */
const codes = [];
const callback = http.createServer((request, response) => {
  codes.push(new URL(request.url, 'http://localhost').searchParams.get('code'));
  response.setHeader('content-type', 'text/html');
  response.end('<!doctype html><link rel="icon" href="data:,"><title>Client</title><h1>Back at the client</h1>');
}).listen(0, '127.0.0.1');
await once(callback, 'listening');
const redirectUrl = `http://localhost:${callback.address().port}/callback`;

/** What the SDK wants to know of a client, which begins with nothing. */
class Nothing {
  redirectUrl = redirectUrl;
  clientMetadata = {
    client_name: 'A stock client',
    redirect_uris: [redirectUrl],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
    application_type: 'native',
  };
  clientInformation() { return this.information; }
  saveClientInformation(information) { this.information = information; }
  tokens() { return this.saved; }
  saveTokens(tokens) { this.saved = tokens; }
  codeVerifier() { return this.verifier; }
  saveCodeVerifier(verifier) { this.verifier = verifier; }
  redirectToAuthorization(url) { this.leadsTo = url; }
}

const asAt = (host) => (host === 'notes.localhost'
  ? { connect: buildConnector({ ca }), port }
  : { connect: buildConnector({ ca: asCa }), port: undefined });
const dispatcher = new Agent({
  bodyTimeout: 0,
  connect: (options, done) => {
    const { connect, port: at } = asAt(options.hostname);
    connect({
      ...options, hostname: '127.0.0.1', host: '127.0.0.1', port: at ?? options.port, servername: options.hostname,
    }, done);
  },
});
/** The SDK knows an answer by Node's own class. */
const fetch = async (url, init) => {
  const { body, status, headers } = await fetchWith(url, { ...init, dispatcher });
  return new Response(body, { status, headers: [...headers] });
};

/** Connects a client that may have a token, and runs `body` with it. */
async function withClient(authProvider, body) {
  const transport = new StreamableHTTPClientTransport(new URL(MCP), { authProvider, fetch });
  const client = new Client({ name: 'e2e', version: '1' });
  try {
    return await body({ client, transport, connect: () => client.connect(transport) });
  } finally {
    await client.close();
  }
}

// ---- a person ----

/** Signs in at the identity provider, whose page this is, and lets the application or the client have what it asks. */
async function signIn(page, login) {
  assert.equal(new URL(page.url()).origin, company);
  assert.equal(await heading(page), 'Sign-in');
  await page.getByPlaceholder('Enter any login').fill(login);
  await page.getByPlaceholder('and password').fill('anything');
  await follow(page, () => page.getByRole('button', { name: 'Sign-in' }).click());
  assert.equal(await heading(page), 'Authorize');
  return follow(page, () => consent(page));
}

/** Has a client get its token, which belongs to whoever signs in with this name. */
async function authorize(context, client, login) {
  await withClient(client, ({ connect }) => assert.rejects(connect(), UnauthorizedError));
  const { searchParams, origin } = client.leadsTo;
  assert.equal(origin, company);
  assert.deepEqual([searchParams.get('resource'), searchParams.get('scope')], [MCP, 'mcp']);
  const page = await context.newPage();
  await page.goto(client.leadsTo.href);
  await signIn(page, login);
  assert.equal(await heading(page), 'Back at the client');
  await withClient(client, ({ transport }) => transport.finishAuth(codes.pop()));
}

async function run(check) {
  const ANY = {};

  await check('from no session through sign-in, connect, and back', ANY, async ({ openAnywhere }) => {
    const context = await openAnywhere();
    const page = await context.newPage();
    // The address that people have is the client's: it leads them to the connect page.
    await page.goto(MCP);
    const shown = await signIn(page, 'anna');
    assert.deepEqual([shown.status(), page.url()], [200, `${NOTES}${START}`]);
    assert.ok((await page.locator('body').innerText()).includes('anna'), 'the page says who is signed in');
    for (const { name, httpOnly, secure, sameSite, value } of await context.cookies(NOTES)) {
      assert.ok(name.startsWith('__Host-sign_in_') && httpOnly && secure && sameSite === 'Lax', name);
      assert.notEqual(value.split('.').length, 3, `${name} is no token to be read`);
    }
    // Signed in, start is the connect page at once.
    const tab = await begun(context, NOTES, undefined, issuer);
    const landed = await follow(tab, () => consent(tab));
    assert.deepEqual([landed.status(), new URL(tab.url()).pathname], [200, START]);
    assert.equal(seen.length, 0, 'nothing went on until now');
  });

  await check('a stock client goes from nothing to a listed tool', ANY, async ({ openAnywhere }) => {
    const client = new Nothing();
    await authorize(await openAnywhere(), client, 'anna');
    await withClient(client, async ({ client: stock, connect }) => {
      await connect();
      const { tools } = await stock.listTools();
      assert.deepEqual(tools.map(({ name }) => name).sort(), ['count', 'saw', 'whoami']);
      const { content } = await stock.callTool({ name: 'whoami' });
      assert.equal(JSON.parse(content[0].text).clientId, clientId(NOTES));
    });
    for (const { authorization } of seen) {
      assert.ok(authorization.length === 1 && !authorization[0].includes(client.saved.access_token));
    }
    // Both are one person to the provider, and two clients.
    const anna = granted.filter(({ account }) => account === 'anna').map(({ client: id }) => id);
    assert.deepEqual(anna, [E2E_APPLICATION, client.information.client_id]);
  });

  await check('another person\'s client is told where that person connects', ANY, async ({ openAnywhere }) => {
    const client = new Nothing();
    await authorize(await openAnywhere(), client, 'bert');
    const before = seen.length;
    await withClient(client, async ({ connect }) => {
      await assert.rejects(connect(), ({ message }) => message.includes(`${NOTES}${START}`));
    });
    assert.equal(seen.length, before, 'nothing went on');
  });

  await check('no page calls tools with a person\'s session', ANY, async ({ openAnywhere }) => {
    const context = await openAnywhere();
    const page = await context.newPage();
    await page.goto(start(NOTES));
    await signIn(page, 'anna');
    const before = seen.length;
    const call = (mode) => page.evaluate(async ([url, way]) => {
      const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' });
      const answer = await fetch(url, { method: 'POST', mode: way, credentials: 'include', body });
      return [answer.type, answer.status];
    }, [MCP, mode]);
    // One of this host, to which the browser gives the cookies.
    await page.goto(`${NOTES}/`);
    assert.deepEqual(await call('same-origin'), ['basic', 401]);
    // And one of another origin.
    await page.goto(redirectUrl);
    codes.pop();
    assert.deepEqual(await call('no-cors'), ['opaque', 0]);
    await assert.rejects(call('cors'));
    assert.equal(seen.length, before, 'nothing went on');
  });

  await check('who signs out is nobody here', ANY, async ({ openAnywhere }) => {
    const context = await openAnywhere();
    const page = await context.newPage();
    await page.goto(start(NOTES));
    await signIn(page, 'anna');
    await page.goto(`${NOTES}/.pomerium/sign-in/out`);
    assert.equal(page.url(), `${NOTES}/`);
    assert.deepEqual(await context.cookies(NOTES), []);
  });

  await check('who cancels is not signed in', ANY, async ({ openAnywhere }) => {
    const page = await (await openAnywhere()).newPage();
    await page.goto(start(NOTES));
    const answer = await follow(page, () => page.getByRole('link', { name: '[ Cancel ]' }).click());
    assert.equal(answer.status(), 403);
    assert.match(await page.locator('body').innerText(), /^You are not signed in\./);
  });
}

const browser = await launch([
  `MAP *.localhost:443 127.0.0.1:${E2E_ENVOY_PORT}`,
  'MAP *.localhost 127.0.0.1',
  'MAP localhost 127.0.0.1',
  // The provider's pages ask for a font from elsewhere.
  'MAP * ~NOTFOUND',
]);
const { check, finish } = scenarios(browser, { counts: () => ({}), origins: [] });
try {
  await run(check);
} finally {
  await browser.close();
}
await dispatcher.destroy();
callback.close();
await Promise.all([closeProvider(), closeServer(), closeCompany()]);
finish();
