// What the suite runs in the place of an MCP client, for one scenario: `client.mjs URL`. It puts a real Envoy and
// envoy-cimd before the suite's MCP server, and is two programs of a person's: an MCP client that knows nothing of
// OAuth, and the browser in which they connect whenever they are told to. CONFORMANCE_CLIENT is the kind of client that
// the route is to be (scenarios.mjs); for a pre-registered one it is also the operator, who puts the credentials that
// the suite gives (MCP_CONFORMANCE_CONTEXT) into the config file.
//
// It prints what came of it: `called`, or the label of envoy-cimd's refusal. Whatever else goes wrong ends it with an
// error.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';

import { Programs, startCimd, startEnvoy } from './programs.mjs';
import { Reach } from './reach.mjs';
import { DOCUMENT, PRE_REGISTERED, REGISTERED } from './scenarios.mjs';

const {
  ENVOY, ENVOY_CIMD, CONFORMANCE_CERT, CONFORMANCE_KEY, CONFORMANCE_CLIENT, MCP_CONFORMANCE_PROTOCOL_VERSION,
} = process.env;
for (const [name, value] of Object.entries({
  ENVOY, ENVOY_CIMD, CONFORMANCE_CERT, CONFORMANCE_KEY, CONFORMANCE_CLIENT, MCP_CONFORMANCE_PROTOCOL_VERSION,
})) {
  assert.ok(value, `${name} must be set`);
}
/** With the path of the document, this makes the client_id that the suite expects. */
const FROM = 'https://conformance-test.local';
const DOCUMENT_PATH = '/client-metadata.json';
const START = '/.pomerium/oauth/start';
/** What the suite hands over besides the address. */
const CONTEXT = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? '{}');
/** How often a request is sent before it is led in circles. */
const ROUNDS = 10;

/** There is nothing more that a person could do. */
class Refused extends Error {}

// ---- the programs ----

const programs = new Programs('envoy-cimd-conformance-');

/** What the suite registered by hand, as an operator enters it: a config file, and the issuer that the route pins. */
async function preregistered(to) {
  if (CONFORMANCE_CLIENT !== PRE_REGISTERED) {
    return {};
  }
  const { origin, pathname } = new URL(to);
  const described = await send(`${origin}/.well-known/oauth-protected-resource${pathname}`);
  assert.equal(described.status, 200);
  const [issuer] = JSON.parse(described.body).authorization_servers;
  const [config, secret] = [join(programs.dir, 'config.yaml'), join(programs.dir, 'secret')];
  writeFileSync(secret, CONTEXT.client_secret, { mode: 0o600 });
  // JSON is YAML.
  const client = { issuer, client_id: CONTEXT.client_id, client_secret_file: secret, routes: [FROM] };
  writeFileSync(config, JSON.stringify({ clients: [client] }));
  return { issuer, config };
}

/** Starts envoy-cimd. What this answers ends it, and tells the label of its last refusal. */
async function serve(socket, config) {
  let last;
  const child = await startCimd(programs, {
    cimd: ENVOY_CIMD,
    socket,
    args: [
      '--document-path', DOCUMENT_PATH, '--extra-ca', CONFORMANCE_CERT, '--allow-host', 'localhost',
      ...(CONFORMANCE_CLIENT === DOCUMENT ? [] : ['--dynamic-registration']),
      ...(config === undefined ? [] : ['--config', config]),
    ],
    onLine: ({ label, request_id: request }) => {
      // Lines without a request are sums.
      if (label !== undefined && request) {
        last = label;
      }
    },
  });
  return async () => {
    const ended = once(child, 'close');
    child.kill('SIGTERM');
    await ended;
    return last;
  };
}

/** The port on which Envoy listens for https. */
function gateway(socket, to, issuer) {
  const pin = issuer === undefined ? '' : `,authorization_server=${issuer}`;
  return startEnvoy(programs, {
    envoy: ENVOY,
    cimd: ENVOY_CIMD,
    socket,
    cert: CONFORMANCE_CERT,
    key: CONFORMANCE_KEY,
    ca: CONFORMANCE_CERT,
    args: ['--route', `from=${FROM},to=${to}${pin}`, '--document-path', DOCUMENT_PATH],
  });
}

// ---- the person's browser ----

const ca = readFileSync(CONFORMANCE_CERT, 'utf8');
const cookies = new Map();
let envoyPort;

/** What a server answers, no redirect followed. */
async function send(url, { method = 'GET', headers = {}, body } = {}) {
  const { protocol, hostname, host, port, pathname, search } = new URL(url);
  assert.equal(protocol, 'https:', `${url} is not https`);
  const atEnvoy = hostname === new URL(FROM).hostname;
  const request = https.request({
    host: '127.0.0.1', port: atEnvoy ? envoyPort : port, servername: hostname, path: pathname + search, method, ca,
    headers: { ...headers, host }, agent: false,
  });
  request.end(body);
  const [response] = await once(request, 'response');
  return { status: response.statusCode, headers: response.headers, body: await text(response) };
}

