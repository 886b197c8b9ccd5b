// Renders the chart with the real helm: `node chart.mjs ROOT HELM OUT`, with --renew to write anew what is committed.
//
// Every example of the chart, and every file of tests/manifests/values, becomes OUT/NAME.yaml, for which objects there
// must be, that they hold together, and which bytes they are where that is committed. Every row of
// tests/manifests/refused.yaml must be refused in its words.

import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import YAML from 'yaml';

const [root, helm, out] = process.argv.slice(2);
const renew = process.argv.includes('--renew');
const chart = join(root, 'envoy/helm');
const tests = join(root, 'tests/manifests');
/** The namespace that each is installed into where it is not the usual one. */
const NAMESPACES = { 'envoy-gateway': 'envoy-gateway-system', 'gateway-choreographer': 'envoy-gateway-system' };
/** What is committed, and what it is made of. */
const COMMITTED = { 'envoy/kubernetes/envoy-cimd.yaml': 'service', 'envoy/gateway/sidecar.yaml': 'envoy-gateway' };

const complaints = [];
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const values = [join(chart, 'examples'), join(tests, 'values')].flatMap((folder) =>
  readdirSync(folder).filter((name) => name.endsWith('.yaml')).map((name) => join(folder, name)),
);
const expected = read(join(tests, 'rendered.yaml'));
await each(values, render);
for (const name of Object.keys(expected)) {
  if (!values.some((path) => nameOf(path) === name)) complaints.push(`rendered.yaml: there are no values ${name}`);
}
for (const [path, name] of Object.entries(COMMITTED)) compare(path, name);
const set = new Set(values.flatMap((path) => pathsOf(read(path))));
const schema = JSON.parse(readFileSync(join(chart, 'values.schema.json'), 'utf8'));
for (const path of known(schema)) if (!set.has(path)) complaints.push(`${path}: no file of values sets it`);
const refused = read(join(tests, 'refused.yaml'));
await each(refused, refuse);
console.log(`${values.length} renderings of the chart; ${refused.length} wrong values refused`);
complaints.forEach((complaint) => console.error(complaint));
process.exit(complaints.length > 0 ? 1 : 0);

async function render(path) {
  const name = nameOf(path);
  const lint = await run(['lint', '--strict', '--quiet', chart, '-f', path]);
  if (lint.failed) complaints.push(`${path}: helm lint: ${lint.text}`);
  // As `helm install` would, with what it tells people.
  const { failed, text } = await run(['install', '--dry-run=client', ...installed(name), '-f', path]);
  if (failed) return complaints.push(`${path}: ${text}`);
  const [, manifest, notes] = /\nMANIFEST:\n(.*)\nNOTES:\n(.*)$/s.exec(text);
  writeFileSync(join(out, `${name}.yaml`), manifest);
  writeFileSync(join(out, `${name}.txt`), notes);
  const objects = YAML.parseAllDocuments(manifest).map((document) => document.toJS()).filter((object) => object);
  const found = objects.map(({ kind, metadata: { name }, spec }) => `${kind} ${name}${flows(kind, spec)}`);
  const wanted = Object.entries(expected[name] ?? {}).flatMap(([kind, names]) => names.map((of) => `${kind} ${of}`));
  if (found.sort().join() !== wanted.sort().join()) {
    complaints.push(`${path}: not as in rendered.yaml:\n  ${found.join('\n  ')}`);
  }
  complaints.push(...[...loose(objects), ...lax(objects)].map((complaint) => `${path}: ${complaint}`));
}

/** Of a NetworkPolicy, which ports are open to somebody, and which it lets out to, a word for each rule. */
function flows(kind, spec) {
  if (kind !== 'NetworkPolicy') return '';
  const ports = (rules) => rules.map(({ ports }) => ports.map(({ port }) => port).join('+')).join(' ');
  return ` (${ports(spec.ingress)} > ${ports(spec.egress)})`;
}

function installed(name) {
  return ['envoy-cimd', chart, '--namespace', NAMESPACES[name] ?? 'envoy-cimd'];
}

