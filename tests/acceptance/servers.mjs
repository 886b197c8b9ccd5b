// The servers of the run. What each needs to be told is in its script; what was learnt of it is a row of the table.

/**
 * `id` names it here and its route; `npm` or `pypi` is the package whose version counts. Where `mcp` is `own`, it has
 * an MCP server of its own at /mcp; before the others stands one of the official SDK, which checks tokens by the keys
 * at `jwks`, or asks about them at `introspection`. One with `idp`, a path, has people sign in at the company's
 * identity provider, and come back there. One that is `proxied` takes the proxy from its environment, and these
 * variables with it.
 */
export const SERVERS = [
  {
    id: 'oidc-provider',
    name: '[oidc-provider](https://www.npmjs.com/package/oidc-provider)',
    npm: 'oidc-provider',
    script: 'oidc_provider_server.mjs',
    mcp: 'sdk',
    jwks: (issuer) => `${issuer}/jwks`,
  },
  {
    id: 'better-auth',
    name: '[better-auth](https://www.npmjs.com/package/better-auth) with its `oauth-provider` and `cimd`',
    npm: 'better-auth',
    script: 'better_auth_server.mjs',
    issuerPath: '/api/auth',
    mcp: 'sdk',
    jwks: (issuer) => `${issuer}/jwks`,
  },
  {
    id: 'workers-oauth-provider',
    name: '[workers-oauth-provider](https://www.npmjs.com/package/@cloudflare/workers-oauth-provider) of Cloudflare',
    npm: '@cloudflare/workers-oauth-provider',
    script: 'workers_server.mjs',
    mcp: 'own',
  },
  {
    id: 'django-oauth-toolkit',
    name: '[django-oauth-toolkit](https://pypi.org/project/django-oauth-toolkit/)',
    pypi: 'django-oauth-toolkit',
    script: 'django_server.py',
    mcp: 'sdk',
    introspection: (issuer) => `${issuer}/introspect/`,
  },
  {
    id: 'fastmcp-typescript',
    name: '[fastmcp](https://www.npmjs.com/package/fastmcp) of npm, `OAuthProxy`',
    npm: 'fastmcp',
    script: 'fastmcp_server.mjs',
    idp: '/oauth/callback',
    mcp: 'own',
  },
  {
    id: 'fastmcp',
    name: '[FastMCP](https://pypi.org/project/fastmcp/) of PyPI, `OAuthProxy`',
    pypi: 'fastmcp',
    script: 'fastmcp_server.py',
    idp: '/auth/callback',
    mcp: 'own',
    proxied: { FASTMCP_SSRF_TRUST_PROXY: 'true' },
  },
  {
    id: 'gotauth',
    name: '[gotauth](https://pypi.org/project/gotauth/)',
    pypi: 'gotauth',
    script: 'gotauth_server.py',
    issuerPath: '/api/auth',
    mcp: 'sdk',
    jwks: (issuer) => `${issuer}/oauth2/jwks`,
  },
];
