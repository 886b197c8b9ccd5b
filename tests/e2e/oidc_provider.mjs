// oidc-provider as the authorization server: does it accept the documents that Envoy serves, and nothing else?
//
// Imported, it gives `startProvider`. Run, it checks the two origins of E2E_ROUTES (a JSON array) through the Envoy
// at 127.0.0.1:E2E_ENVOY_PORT, whose certificate E2E_CA (a PEM file) vouches for.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, realpathSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { buffer } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

import Provider from 'oidc-provider';

/**
 * Starts a provider, over https as `tls.host` where `tls` is given, on a port of its own unless `listen` says which.
 * `ca` and the certificate and key of `tls` are PEM text; whatever else is given goes over the configuration below,
 * feature by feature. `fetches` grows by one record for each request the provider makes.
 */
export async function startProvider({
  ca, envoyHost = '127.0.0.1', envoyPort, listen = { host: '127.0.0.1', port: 0 }, tls, features, ...config
}) {
  // The provider's notices go to console.info, and standard output belongs to the results.
  console.info = console.error;

  const server = (tls ? https.createServer(tls) : http.createServer()).listen(listen);
  await once(server, 'listening');
  const issuer = `${tls ? `https://${tls.host}` : 'http://127.0.0.1'}:${server.address().port}`;
  const fetches = [];

  const provider = new Provider(issuer, {
    fetch: fetchThroughEnvoy({ ca, envoyHost, envoyPort, fetches }),
    pkce: { required: () => true },
    rotateRefreshToken: true,
    cookies: { keys: [randomBytes(32).toString('base64url')] },
    findAccount: (_ctx, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
    renderError: (ctx, out) => {
      ctx.body = out;
    },
    ...config,
    features: {
      clientIdMetadataDocument: { enabled: true, ack: 'draft-02' },
      devInteractions: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          audience: resource,
          scope: 'mcp',
          accessTokenFormat: 'opaque',
        }),
      },
      ...features,
    },
  });

  // The answer never says why a document was refused; these do.
  for (const event of ['authorization.error', 'grant.error', 'server_error']) {
    provider.on(event, (_ctx, error) => {
      console.error(`${event}: ${describe(error)} ${error.error_detail ?? ''}`.trimEnd());
    });
  }
  server.on('request', provider.callback());

  const close = async () => {
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  };
  return { issuer, server, provider, fetches, close };
}

/** The document's URL, which is the `client_id`. */
export const clientId = (from) => `${from}/.well-known/mcp-client-metadata.json`;

export const callback = (from) => `${from}/.pomerium/oauth/callback`;

/** What a provider must have understood of the document of `from`. */
export const expectedClient = (from) => ({
  client_id: clientId(from),
  client_name: `Pomerium MCP Proxy - ${new URL(from).hostname}`,
  client_uri: from,
  redirect_uris: [callback(from)],
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  token_endpoint_auth_method: 'none',
});

/** A sound authorization request of the client of `from`, but for what `overrides` breaks. */
export function authorizationUrl(issuer, from, overrides = {}) {
  const verifier = randomBytes(32).toString('base64url');
  const url = new URL('/auth', issuer);
  url.search = new URLSearchParams({
    client_id: clientId(from),
    redirect_uri: callback(from),
    response_type: 'code',
    scope: 'openid',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
    state: randomBytes(16).toString('base64url'),
    resource: `${from}/mcp`,
    ...overrides,
  });
  return url;
}

// The provider's own fetch cuts every connection to a special-use address, and not every resolver knows *.localhost.
// Its `fetch` setting is the way round both.
function fetchThroughEnvoy({ ca, envoyHost, envoyPort, fetches }) {
  return async (target, { method, headers, body, signal }) => {
    const url = new URL(target);
    const record = { url: url.href };
    fetches.push(record);
    if (url.protocol !== 'https:' || !url.hostname.endsWith('.localhost')) {
      throw new Error(`${url} is no route of Envoy's`);
    }
    const request = https.request({
      host: envoyHost,
      port: envoyPort,
      servername: url.hostname,
      path: url.pathname + url.search,
      method,
      headers: { ...Object.fromEntries(headers), host: url.host },
      ca,
      signal,
      agent: false,
    });
    request.end(body);
    const [response] = await once(request, 'response').catch((error) => {
      record.error = error.message;
      throw error;
    });
    record.status = response.statusCode;
    record.port = response.socket.remotePort;
    record.verified = response.socket.authorized;
    return new Response(await buffer(response), {
      status: response.statusCode,
      headers: response.headers,
    });
  };
}

const describe = ({ error, message, error_description: description }) =>
  [error ?? message, description].filter(Boolean).join(': ');