/** What a pod has or may, and should not: the profile "restricted" of Pod Security, and who has which secrets. */
function lax(objects) {
  const complaints = [];
  const podOf = ({ kind, spec }) => {
    if (kind === 'Deployment') return spec.template.spec;
    if (kind === 'EnvoyProxy') return spec.provider.kubernetes.envoyDeployment.patch.value.spec.template.spec;
  };
  const pods = objects.flatMap((object) => {
    const pod = podOf(object);
    return pod === undefined ? [] : [{ pod, name: `${object.kind} ${object.metadata.name}`, kind: object.kind }];
  });
  const ours = ({ pod }) => containersOf(pod).find(({ name }) => name === 'envoy-cimd');
  const alone = pods.length === 1;
  for (const of of pods) {
    const { pod, name } = of;
    for (const container of containersOf(pod)) {
      // Envoy Gateway's own container is Envoy Gateway's.
      if (container.image === undefined) continue;
      const context = { ...pod.securityContext, ...container.securityContext };
      const isRestricted =
        context.runAsNonRoot === true && context.runAsUser > 0 && context.seccompProfile?.type === 'RuntimeDefault' &&
        context.allowPrivilegeEscalation === false && context.privileged !== true &&
        context.readOnlyRootFilesystem === true && context.capabilities?.drop?.join() === 'ALL';
      if (!isRestricted) complaints.push(`${name}: ${container.name} is not restricted`);
      if (container.resources?.limits?.memory === undefined && container.resources?.requests === undefined) {
        complaints.push(`${name}: ${container.name} takes what it likes`);
      }
    }
    if (of.kind === 'Deployment' && pod.automountServiceAccountToken !== false) {
      complaints.push(`${name}: has a token of the cluster`);
    }
    const { args, env, volumeMounts } = ours(of);
    const [command] = args;
    const given = [...(env ?? []).map(({ name }) => name), ...volumeMounts.map(({ mountPath }) => mountPath)];
    const secrets = {
      '/etc/envoy-cimd/state-keys': command === 'serve',
      '/etc/envoy-cimd/encryption-keys': alone || command === 'choreographer',
    };
    for (const [secret, isNeeded] of Object.entries(secrets)) {
      if (given.includes(secret) !== isNeeded) complaints.push(`${name}: ${isNeeded ? 'lacks' : 'has'} ${secret}`);
    }
    const ofExchange = given.filter((one) => one === 'ENVOY_CIMD_STORE' || /^\/etc\/envoy-cimd\/clients/.test(one));
    if (!alone && command === 'serve' && ofExchange.length > 0) complaints.push(`${name}: has ${ofExchange}`);
  }
  return complaints;
}

function containersOf(pod) {
  return [...pod.containers, ...(pod.initContainers ?? [])];
}

/** What refers to something that is not there. Schemas do not see that. */
function loose(objects) {
  const complaints = [];
  const of = (kind) => objects.filter((object) => object.kind === kind);
  const names = (kind) => of(kind).map((object) => object.metadata.name);
  const pods = of('Deployment').map(({ spec }) => spec.template);
  const selected = ({ matchLabels }) =>
    pods.filter(({ metadata }) => Object.entries(matchLabels).every(([key, value]) => metadata.labels[key] === value));
  const ports = ({ spec }) => containersOf(spec).flatMap(({ ports }) => (ports ?? []).map(({ name }) => name));
  const complain = (object, what) => complaints.push(`${object.kind} ${object.metadata.name}: ${what}`);

  for (const object of of('Service')) {
    const pods = selected({ matchLabels: object.spec.selector });
    if (pods.length === 0) complain(object, 'selects no pod');
    for (const { targetPort } of object.spec.ports) {
      if (!pods.every((pod) => ports(pod).includes(targetPort))) complain(object, `no port ${targetPort}`);
    }
  }
  for (const object of of('PodDisruptionBudget')) {
    if (selected(object.spec.selector).length !== 1) complain(object, 'selects not one Deployment');
  }
  for (const object of of('NetworkPolicy')) {
    const pods = selected(object.spec.podSelector);
    if (pods.length !== 1) complain(object, 'selects not one Deployment');
    // Nobody and nothing named is everybody and everything.
    for (const { from, ports: named } of object.spec.ingress) {
      // Envoy's own clients are people's.
      const isForEverybody = from === undefined && named?.map(({ port }) => port).join() === 'https';
      if ((!from?.length && !isForEverybody) || !named?.length) complain(object, 'lets everybody in');
      for (const { port } of named ?? []) {
        if (!pods.every((pod) => ports(pod).includes(port))) complain(object, `no port ${port}`);
      }
    }
    for (const { to, ports } of object.spec.egress) {
      if (!to?.length || !ports?.length) complain(object, 'lets everything out');
    }
  }
  for (const object of of('ServiceMonitor')) {
    const services = of('Service').filter(({ metadata }) =>
      Object.entries(object.spec.selector.matchLabels).every(([key, value]) => metadata.labels[key] === value),
    );
    if (services.length !== 1) complain(object, 'selects not one Service');
    const names = services.flatMap(({ spec }) => spec.ports.map(({ name }) => name));
    if (!object.spec.endpoints.every(({ port }) => names.includes(port))) complain(object, 'no such port');
  }
  for (const object of of('Deployment')) {
    const { spec, metadata } = object.spec.template;
    if (selected(object.spec.selector).length !== 1) complain(object, 'selects more than its own pods');
    const account = spec.serviceAccountName;
    if (account !== 'default' && !names('ServiceAccount').includes(account)) {
      complain(object, `no ServiceAccount ${account}`);
    }
    const volumes = spec.volumes.map(({ name }) => name);
    const mounted = containersOf(spec).flatMap(({ volumeMounts }) => volumeMounts);
    for (const { name } of mounted) if (!volumes.includes(name)) complain(object, `no volume ${name}`);
    for (const name of volumes) {
      if (!mounted.some((mount) => mount.name === name)) complain(object, `nobody mounts ${name}`);
    }
    for (const { configMap } of spec.volumes) {
      if (configMap?.name.startsWith('envoy-cimd') && !names('ConfigMap').includes(configMap.name)) {
        complain(object, `no ConfigMap ${configMap.name}`);
      }
    }
    if (Object.values(metadata.annotations).some((value) => typeof value !== 'string')) complain(object, 'annotations');
  }
  return complaints;
}