/** What a browser shows, and sends and keeps on the way there. */
async function browse(url, { site, method = 'GET' }) {
  const { origin } = new URL(url);
  const isOurs = origin === FROM;
  const headers = {
    accept: 'text/html', 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document', 'sec-fetch-site': site,
    ...(method === 'POST' && { origin }),
    ...(isOurs && cookies.size > 0 && { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') }),
  };
  const answer = await send(url, { method, headers });
  for (const cookie of isOurs ? answer.headers['set-cookie'] ?? [] : []) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie);
    cookies.set(name, value);
  }
  return answer;
}

/** Opens the connect page, presses its button, and allows what the authorization server asks. */
async function connect() {
  const page = await browse(FROM + START, { site: 'none' });
  accepted(page, 200);
  const button = buttonOf(page);
  let begun = await press(button);
  // The page waits 1.5 s for the authorization server's name. A press on one without it is the page again, with it.
  if (begun.status === 200 && !button.searchParams.has('issuer')) {
    begun = await press(buttonOf(begun));
  }
  accepted(begun, 303);
  isTheClient(new URL(begun.headers.location).searchParams.get('client_id'));
  const allowed = await browse(begun.headers.location, { site: 'cross-site' });
  assert.equal(allowed.status, 302, 'the suite allows everything');
  accepted(await browse(allowed.headers.location, { site: 'cross-site' }), 303);
}

function buttonOf({ body }) {
  const [, action] = /<form method="post" action="([^"]*\/start\?[^"]*)">/.exec(body) ?? [];
  assert.ok(action, `a button to connect:\n${body}`);
  return new URL(action.replaceAll('&#38;', '&').replaceAll('&amp;', '&'), FROM);
}

function press(button) {
  return browse(button, { site: 'same-origin', method: 'POST' });
}

/** The suite's servers take any client_id, so it is here that it is seen whose it is. */
function isTheClient(clientId) {
  const document = FROM + DOCUMENT_PATH;
  if (CONFORMANCE_CLIENT === REGISTERED) {
    assert.ok(clientId && clientId !== document, `${clientId} is registered`);
  } else {
    assert.equal(clientId, CONFORMANCE_CLIENT === DOCUMENT ? document : CONTEXT.client_id);
  }
}

function accepted({ status, body }, expected) {
  if (status !== expected) {
    throw new Refused(`${status} ${body}`);
  }
}

// ---- the MCP client ----

const version = MCP_CONFORMANCE_PROTOCOL_VERSION;
const clientInfo = { name: 'conformance', version: '1' };
let address;
let nextId = 1;

async function post(method, params = {}, id = nextId++) {
  // A revision without sessions says with each request who asks.
  const stateless = version >= '2026-07-28';
  const _meta = {
    'io.modelcontextprotocol/protocolVersion': version,
    'io.modelcontextprotocol/clientInfo': clientInfo,
    'io.modelcontextprotocol/clientCapabilities': {},
  };
  const message = { jsonrpc: '2.0', id, method, params: stateless ? { ...params, _meta } : params };
  return send(address, {
    method: 'POST',
    headers: {
      'content-type': 'application/json', accept: 'application/json, text/event-stream',
      ...(method !== 'initialize' && { 'mcp-protocol-version': version }),
      ...(stateless && { 'mcp-method': method, ...(params.name && { 'mcp-name': params.name }) }),
    },
    body: JSON.stringify(message),
  });
}

/** The result of a request, however often its person has to connect for it. */
async function call(method, params) {
  for (let round = 0; round < ROUNDS; round += 1) {
    const { status, headers, body } = await post(method, params);
    if (body.includes(FROM + START)) {
      await connect();
    } else if (status === 200) {
      const json = headers['content-type'].startsWith('text/event-stream') ? /^data: (.*)$/m.exec(body)[1] : body;
      const { result } = JSON.parse(json);
      assert.ok(result, `${method}: ${json}`);
      return result;
    } else if (!/try again/.test(body)) {
      throw new Refused(`${status} ${body}`);
    }
  }
  throw new Error(`${method} leads in circles`);
}

async function useServer() {
  if (version < '2026-07-28') {
    await call('initialize', { protocolVersion: version, capabilities: {}, clientInfo });
    await post('notifications/initialized', {}, undefined);
  } else {
    await call('server/discover');
  }
  const { tools } = await call('tools/list');
  for (const { name } of tools) {
    await call('tools/call', { name, arguments: {} });
  }
}

// ---- all of it ----

// The suite's patience has come to an end.
process.on('SIGTERM', () => {
  programs.cleanUp();
  process.exit(1);
});
try {
  const tls = { cert: ca, key: readFileSync(CONFORMANCE_KEY, 'utf8') };
  const reach = new Reach(tls, CONFORMANCE_CLIENT === DOCUMENT);
  const to = await reach.outer(process.argv[2]);
  const socket = `unix:${join(programs.dir, 'ext_proc.sock')}`;
  const { issuer, config } = await preregistered(to);
  const [stop, port] = await Promise.all([serve(socket, config), gateway(socket, to, issuer)]);
  envoyPort = port;
  address = new URL(new URL(to).pathname, FROM);
  try {
    await useServer();
    console.log('called');
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    console.error(error.message);
    console.log(await stop());
  }
  await reach.close();
} catch (error) {
  console.error(`${error.stack}\n${programs.output.join('\n')}`);
  process.exitCode = 1;
} finally {
  programs.cleanUp();
}
