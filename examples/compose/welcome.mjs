// Waits until both routes serve their documents, then says what to open.

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';

const ROUTES = ['notes', 'tickets'].map((name) => `https://${name}.localhost:8443`);
const ca = readFileSync('/ca/ca.pem');

async function isServed(origin) {
  const request = https.get(`${origin}/.well-known/mcp-client-metadata.json`, { ca, agent: false });
  const [response] = await once(request, 'response').catch(() => []);
  response?.resume();
  return response?.statusCode === 200;
}

for (const origin of ROUTES) {
  while (!(await isServed(origin))) {
    await sleep(500);
  }
}

console.log(`
Two MCP routes are served. In another terminal, add one to an MCP client of yours:

  docker compose exec -T notes cat /ca/ca.pem >demo-ca.pem
  export NODE_EXTRA_CA_CERTS="$PWD/demo-ca.pem"
  claude mcp add --transport http notes ${ROUTES[0]}/mcp
  claude

It says where to connect, which is here:

${ROUTES.map((origin) => `  ${origin}/.pomerium/oauth/start?return_to=/mcp`).join('\n')}

Its tool whoami says whose token came along, and end_grant ends what you allowed, so that the next call asks you anew.
Chromium and Firefox find *.localhost by themselves; they warn of the demo's certificates, once for each of the four
hosts. At the authorization servers any name and password will do. Ctrl-C ends it all.
`);