async function compare(path, name) {
  const rendered = readFileSync(join(out, `${name}.yaml`), 'utf8').replace(/^---\n/, '');
  const header =
    `# Made of envoy/helm/examples/${name}.yaml by the chart envoy/helm: change those, and \`make manifests-renew\`\n` +
    '# writes it anew. The Secrets to make first: docs/deploy.md, "Helm".\n';
  const text = header + rendered.trimEnd() + '\n';
  if (renew) return writeFileSync(join(root, path), text);
  if (readFileSync(join(root, path), 'utf8') !== text) {
    complaints.push(`${path}: is not what the chart makes of ${name}.yaml: see \`make manifests-renew\``);
  }
}

async function refuse({ of, values, says }, index) {
  const path = join(out, `refused-${index}.values`);
  writeFileSync(path, YAML.stringify(values));
  const base = of === undefined ? [] : ['-f', join(chart, `examples/${of}.yaml`)];
  const { failed, text } = await run(['template', ...installed(of), ...base, '-f', path]);
  if (!failed) complaints.push(`refused.yaml: is taken: ${JSON.stringify(values)}`);
  else if (!text.includes(says)) complaints.push(`refused.yaml: ${JSON.stringify(values)}: not so, but:\n${text}`);
}

async function run(args) {
  try {
    const { stdout } = await promisify(execFile)(helm, args, { maxBuffer: 1 << 24 });
    return { failed: false, text: stdout };
  } catch (error) {
    return { failed: true, text: `${error.stdout}${error.stderr}` };
  }
}

/** The paths of all that is the chart's own in the schema; `[]` stands for an entry of a list. */
function known(part) {
  if (part.items !== undefined) return known(part.items).map((path) => `[]${path}`);
  return Object.entries(part.properties ?? {}).flatMap(([key, value]) => {
    const below = known(value).map((path) => `.${key}${path}`);
    return below.length > 0 ? below : [`.${key}`];
  });
}

/** The paths of all that is in a value, each with those that lead there. */
function pathsOf(value) {
  if (typeof value !== 'object' || value === null) return [];
  const isList = Array.isArray(value);
  return Object.entries(value).flatMap(([key, value]) => {
    const step = isList ? '[]' : `.${key}`;
    return [step, ...pathsOf(value).map((path) => step + path)];
  });
}

/** All at once, four at a time. */
async function each(list, work) {
  const entries = [...list.entries()];
  const worker = async () => {
    for (let next = entries.shift(); next !== undefined; next = entries.shift()) await work(next[1], next[0]);
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
}

function nameOf(path) {
  return basename(path, '.yaml');
}

function read(path) {
  return YAML.parse(readFileSync(path, 'utf8'));
}
