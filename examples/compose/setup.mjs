// What must exist before anything starts, in a volume for each that reads it: certificates of the hosts and of the
// parts, from an authority whose key is forgotten at once, and the keys of states and of the store.
//
// What is there stays, so `docker compose up` can be repeated; `docker compose down --volumes` forgets it.

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, chownSync, copyFileSync, existsSync, mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Each volume: the user that reads it, the certificates in it with their names, and the key files. */
const VOLUMES = {
  envoy: { user: 101, certificates: { public: ['notes.localhost', 'tickets.localhost'], peer: ['envoy'] } },
  processor: { user: 65532, certificates: { peer: ['envoy-cimd'] }, keys: ['state.keys'] },
  choreographer: { user: 65532, certificates: { peer: ['choreographer'] }, keys: ['encryption.keys'] },
  notes: { user: 1000, certificates: { public: ['login.notes.localhost'] } },
  tickets: { user: 1000, certificates: { public: ['login.tickets.localhost'] } },
};
const CA = '/volumes/ca/ca.pem';

if (existsSync(CA)) {
  console.log('certificates and keys are there');
} else {
  const folder = mkdtempSync(join(tmpdir(), 'authority-'));
  // Not the system's configuration: it would make an authority of every certificate.
  const config = join(folder, 'openssl.cnf');
  writeFileSync(config, '[req]\ndistinguished_name = name\n[name]\n');
  const authority = join(folder, 'ca');
  certify(authority, config, 'envoy-cimd demo authority', ['basicConstraints=critical,CA:TRUE']);
  for (const [name, { user, certificates, keys = [] }] of Object.entries(VOLUMES)) {
    const volume = join('/volumes', name);
    for (const [file, hosts] of Object.entries(certificates)) {
      const names = hosts.map((host) => `DNS:${host}`).join();
      const extensions = [`subjectAltName=${names}`, 'basicConstraints=critical,CA:FALSE'];
      certify(join(volume, file), config, hosts[0], extensions, authority);
    }
    for (const file of keys) {
      // As `envoy-cimd keygen` prints it.
      writeFileSync(join(volume, file), `${randomBytes(32).toString('base64url')}\n`);
    }
    for (const file of readdirSync(volume)) {
      chmodSync(join(volume, file), 0o600);
      chownSync(join(volume, file), user, user);
    }
  }
  // Last, since it says that all the rest is there.
  copyFileSync(`${authority}.crt`, CA);
  console.log('made certificates and keys');
}

/** Makes a key and its certificate, signed by the authority, or by itself where none is given. */
function certify(file, config, name, extensions, authority) {
  execFileSync('openssl', [
    'req', '-x509', '-config', config, '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc',
    '-days', '365', '-subj', `/CN=${name}`, ...extensions.flatMap((extension) => ['-addext', extension]),
    ...(authority ? ['-CA', `${authority}.crt`, '-CAkey', `${authority}.key`] : []),
    '-keyout', `${file}.key`, '-out', `${file}.crt`,
  ], { stdio: 'pipe' });
}
