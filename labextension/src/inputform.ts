/** A model's signature as a form: fields, what they start with, and the request that they make. Pure functions. */
import { exampleBody } from './codegen';
import type { ISignature } from './resources';

export type FieldKind = 'number' | 'integer' | 'text' | 'boolean' | 'datetime' | 'json';

export interface IField {
  /** Unique in its form. */
  key: string;
  /** The name of the column, input or parameter; empty where the model has one without a name. */
  name: string;
  kind: FieldKind;
  /** As the signature names it, such as `long` or `float64 (-1, 64)`. */
  type: string;
  required: boolean;
}

/** `columns`: one row of a table. `tensors`: arrays. `none`: only JSON can be typed. */
export interface IForm {
  mode: 'columns' | 'tensors' | 'none';
  fields: IField[];
  params: IField[];
}

/** Why a field cannot be sent. */
export type FieldError = 'missing' | 'number' | 'integer' | 'json';

export interface IPayload {
  /** The request as JSON; null while a field has an error. */
  body: string | null;
  errors: Record<string, FieldError>;
}

export type Values = Readonly<Record<string, string>>;

interface IInput {
  name?: string | null;
  type?: string;
  required?: boolean;
  dtype?: string;
  default?: unknown;
  shape?: number[] | null;
  'tensor-spec'?: { dtype?: string; shape?: number[] };
}

const KINDS: Record<string, FieldKind> = {
  double: 'number',
  float: 'number',
  integer: 'integer',
  long: 'integer',
  string: 'text',
  binary: 'text',
  boolean: 'boolean',
  datetime: 'datetime'
};

/** Types in which a missing value has a place. */
const NULLABLE = new Set(['double', 'float', 'datetime']);

function inputs(value: unknown): IInput[] {
  return Array.isArray(value)
    ? value.filter((item): item is IInput => typeof item === 'object' && item !== null)
    : [];
}

