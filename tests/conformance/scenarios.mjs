// Every client scenario of the suite: what it is to come to here, or why it is left out. One that is in neither list
// fails the run, so that an update of the suite is noticed.

/** The revisions of MCP that the suite plays them in. */
export const REVISIONS = ['2025-11-25', '2026-07-28'];

/**
 * Those that are run, each in every revision that it is of, and what is to come of it besides the suite's own verdict:
 * the person's call is answered (`called`), or envoy-cimd refuses with this label.
 */
export const RUN = {
  'auth/metadata-default': 'called',
  'auth/metadata-var1': 'called',
  'auth/metadata-var2': 'called',
  'auth/metadata-var3': 'called',
  'auth/basic-cimd': 'called',
  'auth/scope-from-www-authenticate': 'called',
  'auth/scope-from-scopes-supported': 'called',
  'auth/scope-omitted-when-undefined': 'called',
  'auth/scope-step-up': 'called',
  'auth/scope-retry-limit': 'no_more_scope',
  'auth/token-endpoint-auth-none': 'called',
  'auth/token-endpoint-auth-basic': 'called',
  'auth/token-endpoint-auth-post': 'called',
  'auth/pre-registration': 'called',
  'auth/resource-mismatch': 'authorization_server_unusable',
  'auth/offline-access-scope': 'called',
  'auth/offline-access-not-supported': 'called',
  'auth/authorization-server-migration': 'called',
  'auth/iss-supported': 'called',
  'auth/iss-not-advertised': 'called',
  'auth/iss-supported-missing': 'issuer_mismatch',
  'auth/iss-wrong-issuer': 'issuer_mismatch',
  'auth/iss-unexpected': 'issuer_mismatch',
  'auth/iss-normalized': 'issuer_mismatch',
  'auth/metadata-issuer-mismatch': 'authorization_server_unusable',
};

const NO_PERSON = 'a grant without a person; envoy-cimd has the authorization code grant alone';
const OLD_FALLBACK = 'the fallback of 2025-03-26 for servers without metadata, which later revisions took back';
const NOT_AUTHORIZATION = 'about the MCP client, which is anybody\'s; its server wants no token';

export const LEFT_OUT = {
  'auth/2025-03-26-oauth-metadata-backcompat': OLD_FALLBACK,
  'auth/2025-03-26-oauth-endpoint-fallback': OLD_FALLBACK,
  'auth/client-credentials-jwt': NO_PERSON,
  'auth/client-credentials-basic': NO_PERSON,
  'auth/enterprise-managed-authorization': NO_PERSON,
  'auth/wif-jwt-bearer': NO_PERSON,
  'auth/dpop': 'an extension; tokens are Bearer tokens here',
  'auth/dpop-nonce': 'an extension; tokens are Bearer tokens here',
  initialize: NOT_AUTHORIZATION,
  tools_call: NOT_AUTHORIZATION,
  'elicitation-sep1034-client-defaults': NOT_AUTHORIZATION,
  'sse-retry': NOT_AUTHORIZATION,
  'request-metadata': NOT_AUTHORIZATION,
  'sep-2322-client-request-state': NOT_AUTHORIZATION,
  'http-standard-headers': NOT_AUTHORIZATION,
  'http-custom-headers': NOT_AUTHORIZATION,
  'http-invalid-tool-headers': NOT_AUTHORIZATION,
  'json-schema-ref-no-deref': NOT_AUTHORIZATION,
  'json-schema-2020-12-preservation': NOT_AUTHORIZATION,
};
