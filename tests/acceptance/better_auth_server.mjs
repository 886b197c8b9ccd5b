// better-auth with its plugins for OAuth and for documents. Pages to sign in and to consent are the application's, and
// these have no script; who goes out for a document is the application's too, here through the proxy.

import http from 'node:http';

import { cimd } from '@better-auth/cimd';
import { oauthProvider, oauthProviderAuthServerMetadata } from '@better-auth/oauth-provider';
import { betterAuth } from 'better-auth';
import { memoryAdapter } from 'better-auth/adapters/memory';
import { getAuthTables } from 'better-auth/db';
import { toNodeHandler } from 'better-auth/node';
import { jwt } from 'better-auth/plugins';
import { ProxyAgent, fetch } from 'undici';

import { says } from './says.mjs';

const { ISSUER, RESOURCE, EGRESS_PROXY } = process.env;
const { origin, pathname: base } = new URL(ISSUER);
const dispatcher = new ProxyAgent(EGRESS_PROXY);
const PERSON = { email: 'somebody@example.com', password: 'a password of somebody', name: 'Somebody' };

const options = {
  baseURL: origin,
  basePath: base,
  secret: 'a secret of this run, and of no other',
  emailAndPassword: { enabled: true },
  disabledPaths: ['/token'],
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  plugins: [
    jwt(),
    oauthProvider({
      loginPage: '/sign-in',
      consentPage: '/consent',
      scopes: ['openid', 'offline_access', 'mcp'],
      resources: [RESOURCE],
      clientRegistrationDefaultResources: [RESOURCE],
    }),
    cimd({
      fetchClientMetadataResource: (url, init) => fetch(url, { ...init, dispatcher }),
      metadataProfile: 'mcp-2026-07-28',
    }),
  ],
};
const tables = Object.fromEntries(Object.values(getAuthTables(options)).map(({ modelName }) => [modelName, []]));
const auth = betterAuth({ ...options, database: memoryAdapter(tables) });
await auth.api.signUpEmail({ body: PERSON });

const handler = toNodeHandler(auth);
const describe = oauthProviderAuthServerMetadata(auth);

/** What a page of a browser asks of it; where the person goes then. */
async function ask(path, body, { headers }, response) {
  const answer = await auth.handler(new Request(ISSUER + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', origin, cookie: headers.cookie ?? '' },
    body: JSON.stringify(body),
  }));
  const { url } = await answer.json();
  response.writeHead(303, { location: url, 'set-cookie': answer.headers.getSetCookie() }).end();
}

const pages = {
  '/sign-in': (oauth_query) => ['/sign-in/email', { email: PERSON.email, password: PERSON.password, oauth_query }],
  '/consent': (oauth_query) => ['/oauth2/consent', { accept: true, oauth_query }],
};

says(http.createServer(async (request, response) => {
  const { pathname, search } = new URL(request.url, origin);
  const page = pages[pathname];
  if (page && request.method === 'POST') {
    request.resume();
    await ask(...page(search.slice(1)), request, response);
  } else if (page) {
    const action = request.url.replaceAll('&', '&amp;');
    response.setHeader('content-type', 'text/html');
    response.end(`<!doctype html><form method="post" action="${action}"><button>Go on</button></form>`);
  } else if (pathname === `/.well-known/oauth-authorization-server${base}`) {
    const described = await describe(new Request(origin + request.url));
    response.setHeader('content-type', 'application/json').end(await described.text());
  } else {
    await handler(request, response);
  }
}));
