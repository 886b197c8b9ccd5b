// envoy-cimd and Envoy as users run them, for the suites that play an outside world against both.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';

/** Programs that end with the script, and a folder of theirs. */
export class Programs {
  #children = [];
  /** What they printed, line by line. */
  output = [];

  constructor(prefix) {
    this.dir = mkdtempSync(join(tmpdir(), prefix));
  }

  /** Starts a program. `onLine` sees what it prints. */
  start(program, args, { onLine = () => {}, env = process.env, cwd } = {}) {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env, cwd });
    this.#children.push(child);
    for (const stream of [child.stdout, child.stderr]) {
      createInterface(stream).on('line', (line) => {
        this.output.push(line);
        onLine(line);
      });
    }
    return child;
  }

  cleanUp() {
    for (const child of this.#children) {
      child.kill('SIGKILL');
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Rejects where a program ends that is to go on. */
export async function runs(child) {
  const [code, signal] = await once(child, 'exit');
  throw new Error(`${child.spawnfile} ended: ${code ?? signal}`);
}

/** Starts `envoy-cimd serve` for one person, and waits until it listens on `socket`. */
export async function startCimd(programs, { cimd, socket, args, onLine = () => {} }) {
  let resolve;
  const ready = new Promise((done) => { resolve = done; });
  const child = programs.start(cimd, [
    'serve', '--listen', socket, '--admin-listen', '127.0.0.1:0', '--single-user',
    '--state-dir', join(programs.dir, 'state'), '--drain-delay', '0', ...args,
  ], {
    onLine: (line) => {
      const said = line.startsWith('{') ? JSON.parse(line) : {};
      if (said.message === 'ready' && said.listener === 'ext_proc') {
        resolve();
      }
      onLine(said);
    },
  });
  await Promise.race([ready, runs(child)]);
  return child;
}

/** Starts Envoy with what `envoy-cimd envoy-config` prints for `args`; the port on which it listens for https. */
export async function startEnvoy(programs, { envoy, cimd, socket, cert, key, ca, args, onLine }) {
  const printed = spawn(cimd, [
    'envoy-config', '--processor', socket, '--single-user', '--https-listen', '127.0.0.1:0',
    '--http-listen', '127.0.0.1:0', '--envoy-admin', '127.0.0.1:0', '--downstream-cert', cert, '--downstream-key', key,
    '--upstream-ca', ca, ...args,
  ], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [yaml, [code]] = await Promise.all([text(printed.stdout), once(printed, 'exit')]);
  assert.equal(code, 0, 'envoy-config');
  const [config, address] = [join(programs.dir, 'envoy.yaml'), join(programs.dir, 'envoy-admin')];
  writeFileSync(config, yaml);
  const child = programs.start(envoy, [
    '--disable-hot-restart', '--log-level', 'warning', '--concurrency', '1', '--admin-address-path', address,
    // What it logs of requests is read while it runs; in milliseconds.
    '--file-flush-interval-msec', '50', '-c', config,
  ], { onLine });
  return Promise.race([readyPort(address), runs(child)]);
}

/** Envoy has no way to tell that it is ready but being asked. */
async function readyPort(address) {
  for (;;) {
    try {
      const admin = `http://${readFileSync(address, 'utf8')}`;
      if ((await fetch(`${admin}/ready`)).ok) {
        const { listener_statuses } = await (await fetch(`${admin}/listeners?format=json`)).json();
        return listener_statuses.find(({ name }) => name === 'https').local_address.socket_address.port_value;
      }
    } catch (error) {
      if (error.code !== 'ENOENT' && !(error instanceof TypeError)) throw error;
    }
    await delay(20);
  }
}
