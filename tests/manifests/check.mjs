// Holds the manifests of folders to the schemas of their kinds: `node check.mjs FOLDER…`, with --wrong to demand that each
// of their files is refused.
//
// The schemas come as JavaScript validators, which know patterns and overlook unknown fields, and as TypeScript types,
// which know no patterns and refuse unknown fields in a literal. Both are asked: every document is written out as such a
// literal, one a line.

import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import YAML from 'yaml';

const wrong = process.argv.includes('--wrong');
const folders = process.argv.slice(2).filter((argument) => argument !== '--wrong');
const files = folders.flatMap(manifests);
const documents = files.flatMap((file) => read(file)).flatMap(withWhatIsInIt);
const known = documents.filter(({ module }) => module !== undefined);
const errors = [...(await refusedByValidator()), ...refusedByTypes()];

if (wrong) {
  const taken = files.filter((file) => !errors.some((error) => error.startsWith(`${file}: `)));
  finish(taken.map((file) => `${file}: is taken, though it is wrong`));
} else {
  const unchecked = new Set(documents.filter(({ module }) => module === undefined).map(({ value }) => value.kind));
  console.log(`${known.length} documents checked; no package has the schema of ${[...unchecked].sort().join(', ')}`);
  finish(errors);
}

/** The manifests of a folder, but for what the chart makes them of. */
function manifests(folder) {
  const names = readdirSync(folder, { recursive: true }).filter((name) => name.endsWith('.yaml')).sort();
  return names.map((name) => join(folder, name)).filter((path) => !path.includes('envoy/helm/'));
}

/** The documents of a file that are Kubernetes objects. */
function read(file) {
  return YAML.parseAllDocuments(readFileSync(file, 'utf8'))
    .map((document) => {
      if (document.errors.length > 0) throw new Error(`${file}: ${document.errors[0].message}`);
      return document.toJS();
    })
    .filter((value) => value?.kind !== undefined)
    .map((value) => ({ file, value, kind: value.kind, module: moduleOf(value.apiVersion) }));
}

function moduleOf(apiVersion) {
  const group = apiVersion.split('/')[0];
  if (group === 'gateway.envoyproxy.io') return undefined;
  if (group === 'monitoring.coreos.com') return `@kubernetes-models/prometheus-operator/${apiVersion}`;
  if (group === 'gateway.networking.k8s.io') return `@kubernetes-models/gateway-api/${apiVersion}`;
  if (group.endsWith('.istio.io')) return `@kubernetes-models/istio/${apiVersion}`;
  return `kubernetes-models/${apiVersion}`;
}

/** An EnvoyProxy has a piece of a Deployment in it. */
function withWhatIsInIt(document) {
  const template = document.value.spec?.provider?.kubernetes?.envoyDeployment?.patch?.value?.spec?.template;
  if (template === undefined) return [document];
  return [document, { file: document.file, value: template, kind: 'PodTemplateSpec', module: 'kubernetes-models/v1' }];
}

async function refusedByValidator() {
  const errors = [];
  for (const { file, value, kind, module } of known) {
    const Kind = (await import(module))[kind];
    if (Kind === undefined) {
      errors.push(`${file}: ${kind}: ${module} has no such kind`);
      continue;
    }
    try {
      new Kind(value).validate();
    } catch (error) {
      errors.push(`${file}: ${kind}: ${error.message}`);
    }
  }
  return errors;
}

function refusedByTypes() {
  const literals = known.map(
    ({ value, kind, module }, index) =>
      `export const d${index}: import('${module}').I${kind} = ${JSON.stringify(value)};`,
  );
  const source = join(import.meta.dirname, 'documents.ts');
  writeFileSync(source, literals.join('\n'));
  const program = ts.createProgram([source], {
    module: ts.ModuleKind.NodeNext,
    noEmit: true,
    skipLibCheck: true,
    strict: true,
    target: ts.ScriptTarget.ES2022,
    types: [],
  });
  return ts.getPreEmitDiagnostics(program).map((diagnostic) => {
    const line = diagnostic.file?.getLineAndCharacterOfPosition(diagnostic.start).line;
    const { file, kind } = known[line] ?? { file: 'TypeScript', kind: 'its settings' };
    return `${file}: ${kind}: ${ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n  ')}`;
  });
}

function finish(complaints) {
  complaints.forEach((complaint) => console.error(complaint));
  process.exit(complaints.length > 0 ? 1 : 0);
}