export function formOf(signature: ISignature | null | undefined): IForm {
  const items = inputs(signature?.inputs);
  const params = inputs(signature?.params).map((item): IField => ({
    key: `param:${item.name}`,
    name: String(item.name ?? ''),
    kind: item.shape ? 'json' : (KINDS[item.type ?? item.dtype ?? ''] ?? 'json'),
    type: item.type ?? item.dtype ?? '',
    required: false
  }));
  if (items.length && items.every(item => item['tensor-spec'])) {
    const fields = items.map((item, i): IField => {
      const { dtype = '', shape = [] } = item['tensor-spec']!;
      const type = `${dtype} (${shape.join(', ')})`;
      return { key: `input:${i}`, name: item.name ?? '', kind: 'json', type, required: true };
    });
    return { mode: 'tensors', fields, params };
  }
  if (items.length && items.every(item => item.name !== undefined && item.name !== null)) {
    const fields = items.map((item, i): IField => ({
      key: `input:${i}`,
      name: String(item.name),
      kind: KINDS[item.type ?? ''] ?? 'json',
      type: item.type ?? '',
      required: item.required ?? true
    }));
    return { mode: 'columns', fields, params };
  }
  return { mode: 'none', fields: [], params };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The same request with its first row only, in the form in which it is. */
function firstRow(request: Record<string, unknown>): Record<string, unknown> {
  const cut = (value: unknown) => (Array.isArray(value) ? value.slice(0, 1) : value);
  const split = request.dataframe_split;
  if (isObject(split)) {
    return { ...request, dataframe_split: { columns: split.columns, data: cut(split.data) } };
  }
  if (request.dataframe_records) {
    return { ...request, dataframe_records: cut(request.dataframe_records) };
  }
  for (const key of ['inputs', 'instances']) {
    const value = request[key];
    if (Array.isArray(value)) {
      return { ...request, [key]: cut(value) };
    }
    if (isObject(value)) {
      const columns = Object.entries(value).map(([name, column]) => [name, cut(column)]);
      return { ...request, [key]: Object.fromEntries(columns) };
    }
  }
  return request;
}

/** One row that the model takes: the first of the sample that it was proven with, else made up. */
export function exampleRequest(
  signature: ISignature | null | undefined,
  sample: unknown
): Record<string, unknown> {
  if (isObject(sample) && Object.keys(sample).length) {
    return firstRow(sample);
  }
  return exampleBody(signature) as Record<string, unknown>;
}

/** The values of the first row by column, or the inputs by name, whatever form the request has. */
function rowOf(request: Record<string, unknown>): Record<string, unknown> {
  const split = request.dataframe_split;
  if (isObject(split) && Array.isArray(split.columns) && Array.isArray(split.data)) {
    const row: unknown[] = Array.isArray(split.data[0]) ? split.data[0] : [];
    return Object.fromEntries(split.columns.map((name, i) => [String(name), row[i]]));
  }
  const records = request.dataframe_records ?? request.instances ?? request.inputs;
  if (Array.isArray(records)) {
    return isObject(records[0]) ? records[0] : {};
  }
  if (isObject(records)) {
    return Object.fromEntries(
      Object.entries(records).map(([name, column]) => [
        name,
        Array.isArray(column) ? column[0] : column
      ])
    );
  }
  return {};
}

function asText(value: unknown, kind: FieldKind): string {
  if (value === undefined || value === null) {
    return '';
  }
  if (kind === 'json') {
    return JSON.stringify(value);
  }
  return kind === 'datetime' ? String(value).replace(/Z$/, '') : String(value);
}

/** What the fields show at first. */
export function exampleValues(
  form: IForm,
  request: Record<string, unknown>,
  signature: ISignature | null | undefined
): Record<string, string> {
  const values: Record<string, string> = {};
  const row = rowOf(request);
  const whole = request.inputs ?? request.instances;
  for (const field of form.fields) {
    if (form.mode === 'tensors') {
      const value = field.name && isObject(whole) ? whole[field.name] : whole;
      values[field.key] = value === undefined ? '' : JSON.stringify(value);
    } else {
      values[field.key] = asText(row[field.name], field.kind);
    }
  }
  const given = isObject(request.params) ? request.params : {};
  const defaults = inputs(signature?.params);
  form.params.forEach((field, i) => {
    values[field.key] = asText(given[field.name] ?? defaults[i]?.default, field.kind);
  });
  return values;
}

/** A field as JSON, or why it is none. */
function fragment(field: IField, text: string): { json: string } | { error: FieldError } {
  const trimmed = text.trim();
  if (!trimmed && field.kind !== 'text') {
    const allowed = !field.required || NULLABLE.has(field.type);
    return allowed ? { json: 'null' } : { error: 'missing' };
  }
  switch (field.kind) {
    case 'number':
      return Number.isFinite(Number(trimmed))
        ? { json: JSON.stringify(Number(trimmed)) }
        : { error: 'number' };
    case 'integer':
      // As it is typed: numbers beyond 2 to the power of 53 would not come back from JavaScript.
      return /^[+-]?\d+$/.test(trimmed)
        ? { json: trimmed.replace(/^\+/, '').replace(/^(-?)0+(?=\d)/, '$1') }
        : { error: 'integer' };
    case 'boolean':
      return { json: trimmed === 'true' ? 'true' : 'false' };
    case 'json':
      try {
        JSON.parse(trimmed);
        return { json: trimmed };
      } catch {
        return { error: 'json' };
      }
    default:
      return { json: JSON.stringify(field.kind === 'text' ? text : trimmed) };
  }
}

/** The request that the fields make. */
export function payloadOf(form: IForm, values: Values): IPayload {
  const errors: Record<string, FieldError> = {};
  const read = (field: IField): string => {
    const part = fragment(field, values[field.key] ?? '');
    if ('error' in part) {
      errors[field.key] = part.error;
      return 'null';
    }
    return part.json;
  };
  const parts = form.fields.map(read);
  const names = form.fields.map(field => JSON.stringify(field.name));
  // A parameter that is left empty has its default.
  const params = form.params
    .filter(field => (values[field.key] ?? '').trim() !== '')
    .map(field => `${JSON.stringify(field.name)}: ${read(field)}`);
  let body: string;
  if (form.mode === 'tensors') {
    const named = form.fields.length > 1 || form.fields[0]?.name;
    const pairs = names.map((name, i) => `${name}: ${parts[i]}`).join(', ');
    body = `"inputs": ${named ? `{${pairs}}` : parts[0]}`;
  } else {
    body = `"dataframe_split": {"columns": [${names.join(', ')}], "data": [[${parts.join(', ')}]]}`;
  }
  const more = params.length ? `, "params": {${params.join(', ')}}` : '';
  return { body: Object.keys(errors).length ? null : `{${body}${more}}`, errors };
}
