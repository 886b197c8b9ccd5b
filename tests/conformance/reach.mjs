// Makes the suite's servers reachable for a client that speaks https alone, and on request announces at the
// authorization servers that they take metadata documents.
//
// The suite serves http://localhost:A. This serves the same at https://localhost:B, one B for each A. So that client
// and server each see one world, in which all addresses fit together, one origin becomes the other wherever a client or
// a server of OAuth compares it or follows it:
//
//   - on the way out, A becomes B: in JSON that answers a GET (the two kinds of metadata: `resource`, `issuer`, the
//     endpoints and the rest), in `location` (its parameter `iss` too), in `www-authenticate` (`resource_metadata`);
//   - on the way in, B becomes A: in `host`, in the parameters of the query and of a form (`resource`).
//
// Apart from origins, one thing changes, and only where it is asked for: metadata of an authorization server that does
// not say whether it takes metadata documents says that it does. Scenarios about something else leave it out, for
// clients that register.
//
// All else passes as it is: MCP messages, codes, tokens, PKCE, registrations, credentials of clients.

import { once } from 'node:events';
import http from 'node:http';
import https from 'node:https';
import { buffer } from 'node:stream/consumers';

const INNER = /http:\/\/localhost:\d+/g;
/** What is of one connection only (RFC 9110, section 7.6.1). */
const HOP_BY_HOP = ['connection', 'keep-alive', 'transfer-encoding', 'upgrade', 'proxy-connection', 'te', 'trailer'];

export class Reach {
  #tls;
  #announceDocuments;
  #servers = [];
  /** Promises of outer origins, by inner origin. */
  #outer = new Map();
  #inner = new Map();

  /**
   * @param {{cert: string, key: string}} tls  for `localhost`
   * @param {boolean} announceDocuments
   */
  constructor(tls, announceDocuments) {
    this.#tls = tls;
    this.#announceDocuments = announceDocuments;
  }

  /** A text with addresses of the suite, as the client sees it. */
  async outer(text) {
    const origins = [...new Set(text.match(INNER) ?? [])];
    const pairs = await Promise.all(origins.map(async (inner) => [inner, await this.#reachable(inner)]));
    const outer = new Map(pairs);
    return text.replace(INNER, (inner) => outer.get(inner));
  }

  /** A text with addresses that the client was told, as the suite knows them. */
  inner(text) {
    return text.replace(/https:\/\/localhost:\d+/g, (outer) => this.#inner.get(outer) ?? outer);
  }

  async close() {
    await Promise.all(this.#servers.map(async (server) => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    }));
  }

  #reachable(inner) {
    if (!this.#outer.has(inner)) {
      this.#outer.set(inner, this.#serve(inner));
    }
    return this.#outer.get(inner);
  }

  async #serve(inner) {
    const server = https.createServer(this.#tls, (request, response) => {
      this.#pass(inner, request, response).catch((error) => {
        console.error(`${request.method} ${inner}${request.url}: ${error.stack}`);
        response.destroy();
      });
    });
    this.#servers.push(server);
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const outer = `https://localhost:${server.address().port}`;
    this.#inner.set(outer, inner);
    return outer;
  }

  async #pass(inner, request, response) {
    const url = new URL(request.url, inner);
    url.search = this.#parameters(url.search);
    const headers = passedOn({ ...request.headers, host: url.host });
    const passed = http.request(url, { method: request.method, headers, agent: false });
    if (request.headers['content-type']?.startsWith('application/x-www-form-urlencoded')) {
      const form = this.#parameters((await buffer(request)).toString());
      passed.setHeader('content-length', Buffer.byteLength(form));
      passed.end(form);
    } else {
      request.pipe(passed);
    }
    response.on('close', () => passed.destroy());
    const [answer] = await once(passed, 'response');
    await this.#answer(request.method, answer, response);
  }

  async #answer(method, answer, response) {
    const headers = passedOn(answer.headers);
    if (headers['www-authenticate'] !== undefined) {
      headers['www-authenticate'] = await this.outer(headers['www-authenticate']);
    }
    if (headers.location !== undefined) {
      headers.location = await this.#location(headers.location);
    }
    if (method === 'GET' && headers['content-type']?.startsWith('application/json')) {
      const body = this.#announced(await this.outer((await buffer(answer)).toString()));
      response.writeHead(answer.statusCode, { ...headers, 'content-length': Buffer.byteLength(body) });
      response.end(body);
    } else {
      response.writeHead(answer.statusCode, headers);
      response.flushHeaders();
      answer.pipe(response);
    }
  }

  /** What answers a GET, with the announcement where that is metadata of an authorization server. */
  #announced(json) {
    if (!this.#announceDocuments) {
      return json;
    }
    const metadata = JSON.parse(json);
    if (metadata.authorization_endpoint !== undefined) {
      metadata.client_id_metadata_document_supported ??= true;
    }
    return JSON.stringify(metadata);
  }

  async #location(location) {
    const url = new URL(await this.outer(location));
    for (const [name, value] of [...url.searchParams]) {
      url.searchParams.set(name, await this.outer(value));
    }
    return url.href;
  }

  /** Parameters of a query or form; none stay none. */
  #parameters(text) {
    const mapped = [...new URLSearchParams(text)].map(([name, value]) => [name, this.inner(value)]);
    return new URLSearchParams(mapped).toString();
  }
}

function passedOn(headers) {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !HOP_BY_HOP.includes(name)));
}
