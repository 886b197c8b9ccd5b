// What stands before a server here as a load balancer does elsewhere: https on a port of `localhost`, plain http behind
// it. It changes nothing but what a test spoils on purpose, and remembers what goes by.

import { once } from 'node:events';
import http from 'node:http';
import https from 'node:https';
import { buffer } from 'node:stream/consumers';

/** What is of one connection only (RFC 9110, section 7.6.1). */
const HOP_BY_HOP = ['connection', 'keep-alive', 'transfer-encoding', 'upgrade', 'proxy-connection', 'te', 'trailer'];

const passedOn = (headers) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !HOP_BY_HOP.includes(name)));

/** For envoy-cimd a token of so short a life is over when it comes, so whoever asks for it has it refreshed. */
const SHORT = 5;

export class Front {
  #server;
  #port;
  #endpoints = {};
  #story = [];
  /** Requests of people to sign in, by their parameters. */
  authorizations = [];
  /** Where it sent people back to. */
  callbacks = [];
  /** Answers to requests for tokens: grant, status, and the members of those that are good. */
  tokens = [];
  revocations = [];
  /** Changes the code verifier of each request for a token. */
  spoilVerifier = false;
  /** How many answers with a token are yet to say that it lives for `SHORT` seconds. */
  shortLived = 0;

  /** One that listens on a port of its own, with this certificate and key. */
  static async listen(tls) {
    const front = new Front();
    front.#server = https.createServer(tls, (request, response) => {
      front.#pass(request, response).catch((error) => {
        front.#story.push(`${request.method} ${request.url.split('?')[0]}: ${error.message}`);
        response.destroy();
      });
    });
    front.#server.listen(0, '127.0.0.1');
    await once(front.#server, 'listening');
    front.origin = `https://localhost:${front.#server.address().port}`;
    return front;
  }

  /** What is behind it, on this port of 127.0.0.1. */
  leadTo(port) {
    this.#port = port;
  }

  /** Which of its paths are endpoints, from the metadata of an authorization server. */
  knows({ authorization_endpoint, token_endpoint, revocation_endpoint }) {
    const path = (url) => url && new URL(url).pathname;
    this.#endpoints = {
      authorization: path(authorization_endpoint), token: path(token_endpoint), revocation: path(revocation_endpoint),
    };
  }

  /** The answers to refreshes. */
  refreshes() {
    return this.tokens.filter(({ grant }) => grant === 'refresh_token');
  }

  /** The refresh token that is to be used next. */
  refreshToken() {
    return this.tokens.filter(({ refresh_token }) => refresh_token).at(-1).refresh_token;
  }

  /** Asks for another token, as whoever kept a refresh token would. */
  async refresh(parameters) {
    const request = http.request({
      host: '127.0.0.1', port: this.#port, path: this.#endpoints.token, method: 'POST', agent: false,
      headers: { ...this.#forwarded(new URL(this.origin).host), 'content-type': 'application/x-www-form-urlencoded' },
    });
    request.end(new URLSearchParams({ grant_type: 'refresh_token', ...parameters }).toString());
    const [answer] = await once(request, 'response');
    answer.resume();
    return { status: answer.statusCode };
  }

  /** What went by, one line a request, without what is secret. */
  story() {
    return this.#story.join('\n');
  }

  #forwarded(host) {
    return { host, 'x-forwarded-proto': 'https', 'x-forwarded-host': host, 'x-forwarded-for': '127.0.0.1' };
  }

  async #pass(request, response) {
    if (this.#port === undefined) {
      response.writeHead(503).end();
      return;
    }
    const { pathname, searchParams } = new URL(request.url, this.origin);
    const { authorization, token, revocation } = this.#endpoints;
    const isForm = pathname === token || pathname === revocation;
    const passed = http.request({
      host: '127.0.0.1', port: this.#port, path: request.url, method: request.method, agent: false,
      headers: { ...passedOn(request.headers), ...this.#forwarded(request.headers.host) },
    });
    let form;
    if (isForm) {
      form = new URLSearchParams((await buffer(request)).toString());
      if (this.spoilVerifier && form.has('code_verifier')) {
        form.set('code_verifier', [...form.get('code_verifier')].reverse().join(''));
      }
      const body = form.toString();
      passed.setHeader('content-length', Buffer.byteLength(body));
      passed.end(body);
    } else {
      request.pipe(passed);
    }
    response.on('close', () => passed.destroy());
    const [answer] = await once(passed, 'response');
    if (pathname === authorization && searchParams.has('client_id')) {
      this.authorizations.push(Object.fromEntries(searchParams));
    }
    const { location } = answer.headers;
    if (location?.includes('gateway.example/')) {
      this.callbacks.push(new URL(location));
    }
    const headers = passedOn(answer.headers);
    let why = '';
    if (isForm) {
      let body = await buffer(answer);
      const { statusCode: status } = answer;
      // Both can be one endpoint, and only one of them grants.
      if (pathname === token && form.has('grant_type')) {
        const given = JSON.parse(body);
        this.tokens.push({ grant: form.get('grant_type'), status, ...given });
        if (status === 200 && this.shortLived > 0) {
          this.shortLived -= 1;
          body = Buffer.from(JSON.stringify({ ...given, expires_in: SHORT }));
        }
        why = status === 200 ? '' : ` ${given.error} ${given.error_description ?? ''}`;
      } else {
        const { error, error_description: words } = status === 200 ? {} : JSON.parse(body);
        this.revocations.push({ status, error });
        why = status === 200 ? '' : ` ${error} ${words ?? ''}`;
      }
      response.writeHead(answer.statusCode, { ...headers, 'content-length': body.length });
      response.end(body);
    } else {
      response.writeHead(answer.statusCode, headers);
      response.flushHeaders();
      answer.pipe(response);
    }
    this.#story.push(`${request.method} ${pathname}: ${answer.statusCode}${why}`);
  }
}
