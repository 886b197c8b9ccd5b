// Authorization servers that others wrote, each as it comes from its registry, and people who connect to them through
// Envoy and envoy-cimd: `node run.mjs [SERVER…]`.
//
// ENVOY and ENVOY_CIMD are the programs, ACCEPTANCE_PYTHON the Python with what requirements.txt names. What is learnt
// of each server is a row of a table, which must be the one in the docs.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { fetch as fetchWith } from 'undici';

import { egress } from './egress.mjs';
import { Front } from './front.mjs';
import { Programs, runs, startCimd, startEnvoy } from './programs.mjs';
import { SERVERS } from './servers.mjs';
import { agent } from './to_envoy.mjs';
import { walker } from './walker.mjs';

const { ENVOY, ENVOY_CIMD, ACCEPTANCE_PYTHON } = process.env;
for (const [name, value] of Object.entries({ ENVOY, ENVOY_CIMD, ACCEPTANCE_PYTHON })) {
  assert.ok(value, `${name} must be set`);
}
const here = import.meta.dirname;
const DOCUMENT_PATH = '/.well-known/mcp-client-metadata.json';
const START = '/.pomerium/oauth/start';
/** For a step, on a machine that has other things to do; in milliseconds. */
const PATIENCE = 60_000;
/** How often each token is refreshed. */
const REFRESHES = 2;

const chosen = process.argv.slice(2);
const servers = SERVERS.filter(({ id }) => chosen.length === 0 || chosen.includes(id));
const ids = SERVERS.map(({ id }) => id).join(', ');
assert.ok(servers.length > 0, `no server is called ${chosen.join(' or ')}; there are ${ids}`);

// ---- certificates ----

const results = join(here, 'results');
rmSync(results, { recursive: true, force: true });
mkdirSync(results);
const file = (name) => join(results, name);
const openssl = (...args) => execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] });
const [ca, cert, key] = ['ca.crt', 'tls.crt', 'tls.key'].map(file);
const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
openssl(
  'req', '-x509', ...newKey, '-keyout', file('ca.key'), '-out', ca, '-subj', '/CN=envoy-cimd acceptance',
  '-addext', 'keyUsage=critical,keyCertSign',
);
openssl(
  'req', '-x509', ...newKey, '-keyout', key, '-out', cert, '-subj', '/CN=acceptance',
  '-CA', ca, '-CAkey', file('ca.key'),
  '-addext', 'basicConstraints=critical,CA:FALSE', '-addext', 'extendedKeyUsage=serverAuth',
  '-addext', 'subjectAltName=DNS:localhost,DNS:*.gateway.example',
);
const tls = { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') };
const caText = readFileSync(ca, 'utf8');

// ---- the programs ----

const programs = new Programs('envoy-cimd-acceptance-');
/** What Envoy served, from its own log. */
const served = [];

/** Runs a script beside this one, which says on a line of JSON where it listens; that port. */
async function startServer(script, env) {
  let resolve;
  const ready = new Promise((done) => { resolve = done; });
  const program = script.endsWith('.py') ? ACCEPTANCE_PYTHON : process.execPath;
  const child = programs.start(program, [join(here, script)], {
    cwd: here,
    env: {
      PATH: process.env.PATH, HOME: programs.dir, NODE_EXTRA_CA_CERTS: ca, SSL_CERT_FILE: ca,
      ...env,
    },
    onLine: (line) => {
      const { listens } = line.startsWith('{"listens"') ? JSON.parse(line) : {};
      if (listens !== undefined) resolve(listens);
    },
  });
  return Promise.race([ready, runs(child)]);
}

const npmVersion = (name) => JSON.parse(readFileSync(join(here, 'node_modules', name, 'package.json'), 'utf8')).version;

function pythonVersion(name) {
  const program = 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))';
  return execFileSync(ACCEPTANCE_PYTHON, ['-c', program, name], { encoding: 'utf8' }).trim();
}

// ---- one server ----

/** A server with its fronts: what everybody sees of it. */
async function prepare(server) {
  const from = `https://${server.id}.gateway.example`;
  const front = await Front.listen(tls);
  const mcpFront = server.mcp === 'own' ? front : await Front.listen(tls);
  const issuer = front.origin + (server.issuerPath ?? '');
  return { ...server, from, front, mcpFront, to: `${mcpFront.origin}/mcp`, issuer };
}

/** Where its programs listen is where its fronts lead. */
async function launch(server, { envoyPort, proxy, idp }) {
  const { front, mcpFront, issuer, to } = server;
  const env = {
    ISSUER: issuer, RESOURCE: to, CLIENT_ORIGIN: server.from, ENVOY_PORT: String(envoyPort), EGRESS_PROXY: proxy,
    ...(server.idp && { IDP: idp.origin }),
    ...(server.proxied && { HTTPS_PROXY: proxy, NO_PROXY: 'localhost', ...server.proxied }),
  };
  const starting = [startServer(server.script, env).then((port) => front.leadTo(port))];
  if (mcpFront !== front) {
    const asked = { JWKS: server.jwks?.(issuer) ?? '', INTROSPECTION: server.introspection?.(issuer) ?? '' };
    const mcp = startServer('mcp.mjs', { RESOURCE: to, ISSUER: issuer, ...asked });
    starting.push(mcp.then((port) => mcpFront.leadTo(port)));
  }
  await Promise.all(starting);
}