async function checkLoginPage({ issuer }, from) {
  const answer = await fetch(authorizationUrl(issuer, from), { redirect: 'manual' });
  const location = answer.headers.get('location');
  assert.ok(
    [302, 303].includes(answer.status) && location,
    `expected a redirect to the login page, got ${answer.status} ${await answer.text()}`,
  );
  const page = new URL(location, issuer);
  assert.ok(
    page.origin === issuer && page.pathname.startsWith('/interaction/'),
    `redirected to ${page}, not to the login page`,
  );

  const cookie = answer.headers.getSetCookie().map((line) => line.split(';', 1)[0]).join('; ');
  const login = await fetch(page, { headers: { cookie } });
  const html = await login.text();
  assert.equal(login.status, 200, `the login page answered ${login.status} ${html}`);
  assert.match(html, /<form[^>]*method="post"/, 'the page holds no form');
  assert.match(html, /<input[^>]*name="login"/, 'the form asks for no login');
}

async function checkFetch({ fetches }, from, envoyPort) {
  const own = fetches.filter(({ url }) => url === clientId(from));
  assert.ok(own.length > 0, 'it never asked for the document');
  for (const record of own) {
    assert.deepEqual(
      record,
      { url: clientId(from), status: 200, port: envoyPort, verified: true },
      `its fetch ended as ${JSON.stringify(record)}`,
    );
  }
}

// No page of devInteractions shows a client's name, so the provider is asked for what it holds.
async function checkClient({ provider }, from) {
  const expected = expectedClient(from);
  const metadata = (await provider.Client.find(clientId(from))).metadata();
  for (const [member, value] of Object.entries(expected)) {
    assert.deepEqual(
      metadata[member],
      value,
      `${member} is ${JSON.stringify(metadata[member])}, not ${JSON.stringify(value)}`,
    );
  }
}

async function checkForeignRedirect({ issuer }, from, other) {
  const url = authorizationUrl(issuer, from, { redirect_uri: callback(other) });
  await assertRefused(url, 'invalid_redirect_uri');
}

async function checkNoDocument({ issuer, fetches }, from) {
  const absent = `${from}/.well-known/no-such-document.json`;
  await assertRefused(authorizationUrl(issuer, from, { client_id: absent }), 'invalid_client');
  // Refused for what Envoy answered, not because Envoy could not be reached.
  const fetched = fetches.find(({ url }) => url === absent);
  assert.ok(fetched?.status, 'no answer came from Envoy');
}

async function assertRefused(url, error) {
  const answer = await fetch(url, { redirect: 'manual' });
  const location = answer.headers.get('location');
  assert.equal(location, null, `not refused, but redirected to ${location}`);
  const text = await answer.text();
  assert.ok(
    answer.status === 400 && JSON.parse(text).error === error,
    `expected 400 ${error}, got ${answer.status} ${text}`,
  );
}

async function runChecks({ ca, envoyPort, routes }) {
  const as = await startProvider({ ca, envoyPort });
  let passed = 0;
  let failed = 0;
  const check = async (name, body) => {
    try {
      await body();
      passed += 1;
      console.log(`ok - ${name}`);
    } catch (error) {
      failed += 1;
      // The first line: assert adds a diff below the message.
      console.log(`not ok - ${name} (${describe(error).split('\n', 1)[0]})`);
    }
  };

  for (const [from, other] of [routes, routes.toReversed()]) {
    await check(`${from}: the provider leads to its login page`, () => checkLoginPage(as, from));
    await check(`${from}: it fetched the document over TLS through Envoy`, () => checkFetch(as, from, envoyPort));
    await check(`${from}: it read the client's name and its other members`, () => checkClient(as, from));
    await check(`${from}: the redirect URI of ${other} is refused`, () => checkForeignRedirect(as, from, other));
    await check(`${from}: a client_id without a document is refused`, () => checkNoDocument(as, from));
  }

  await as.close();
  console.log(`${passed} passed, ${failed} failed`);
  return failed === 0;
}

function settings({ E2E_CA, E2E_ENVOY_PORT, E2E_ROUTES }) {
  assert.ok(E2E_CA, 'E2E_CA must name a PEM file');
  const envoyPort = Number(E2E_ENVOY_PORT);
  assert.ok(envoyPort > 0, 'E2E_ENVOY_PORT must be a port');
  const routes = JSON.parse(E2E_ROUTES ?? 'null');
  assert.ok(
    Array.isArray(routes) && routes.length === 2 && routes.every((from) => URL.parse(from)?.origin === from),
    'E2E_ROUTES must be a JSON array of two origins',
  );
  return { ca: readFileSync(E2E_CA, 'utf8'), envoyPort, routes };
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = (await runChecks(settings(process.env))) ? 0 : 1;
}
