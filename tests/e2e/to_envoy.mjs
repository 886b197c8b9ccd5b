// How the scripts' programs reach Envoy, since not every resolver knows *.localhost.

import { Agent, buildConnector } from 'undici';

/** Speaks to the Envoy at 127.0.0.1:`port` whatever host is asked for, over HTTP/1.1 or over HTTP/2. */
export function agent({ ca, port, version }) {
  const connect = buildConnector({ ca, allowH2: version === 2 });
  return new Agent({
    allowH2: version === 2,
    // A stream may be silent for as long as it likes.
    bodyTimeout: 0,
    headersTimeout: 0,
    connect: (asked, done) => connect({
      ...asked, hostname: '127.0.0.1', host: '127.0.0.1', port, servername: asked.hostname,
    }, done),
  });
}
