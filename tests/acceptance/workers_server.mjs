// @cloudflare/workers-oauth-provider in workerd, the runtime of Cloudflare's Workers. workerd knows no proxy: a
// worker's way out is a service of its configuration.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import workerd from 'workerd';

import { announce } from './says.mjs';

const child = spawn(workerd.default, [
  'serve', '--control-fd=3', `--external-addr=out=127.0.0.1:${process.env.ENVOY_PORT}`, 'workers.capnp',
], { stdio: ['ignore', 'inherit', 'inherit', 'pipe'] });
createInterface(child.stdio[3]).on('line', (line) => {
  const { event, port } = JSON.parse(line);
  if (event === 'listen') announce(port);
});
child.on('exit', (code) => process.exit(code ?? 1));
