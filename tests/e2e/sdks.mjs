// The official SDKs as MCP clients, all with one face: TypeScript 1 and 2, and Python 2, which runs `sdk.py` in the
// virtual environment beside the modules.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import * as typescript2 from '@modelcontextprotocol/client';
import * as typescript1 from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { fetch as fetchWith } from 'undici';

export const LEGACY = '2025-11-25';
export const MODERN = '2026-07-28';

const INFO = { name: 'e2e', version: '1' };
const PYTHON = fileURLToPath(new URL('venv/bin/python', import.meta.url));
const SCRIPT = fileURLToPath(new URL('sdk.py', import.meta.url));

/**
 * Each SDK as it speaks each version that it can. `open` makes a client of the MCP server at `url`, with Envoy at
 * 127.0.0.1:`port`. What it is asked for the person goes to `answer`, which gives the person's action; without that it
 * declares that nobody can be asked. A client's `connect` gives the version that was agreed on; where it fails it may
 * be tried again. That and the calls fail as they do for an application. `sent` are its requests, and `asked` is what
 * it was asked.
 */
export const SDKS = [
  {
    sdk: 'TypeScript 1',
    version: LEGACY,
    open: typescript({ ...typescript1, StreamableHTTPClientTransport, elicitation: ElicitRequestSchema }),
  },
  ...['legacy', 'auto'].map((mode) => ({
    sdk: 'TypeScript 2',
    version: mode === 'legacy' ? LEGACY : MODERN,
    open: typescript({ ...typescript2, elicitation: 'elicitation/create', options: { versionNegotiation: { mode } } }),
  })),
  ...['legacy', 'auto'].map((mode) => ({
    sdk: 'Python 2', version: mode === 'legacy' ? LEGACY : MODERN, open: (options) => python({ ...options, mode }),
  })),
];

/** The requests that a client sent, by their methods. */
class Sent {
  methods = [];

  #news = new EventEmitter();

  note(method) {
    this.methods.push(method);
    this.#news.emit('sent');
  }

  /** When there are as many. */
  async reaches(count) {
    while (this.methods.length < count) {
      await once(this.#news, 'sent');
    }
  }
}

function typescript({ Client, StreamableHTTPClientTransport: Transport, elicitation, options }) {
  return ({ url, dispatcher, answer, capabilities = answer ? { elicitation: { url: {} } } : {} }) => {
    const sent = new Sent();
    const asked = [];
    const noted = (to, init) => {
      if (init.body) {
        sent.note(JSON.parse(init.body).method);
      }
      return fetchWith(to, { ...init, dispatcher });
    };
    let client;
    return {
      sent,
      asked,
      connect: async () => {
        client = new Client(INFO, { ...options, capabilities });
        if (answer) {
          client.setRequestHandler(elicitation, async ({ params }) => {
            asked.push(params);
            return { action: await answer(params) };
          });
        }
        const transport = new Transport(new URL(url), { fetch: noted });
        await client.connect(transport);
        return client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion;
      },
      callTool: (params) => client.callTool(params),
      readResource: (params) => client.readResource(params),
      getPrompt: (params) => client.getPrompt(params),
      close: () => client.close(),
    };
  };
}

function python({ url, port, caFile, answer, mode }) {
  const sent = new Sent();
  const asked = [];
  const child = spawn(PYTHON, [SCRIPT], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const tell = (what) => child.stdin.write(`${JSON.stringify(what)}\n`);
  const ask = async (what) => {
    tell(what);
    for (;;) {
      const { value: line, done } = await lines.next();
      assert.ok(!done, 'sdk.py ended');
      const { sent: method, question, result, error } = JSON.parse(line);
      if (method) {
        sent.note(method);
      } else if (question) {
        asked.push(question);
        tell({ action: await answer(question) });
      } else if (error) {
        throw new Error(error);
      } else {
        return result;
      }
    }
  };
  return {
    sent,
    asked,
    connect: async () => (await ask({ url, port, ca: caFile, mode, ask: Boolean(answer) })).version,
    callTool: (params) => ask({ call: 'call_tool', params }),
    readResource: (params) => ask({ call: 'read_resource', params }),
    getPrompt: (params) => ask({ call: 'get_prompt', params }),
    close: async () => {
      child.stdin.end();
      // It ends its session, and then itself.
      while (!(await lines.next()).done);
    },
  };
}
