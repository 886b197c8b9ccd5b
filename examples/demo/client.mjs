// An MCP client as people have one: the official SDK's, which is told the MCP address of a route, and nothing else.
// The demo is its person: a line that comes in is a tool to call, and a line that goes out says what came of it, or
// which page the person shall open.

import { once } from 'node:events';
import http from 'node:http';
import { createInterface } from 'node:readline';

import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { Agent, setGlobalDispatcher } from 'undici';

// Not every resolver knows *.localhost. Whom to trust is in NODE_EXTRA_CA_CERTS, as for everybody.
const lookup = (_host, { all }, done) => (
  all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)
);
setGlobalDispatcher(new Agent({ connect: { lookup } }));

const [url] = process.argv.slice(1);
const say = (what) => console.log(JSON.stringify(what));

/** Where the person comes back to with a code. */
const callback = http.createServer((request, response) => {
  callback.emit('code', new URL(request.url, 'http://localhost').searchParams.get('code'));
  response.setHeader('content-type', 'text/html');
  response.end('<!doctype html><title>MCP client</title><h1>You are signed in. Close this page.</h1>');
}).listen(0, '127.0.0.1');
await once(callback, 'listening');

/** What the SDK asks of an application, which here forgets all of it in the end. */
const authProvider = {
  redirectUrl: `http://127.0.0.1:${callback.address().port}/callback`,
  get clientMetadata() {
    return {
      client_name: 'MCP client of the demo',
      redirect_uris: [this.redirectUrl],
      token_endpoint_auth_method: 'none',
    };
  },
  clientInformation() { return this.information; },
  saveClientInformation(information) { this.information = information; },
  tokens() { return this.saved; },
  saveTokens(tokens) { this.saved = tokens; },
  codeVerifier() { return this.verifier; },
  saveCodeVerifier(verifier) { this.verifier = verifier; },
  redirectToAuthorization(page) { say({ open: page.href }); },
};

async function connect() {
  const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider });
  const client = new Client({ name: 'demo', version: '1' });
  const back = once(callback, 'code');
  try {
    await client.connect(transport);
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) {
      throw error;
    }
    const [code] = await back;
    await transport.finishAuth(code);
    return connect();
  }
  return client;
}

let client;
let tools;
for await (const name of createInterface({ input: process.stdin })) {
  try {
    client ??= await connect();
    tools ??= (await client.listTools()).tools.map((tool) => tool.name);
    const { content, isError = false } = await client.callTool({ name });
    say({ result: { tools, text: content[0].text, isError } });
  } catch ({ message }) {
    say({ failed: message });
  }
}
process.exit();
