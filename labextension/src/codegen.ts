/** Code that the front end gives away: calls of endpoints, and lines to type. Pure functions. */
import type { ISignature } from './api';

/** Text as a Python literal: JSON's escapes are Python's. */
function literal(text: string): string {
  return JSON.stringify(text);
}

/** `digits-prod` → `DIGITS_PROD_KEY`: where the call looks for the key. Keys themselves are never in code. */
export function keyVariable(endpoint: string): string {
  return `${endpoint.toUpperCase().replace(/[^A-Z0-9]+/g, '_')}_KEY`;
}

interface IColumn {
  name?: string;
  type?: string;
  'tensor-spec'?: { dtype?: string; shape?: number[] };
}

function example(type: string | undefined): unknown {
  switch (type) {
    case 'string':
      return 'text';
    case 'boolean':
      return true;
    case 'integer':
    case 'long':
      return 0;
    case 'datetime':
      return '2026-01-31T12:00:00';
    default:
      return 0.0;
  }
}

function zeros(shape: number[]): unknown {
  const [size, ...rest] = shape;
  return size === undefined ? 0.0 : Array.from({ length: size }, () => zeros(rest));
}

/** How many numbers an example may have before it is cut to a hint. */
const MAX_EXAMPLE = 256;

/** A request body that fits the model's signature; one row of made-up values. */
export function exampleBody(signature: ISignature | null | undefined): unknown {
  const inputs = signature?.inputs;
  const columns: IColumn[] = Array.isArray(inputs) ? inputs : [];
  const tensor = columns.length === 1 && !columns[0].name ? columns[0]['tensor-spec'] : undefined;
  if (tensor?.shape) {
    const shape = tensor.shape.map((size, i) => (i === 0 || size < 0 ? 1 : size));
    const count = shape.reduce((a, b) => a * b, 1);
    return { inputs: count <= MAX_EXAMPLE ? zeros(shape) : [] };
  }
  if (columns.length && columns.every(column => column.name)) {
    return {
      dataframe_split: {
        columns: columns.map(column => column.name),
        data: [columns.map(column => example(column.type))]
      }
    };
  }
  return { inputs: [[0.0]] };
}

/** JSON on one line, as Python: only `true`, `false` and `null` differ. */
function python(value: unknown): string {
  if (Array.isArray(value)) {
    return `[${value.map(python).join(', ')}]`;
  }
  if (typeof value === 'object' && value !== null) {
    const items = Object.entries(value).map(([key, item]) => `${literal(key)}: ${python(item)}`);
    return `{${items.join(', ')}}`;
  }
  if (value === true || value === false) {
    return value ? 'True' : 'False';
  }
  return value === null || value === undefined ? 'None' : JSON.stringify(value);
}

/** A call with nothing but Python's standard library. */
export function pythonCall(
  endpoint: string,
  url: string,
  signature?: ISignature | null,
  body: unknown = exampleBody(signature)
): string {
  return [
    'import json',
    'import os',
    'import urllib.request',
    '',
    'request = urllib.request.Request(',
    `    ${literal(url)},`,
    `    data=json.dumps(${python(body)}).encode(),`,
    '    headers={',
    `        "Authorization": "Bearer " + os.environ[${literal(keyVariable(endpoint))}],`,
    '        "Content-Type": "application/json",',
    '    },',
    ')',
    'print(json.load(urllib.request.urlopen(request)))'
  ].join('\n');
}

/** Text as one word of a POSIX shell. */
function shellWord(text: string): string {
  return `'${text.replace(/'/g, `'\\''`)}'`;
}

export function curlCall(
  endpoint: string,
  url: string,
  signature?: ISignature | null,
  body: unknown = exampleBody(signature)
): string {
  return [
    `curl ${shellWord(url)} \\`,
    `  -H "Authorization: Bearer $${keyVariable(endpoint)}" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d ${shellWord(JSON.stringify(body))}`
  ].join('\n');
}

/** The call by magic, which needs no key. */
export function magicCall(endpoint: string): string {
  return `%mlops invoke ${endpoint} X[:3]`;
}