/** Goes through everything with one server; the row. */
async function accept(server, { envoyPort }) {
  const { from, front, issuer, to } = server;
  const link = from + START;
  const clientId = from + DOCUMENT_PATH;
  const dispatcher = agent({ ca: caText, port: envoyPort, version: 2 });
  const direct = agent({ ca: caText, port: new URL(to).port, version: 1 });
  const person = walker({ port: envoyPort });

  /** What a stock MCP client does at the route. */
  async function call() {
    const transport = new StreamableHTTPClientTransport(new URL(from + new URL(to).pathname), {
      fetch: (url, init) => fetchWith(url, { ...init, dispatcher }),
    });
    const client = new Client({ name: 'acceptance', version: '1' });
    try {
      await client.connect(transport);
      const { tools } = await client.listTools();
      assert.deepEqual(tools.map(({ name }) => name), ['add']);
      const { content } = await client.callTool({ name: 'add', arguments: { a: 2, b: 3 } });
      assert.equal(content[0].text, '5');
    } finally {
      await client.close();
    }
  }
  const isTold = () => assert.rejects(call(), ({ message }) => message.includes(link), 'the client is told the link');

  try {
    const metadata = await during('reading its metadata', async () => {
      const { origin, port, pathname } = new URL(issuer);
      const path = pathname === '/' ? '' : pathname;
      const url = `${origin}/.well-known/oauth-authorization-server${path}`;
      const answer = await fetchWith(url, { dispatcher: agent({ ca: caText, port, version: 1 }) });
      assert.equal(answer.status, 200);
      return answer.json();
    });
    front.knows(metadata);

    await during('an MCP call before anybody connected', async () => {
      assert.equal(metadata.client_id_metadata_document_supported, true, 'it announces documents');
      await isTold();
      const { status } = await fetchWith(to, { method: 'POST', dispatcher: direct });
      assert.equal(status, 401, 'its MCP server takes nobody without a token');
    });

    await during('connecting with another code verifier', async () => {
      front.spoilVerifier = true;
      await assert.rejects(person.connect(link), /not connected at/);
      front.spoilVerifier = false;
      const [refused, ...more] = front.tokens;
      assert.deepEqual([refused?.grant, refused?.status >= 400, more.length], ['authorization_code', true, 0]);
    });

    const iss = await during('connecting', async () => {
      front.shortLived = REFRESHES;
      await person.connect(link);
      const [, given] = front.tokens;
      assert.deepEqual([given?.grant, given?.status], ['authorization_code', 200]);
      assert.ok(given.refresh_token, 'a refresh token');
      const { client_id, resource, code_challenge_method } = front.authorizations.at(-1);
      assert.deepEqual([client_id, resource, code_challenge_method], [clientId, to, 'S256']);
      assert.ok(metadata.code_challenge_methods_supported?.includes('S256'), 'it announces S256');
      const sent = front.callbacks.at(-1).searchParams.get('iss');
      const announced = metadata.authorization_response_iss_parameter_supported === true;
      assert.equal(sent, announced ? metadata.issuer : null, '`iss` as announced');
      return sent;
    });

    await during('looking for its request for the document', async () => {
      const isDocument = ({ authority, path, status }) =>
        authority === new URL(from).host && path === DOCUMENT_PATH && status === 200;
      while (!served.some(isDocument)) await delay(20);
    });

    const [first, second, third] = await during('an MCP call that begins with tokens that are over', async () => {
      await call();
      assert.deepEqual(front.refreshes().map(({ status }) => status), Array(REFRESHES).fill(200));
      await call();
      assert.equal(front.refreshes().length, REFRESHES);
      return front.tokens.filter(({ status }) => status === 200);
    });

    const last = front.refreshToken();
    await during('disconnecting', async () => {
      await person.disconnect(link);
      await isTold();
    });

    const revocation = await during('revocation', async () => {
      if (metadata.revocation_endpoint === undefined) {
        assert.equal(front.revocations.length, 0);
        return 'not announced';
      }
      while (front.revocations.length === 0) await delay(20);
      const [{ status, error }] = front.revocations;
      const later = await front.refresh({ client_id: clientId, refresh_token: last, resource: to });
      const isOver = later.status === 400 || later.status === 401;
      assert.equal(isOver, status === 200, `revocation answered ${status}, and a refresh after it ${later.status}`);
      return isOver ? 'yes' : `refused: ${status} \`${error}\``;
    });

    const rotates = (old, { refresh_token }) => refresh_token !== undefined && refresh_token !== old.refresh_token;
    return {
      announced: 'yes',
      document: 'yes',
      flow: 'yes',
      iss: iss === null ? 'not announced' : 'yes',
      pkce: 'S256, enforced',
      // Its MCP server takes no other.
      resource: server.introspection ? 'introspection' : audience(first, { resource: to, issuer }),
      refresh: rotates(first, second) && rotates(second, third) ? 'rotated' : 'kept',
      refreshes: 'yes',
      revocation,
      mcp: server.mcp === 'own' ? 'its own server' : 'TypeScript SDK',
    };
  } finally {
    await Promise.all([person.close(), dispatcher.destroy(), direct.destroy()]);
  }
}

