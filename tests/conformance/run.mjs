// Runs the official conformance suite with Envoy and envoy-cimd in the client's place: `node run.mjs [SCENARIO…]`.
//
// ENVOY and ENVOY_CIMD are the programs. The suite is a module beside this script, and what it says of each scenario is
// left in `results/`.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { text } from 'node:stream/consumers';

import { DOCUMENT, EXPECTED_FAILURES, LEFT_OUT, REVISIONS, RUN } from './scenarios.mjs';

const here = import.meta.dirname;
const suite = join(here, 'node_modules/@modelcontextprotocol/conformance');
const results = join(here, 'results');
/** For Envoy, envoy-cimd and a whole flow, on a machine that has other things to do; in milliseconds. */
const PATIENCE = 60_000;
const AT_ONCE = 8;

const { version } = JSON.parse(readFileSync(join(suite, 'package.json'), 'utf8'));
rmSync(results, { recursive: true, force: true });
mkdirSync(results);
const [cert, key] = [join(results, 'tls.crt'), join(results, 'tls.key')];
execFileSync('openssl', [
  'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key, '-out', cert,
  '-days', '2', '-subj', '/CN=envoy-cimd conformance', '-addext', 'basicConstraints=critical,CA:FALSE',
  '-addext', 'subjectAltName=DNS:localhost,DNS:conformance-test.local',
], { stdio: ['ignore', 'ignore', 'pipe'] });
const expected = join(results, 'expected-failures.yml');
// JSON is YAML.
writeFileSync(expected, JSON.stringify({ client: Object.keys(EXPECTED_FAILURES) }));

/** The suite's own command line. */
function conformance(args, env = {}) {
  return spawn(process.execPath, [join(suite, 'dist/index.js'), ...args], {
    // The suite gives the client its variables on.
    env: { ...process.env, CONFORMANCE_CERT: cert, CONFORMANCE_KEY: key, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** The client scenarios, and the revisions that each is of. */
async function known() {
  const lines = (await text(conformance(['list', '--client']).stdout)).matchAll(/^ +- (\S+) \[(\S+)\]$/gm);
  return new Map([...lines].map(([, name, revisions]) => [name, revisions.split(',')]));
}

/** What is wrong with how a scenario went; nothing where it came to what it is to come to. */
async function fault({ name: scenario, client, revision }) {
  const output = join(results, client, revision);
  const run = conformance([
    'client', '--scenario', scenario, '--spec-version', revision, '--timeout', String(PATIENCE),
    // The shell makes way for the client, so that whoever stops the one stops the other.
    '--command', `exec "${process.execPath}" "${join(here, 'client.mjs')}"`,
    '--output-dir', output, ...(client === DOCUMENT ? ['--expected-failures', expected] : []),
  ], { CONFORMANCE_CLIENT: client });
  const ended = once(run, 'close');
  const said = (await Promise.all([text(run.stdout), text(run.stderr)])).join('');
  const [code] = await ended;
  if (code !== 0) {
    return said;
  }
  // The suite lets a client fail where it is to refuse, so its verdict alone does not tell a refusal from an accident.
  const kept = join(output, dirname(scenario));
  const folder = readdirSync(kept).find((name) => name.startsWith(`${basename(scenario)}-2`));
  const outcome = readFileSync(join(kept, folder, 'stdout.txt'), 'utf8').trim();
  const wanted = RUN[scenario].outcome;
  return outcome === wanted ? undefined : `it came to ${outcome || 'nothing'}, not to ${wanted}\n${said}`;
}

const all = await known();
const chosen = process.argv.slice(2);
const faults = [];
for (const name of all.keys()) {
  if ((name in RUN) === (name in LEFT_OUT)) {
    faults.push(`${name} must be in one list of scenarios.mjs, and in no other`);
  }
}
for (const name of [...Object.keys(RUN), ...Object.keys(LEFT_OUT)]) {
  if (!all.has(name)) {
    faults.push(`${name} is in scenarios.mjs, but not in the suite`);
  }
}

const runs = REVISIONS.flatMap((revision) => Object.entries(RUN)
  .filter(([name]) => all.get(name)?.includes(revision) && (chosen.length === 0 || chosen.includes(name)))
  .flatMap(([name, { clients }]) => clients.map((client) => ({ name, client, revision }))));
assert.ok(runs.length > 0, `no scenario is called ${chosen.join(' or ')}`);
const waiting = [...runs];
await Promise.all(Array.from({ length: Math.min(availableParallelism(), AT_ONCE) }, async () => {
  for (let run = waiting.shift(); run !== undefined; run = waiting.shift()) {
    run.fault = await fault(run);
    const play = `${run.name} of ${run.revision}, ${run.client}`;
    console.log(`${play}: ${run.fault === undefined ? 'passed' : 'FAILED'}`);
    if (run.fault !== undefined) {
      faults.push(`${play}: ${run.fault}`);
    }
  }
}));

if (chosen.length === 0) {
  const table = tabulated();
  console.log(`\n@modelcontextprotocol/conformance ${version}:\n\n${table}`);
  const [page, marker] = ['docs/conformance.md', `<!-- make conformance, of version ${version} -->\n\n`];
  const [text, old] = readFileSync(page, 'utf8').split(/(?<=<!-- make conformance.* -->\n\n)/);
  if (process.env.RENEW_CONFORMANCE) {
    writeFileSync(page, text.replace(/<!-- make conformance.* -->\n\n$/, marker) + table);
  } else if (!text.endsWith(marker) || old !== table) {
    faults.push(`${page} has another table; RENEW_CONFORMANCE=1 make conformance writes this one`);
  }
}
for (const fault of faults) {
  console.error(`\n${fault}`);
}
process.exitCode = faults.length > 0 ? 1 : 0;

/** What came of each scenario, and of which none did. */
function tabulated() {
  const head = ['scenario', 'client', ...REVISIONS, 'what came of it, or why it is left out'];
  const rows = [head, head.map(() => '---')];
  for (const [name, { clients, outcome }] of Object.entries(RUN)) {
    const came = outcome === 'called' ? 'the call is answered' : `refused: \`${outcome}\``;
    for (const client of clients) {
      const verdicts = REVISIONS.map((revision) => {
        const run = runs.find((run) => run.name === name && run.client === client && run.revision === revision);
        return run === undefined ? '–' : run.fault === undefined ? 'passed' : 'FAILED';
      });
      const but = Object.entries(client === DOCUMENT ? EXPECTED_FAILURES : {})
        .filter(([check]) => check.startsWith(`${name}:`))
        .map(([check, reason]) => `, but for \`${check.slice(name.length + 1)}\`, which ${reason}`);
      rows.push([`\`${name}\``, client, ...verdicts, came + but.join('')]);
    }
  }
  for (const [name, reason] of Object.entries(LEFT_OUT)) {
    rows.push([`\`${name}\``, '–', ...REVISIONS.map(() => 'left out'), reason]);
  }
  return rows.map((cells) => `| ${cells.join(' | ')} |\n`).join('');
}
