// What an MCP server does that speaks 2025-11-25 and 2026-07-28, as the official SDK has it.

import { toNodeHandler } from '@modelcontextprotocol/node';
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server';
import { z } from 'zod';

/** Serves `startMcpServer`. */
export function bothVersions() {
  const handle = toNodeHandler(createMcpHandler(mcpServer));
  return (request, response) => handle(request, response, request.body);
}

function mcpServer() {
  const server = new McpServer({ name: 'both', version: '1' }, {
    requestState: {
      // It never gives one out.
      verify() {
        throw new Error('a state of somebody else\'s');
      },
    },
  });
  const text = z.string();
  server.registerTool('echo', { description: 'Says it', inputSchema: z.object({ text }) }, (said) => ({
    content: [{ type: 'text', text: said.text }],
  }));
  server.registerResource('page', 'test://page', { description: 'A page' }, ({ href }) => ({
    contents: [{ uri: href, text: 'the page' }],
  }));
  server.registerPrompt('hello', { description: 'A greeting', argsSchema: z.object({ text }) }, (said) => ({
    messages: [{ role: 'user', content: { type: 'text', text: said.text } }],
  }));
  return server;
}