/** Runs a step of a server's, whose name is in what it throws. */
async function during(step, body) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done within ${PATIENCE / 1000} s`)), PATIENCE);
  });
  try {
    return await Promise.race([body(), late]);
  } catch (error) {
    throw new Error(`${step}: ${error.message}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/** Where the token, or what came with it, says that it is for this resource. */
function audience({ access_token, ...answer }, { resource, issuer }) {
  const [, claims] = access_token.split('.');
  const { aud } = claims === undefined ? {} : JSON.parse(Buffer.from(claims, 'base64url'));
  if ([aud].flat().includes(resource)) {
    return '`aud`';
  }
  if (answer.resource === resource) {
    return 'beside it';
  }
  return aud === issuer ? 'no: for all of the server' : 'no: it does not say';
}

// ---- all of it ----

process.on('SIGTERM', () => {
  programs.cleanUp();
  process.exit(1);
});
const faults = [];
const rows = new Map();
try {
  const idp = await Front.listen(tls);
  const prepared = await Promise.all(servers.map(prepare));
  const socket = `unix:${join(programs.dir, 'ext_proc.sock')}`;
  const [, envoyPort] = await Promise.all([
    startCimd(programs, { cimd: ENVOY_CIMD, socket, args: ['--extra-ca', ca, '--allow-host', 'localhost'] }),
    startEnvoy(programs, {
      envoy: ENVOY, cimd: ENVOY_CIMD, socket, cert, key, ca,
      args: prepared.flatMap(({ from, to }) => ['--route', `from=${from},to=${to}`]),
      onLine: (line) => {
        const said = line.startsWith('{') ? JSON.parse(line) : {};
        if (said.authority !== undefined) served.push(said);
      },
    }),
  ]);
  const proxy = await egress({ envoyPort });
  if (prepared.some((server) => server.idp)) {
    const redirects = prepared.filter((server) => server.idp).map(({ idp: path, front }) => front.origin + path);
    idp.leadTo(await startServer('idp.mjs', { ISSUER: idp.origin, REDIRECT_URIS: JSON.stringify(redirects) }));
  }
  await Promise.all(prepared.map(async (server) => {
    try {
      await during('starting it', () => launch(server, { envoyPort, proxy: proxy.origin, idp }));
      rows.set(server.id, await accept(server, { envoyPort }));
      console.log(`${server.id}: passed`);
    } catch (error) {
      console.log(`${server.id}: FAILED`);
      faults.push(`${server.id}, ${error.message}\n${error.cause?.stack}\n${server.front.story()}`);
    }
  }));
} catch (error) {
  faults.push(error.stack);
} finally {
  writeFileSync(file('output.txt'), programs.output.join('\n'));
  programs.cleanUp();
}

if (chosen.length === 0 && faults.length === 0) {
  const table = tabulated();
  console.log(`\n${table}`);
  const page = 'docs/authorization-servers.md';
  const marked = /(?<=<!-- make acceptance -->\n\n)(\|.*\n)*(?=\n<!-- until here -->)/;
  const written = readFileSync(page, 'utf8');
  assert.ok(marked.test(written), `${page} has a place for the table`);
  if (process.env.RENEW) {
    writeFileSync(page, written.replace(marked, () => table));
  } else if (marked.exec(written)[0] !== table) {
    faults.push(`${page} has another table; RENEW=1 make acceptance writes this one`);
  }
}
for (const fault of faults) {
  console.error(`\n${fault}`);
}
if (faults.length > 0) {
  console.error(`\nWhat the programs printed is in ${file('output.txt')}`);
}
process.exit(faults.length > 0 ? 1 : 0);

/** What was learnt of each server. */
function tabulated() {
  const columns = {
    'announces CIMD': 'announced', 'document fetched': 'document', 'whole flow': 'flow', '`iss`': 'iss', PKCE: 'pkce',
    'token is for the `resource`': 'resource', 'refresh token': 'refresh', 'two refreshes': 'refreshes',
    revocation: 'revocation', 'MCP call': 'mcp',
  };
  const head = ['server', 'version', ...Object.keys(columns)];
  const lines = servers.map(({ id, name, npm, pypi }) => {
    const version = npm ? npmVersion(npm) : pythonVersion(pypi);
    return [name, version, ...Object.values(columns).map((column) => rows.get(id)[column])];
  });
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |\n`).join('');
}
