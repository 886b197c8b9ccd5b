// Every client scenario of the suite: what it is to come to here, or why it is left out. One that is in neither list
// fails the run, so that an update of the suite is noticed.

/** The revisions of MCP that the suite plays them in. */
export const REVISIONS = ['2025-11-25', '2026-07-28'];

/** The kinds of client that a route can be, as the table calls them. */
export const DOCUMENT = 'document';
export const REGISTERED = 'registered';
export const PRE_REGISTERED = 'pre-registered';

/**
 * Those that are run, each in every revision that it is of and as each of these clients, and what is to come of it
 * besides the suite's own verdict: the person's call is answered (`called`), or envoy-cimd refuses with this label.
 *
 * A scenario is played by document where it lets a client be one, and by a registered one too where it looks at the
 * registration or at how a client authenticates.
 */
export const RUN = {
  'auth/metadata-default': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/metadata-var1': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/metadata-var2': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/metadata-var3': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/basic-cimd': { clients: [DOCUMENT], outcome: 'called' },
  'auth/scope-from-www-authenticate': { clients: [DOCUMENT], outcome: 'called' },
  'auth/scope-from-scopes-supported': { clients: [DOCUMENT], outcome: 'called' },
  'auth/scope-omitted-when-undefined': { clients: [DOCUMENT], outcome: 'called' },
  'auth/scope-step-up': { clients: [DOCUMENT], outcome: 'called' },
  'auth/scope-retry-limit': { clients: [DOCUMENT], outcome: 'no_more_scope' },
  'auth/token-endpoint-auth-none': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/token-endpoint-auth-basic': { clients: [REGISTERED], outcome: 'called' },
  'auth/token-endpoint-auth-post': { clients: [REGISTERED], outcome: 'called' },
  'auth/pre-registration': { clients: [PRE_REGISTERED], outcome: 'called' },
  'auth/resource-mismatch': { clients: [DOCUMENT], outcome: 'authorization_server_unusable' },
  'auth/offline-access-scope': { clients: [DOCUMENT], outcome: 'called' },
  'auth/offline-access-not-supported': { clients: [DOCUMENT], outcome: 'called' },
  'auth/authorization-server-migration': { clients: [DOCUMENT, REGISTERED], outcome: 'called' },
  'auth/iss-supported': { clients: [DOCUMENT], outcome: 'called' },
  'auth/iss-not-advertised': { clients: [DOCUMENT], outcome: 'called' },
  'auth/iss-supported-missing': { clients: [DOCUMENT], outcome: 'issuer_mismatch' },
  'auth/iss-wrong-issuer': { clients: [DOCUMENT], outcome: 'issuer_mismatch' },
  'auth/iss-unexpected': { clients: [DOCUMENT], outcome: 'issuer_mismatch' },
  'auth/iss-normalized': { clients: [DOCUMENT], outcome: 'issuer_mismatch' },
  'auth/metadata-issuer-mismatch': { clients: [DOCUMENT], outcome: 'authorization_server_unusable' },
};

const NEVER_REGISTERS = 'wants to see a registration, and a document takes none';

/** Single checks that must fail where a scenario is played by document, and why. One that passes fails the run. */
export const EXPECTED_FAILURES = {
  'auth/metadata-default:client-registration': NEVER_REGISTERS,
  'auth/metadata-var1:client-registration': NEVER_REGISTERS,
  'auth/metadata-var2:client-registration': NEVER_REGISTERS,
  'auth/metadata-var3:client-registration': NEVER_REGISTERS,
  'auth/authorization-server-migration:sep-2352-reregister-on-as-change': NEVER_REGISTERS,
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
