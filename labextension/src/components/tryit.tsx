/** A call of an endpoint from a form that its model's signature makes, or from JSON, and what came of it. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useMemo, useState } from 'react';

import type { Deployment, IInvocation } from '../api';
import { formatMs } from '../format';
import { exampleRequest, exampleValues, FieldError, formOf, IField, payloadOf } from '../inputform';
import { errorText, Skeleton } from './list';
import { toApiError } from '../listmodel';
import { CallExamples } from './callexamples';
import { CopyButton, Message } from './common';
import type { IEndpointProps } from './endpointprops';

/** Characters of an answer that are drawn. */
const MAX_ANSWER = 20_000;
/** As JSON and ISO 8601 write them, in every language. */
const BOOLEANS = ['true', 'false'];
const DATE = '2026-01-31T12:00:00';

function problemText(error: FieldError, trans: TranslationBundle): string {
  switch (error) {
    case 'missing':
      return trans.__('needs a value');
    case 'number':
      return trans.__('is no number');
    case 'integer':
      return trans.__('is no whole number');
    case 'json':
      return trans.__('is no JSON');
  }
}

function Field(props: {
  field: IField;
  value: string;
  error: FieldError | undefined;
  onChange: (value: string) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { field, value, error, onChange, trans } = props;
  const name = field.name || trans.__('input');
  const common = {
    value,
    'aria-invalid': !!error,
    'data-testid': 'mlops-try-field',
    'data-name': field.name,
    onChange: (event: { target: { value: string } }) => onChange(event.target.value)
  };
  let input: JSX.Element;
  switch (field.kind) {
    case 'boolean':
      input = (
        <select className="jp-Mlops-select" {...common}>
          {BOOLEANS.map(one => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
          {!field.required && <option value="">{trans.__('missing')}</option>}
        </select>
      );
      break;
    case 'json':
      input = <textarea rows={field.type.includes('(') ? 4 : 2} spellCheck={false} {...common} />;
      break;
    default:
      input = (
        <input
          type="text"
          inputMode={field.kind === 'number' || field.kind === 'integer' ? 'decimal' : undefined}
          placeholder={field.kind === 'datetime' ? DATE : undefined}
          spellCheck={false}
          {...common}
        />
      );
  }
  return (
    <label className={`jp-Mlops-tryField${field.kind === 'json' ? ' jp-mod-wide' : ''}`}>
      <span className="jp-Mlops-tryName" title={name}>
        <span>{name}</span>
        <span className="jp-Mlops-muted">
          {field.required ? field.type : trans.__('%1, optional', field.type)}
        </span>
      </span>
      {input}
      {error && (
        <span className="jp-Mlops-fieldError" role="alert">
          {problemText(error, trans)}
        </span>
      )}
    </label>
  );
}

/** The predictions alone where the answer has them and nothing else. */
function answerText(body: unknown): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body, null, 1);
  // Numbers of a row stay on one line.
  const short = text.replace(
    /\[\s+([^[\]{}]*?)\s+\]/g,
    (_, row: string) => `[${row.replace(/\s*\n\s*/g, ' ')}]`
  );
  return short.length > MAX_ANSWER ? `${short.slice(0, MAX_ANSWER)}\n…` : short;
}

function Answer(props: { answer: IInvocation; trans: TranslationBundle }): JSX.Element {
  const { answer, trans } = props;
  const facts = [
    answer.deployment ? trans.__('by %1', answer.deployment) : '',
    trans.__('%1 there and back', formatMs(answer.took))
  ].filter(Boolean);
  const body = (typeof answer.body === 'object' && answer.body !== null ? answer.body : {}) as {
    message?: unknown;
    code?: unknown;
    hint?: unknown;
  };
  if (answer.status >= 400) {
    const message = typeof body.message === 'string' ? body.message : answerText(answer.body);
    return (
      <div data-testid="mlops-try-error" data-status={answer.status}>
        <Message tone="error" title={message}>
          {typeof body.hint === 'string' && body.hint && <p>{body.hint}</p>}
          <p>
            {[String(answer.status), typeof body.code === 'string' ? body.code : '', ...facts]
              .filter(Boolean)
              .join(' · ')}
          </p>
        </Message>
      </div>
    );
  }
  const text = answerText(answer.body);
  return (
    <div className="jp-Mlops-answer" data-testid="mlops-try-answer" role="status">
      <div className="jp-Mlops-answerHead">
        <span>{trans.__('Answer')}</span>
        <span className="jp-Mlops-muted" data-testid="mlops-try-facts">
          {facts.join(' · ')}
        </span>
        <span className="jp-Mlops-spring" />
        <CopyButton text={text} label={trans.__('Copy the answer')} trans={trans} />
      </div>
      <pre>{text}</pre>
      {answer.requestId && (
        <div className="jp-Mlops-muted jp-Mlops-small">
          {trans.__('Request id')} <code>{answer.requestId}</code>
        </div>
      )}
    </div>
  );
}

function Call(
  props: IEndpointProps & {
    deployment: Deployment;
    /** The request that it was proven with. */
    sample: unknown;
    choice: React.ReactNode;
    chosen: string;
  }
): JSX.Element {
  const { live, deployment, sample, trans } = props;
  const { signature } = deployment.status;
  const { form, request, first } = useMemo(() => {
    const form = formOf(signature);
    const request = exampleRequest(signature, sample);
    return { form, request, first: exampleValues(form, request, signature) };
  }, [deployment.name, JSON.stringify(signature)]);
  const [values, setValues] = useState<Record<string, string>>(first);
  const [json, setJson] = useState<string | null>(
    form.mode === 'none' ? JSON.stringify(request, null, 1) : null
  );
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState<IInvocation | null>(null);
  const [problem, setProblem] = useState('');
  const payload = payloadOf(form, values);
  let body = payload.body;
  if (json !== null) {
    try {
      JSON.parse(json);
      body = json;
    } catch {
      body = null;
    }
  }
  const send = async () => {
    if (body === null || busy) {
      return;
    }
    setBusy(true);
    setProblem('');
    try {
      setAnswer(await live.api.serving.invoke(live.name, body, props.chosen));
    } catch (reason) {
      setAnswer(null);
      setProblem(errorText(toApiError(reason), trans));
    }
    setBusy(false);
  };
  const fields = [...form.fields, ...form.params];
  const mode = (label: string, wanted: boolean, choose: () => void, id: string) => (
    <button
      type="button"
      role="tab"
      className="jp-Mlops-tab"
      aria-selected={wanted}
      data-testid={id}
      onClick={choose}
    >
      {label}
    </button>
  );
  return (
    <div className="jp-Mlops-try">
      <form
        className="jp-Mlops-card"
        aria-label={trans.__('Try it')}
        data-testid="mlops-try"
        onSubmit={event => {
          event.preventDefault();
          void send();
        }}
        onKeyDown={event => {
          if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            void send();
          }
        }}
      >
        <div className="jp-Mlops-tryHead">
          {form.mode !== 'none' && (
            <div className="jp-Mlops-tabs" role="tablist" aria-label={trans.__('Input')}>
              {mode(trans.__('Form'), json === null, () => setJson(null), 'mlops-try-form')}
              {mode(
                trans.__('JSON'),
                json !== null,
                () => setJson(json ?? pretty(payload.body ?? JSON.stringify(request))),
                'mlops-try-json'
              )}
            </div>
          )}
          <span className="jp-Mlops-spring" />
          {props.choice}
        </div>
        {json === null ? (
          <div className="jp-Mlops-tryFields">
            {fields.map(field => (
              <Field
                key={field.key}
                field={field}
                value={values[field.key] ?? ''}
                error={payload.errors[field.key]}
                onChange={value => setValues({ ...values, [field.key]: value })}
                trans={trans}
              />
            ))}
          </div>
        ) : (
          <textarea
            className="jp-Mlops-tryJson"
            rows={12}
            value={json}
            spellCheck={false}
            aria-label={trans.__('Request as JSON')}
            aria-invalid={body === null}
            data-testid="mlops-try-body"
            onChange={event => setJson(event.target.value)}
          />
        )}
        {json !== null && body === null && (
          <span className="jp-Mlops-fieldError" role="alert">
            {trans.__('This is no JSON.')}
          </span>
        )}
        <div className="jp-Mlops-cardActions">
          <button
            type="submit"
            className="jp-Mlops-button jp-mod-primary"
            disabled={busy || body === null}
            title={trans.__('Call it as its owner, without a key (Ctrl+Enter)')}
            data-testid="mlops-try-send"
          >
            {busy ? trans.__('Waiting…') : trans.__('Send')}
          </button>
          <button
            type="button"
            className="jp-Mlops-more"
            onClick={() => {
              setValues(first);
              setJson(json === null ? null : pretty(JSON.stringify(request)));
            }}
          >
            {sample ? trans.__('Back to the example') : trans.__('Reset')}
          </button>
        </div>
      </form>
      <div className="jp-Mlops-tryResult">
        {problem && (
          <Message tone="error" title={trans.__('The call did not come through')}>
            {problem}
          </Message>
        )}
        {answer && <Answer answer={answer} trans={trans} />}
        <CallExamples live={live} signature={signature} body={body} trans={trans} />
      </div>
    </div>
  );
}

function pretty(json: string): string {
  return answerText(JSON.parse(json));
}

export function TryIt(props: IEndpointProps): JSX.Element {
  const { live, trans } = props;
  const [chosen, setChosen] = useState('');
  const ready = live.deployments.filter(one => one.status.phase === 'Ready');
  const shares = live.traffic;
  const wanted = ready.find(one => one.name === chosen);
  const byShare = [...ready].sort((a, b) => (shares[b.name] ?? 0) - (shares[a.name] ?? 0));
  const deployment = wanted ?? byShare[0];
  const name = deployment?.name ?? '';
  /** Whose sample was read, and the sample. */
  const [sample, setSample] = useState<[string, unknown] | null>(null);
  useEffect(() => {
    let wanted = true;
    if (name) {
      // Without its sample the form has made-up values.
      const found = live.sample(name).catch(() => undefined);
      void found.then(value => wanted && setSample([name, value]));
    }
    return () => {
      wanted = false;
    };
  }, [live, name]);
  if (!deployment) {
    return (
      <div className="jp-Mlops-empty" data-testid="mlops-try-empty">
        <p>{trans.__('No deployment is ready to answer.')}</p>
      </div>
    );
  }
  const choice = (
    <label className="jp-Mlops-inline">
      <span className="jp-Mlops-muted">{trans.__('Answered by')}</span>
      <select
        className="jp-Mlops-select"
        value={wanted ? chosen : ''}
        data-testid="mlops-try-deployment"
        onChange={event => setChosen(event.target.value)}
      >
        <option value="">{trans.__('whom the traffic falls to')}</option>
        {ready.map(one => (
          <option key={one.name} value={one.name}>
            {one.name}
          </option>
        ))}
      </select>
    </label>
  );
  if (sample?.[0] !== name) {
    return <Skeleton label={trans.__('Loading')} />;
  }
  return (
    <Call
      {...props}
      key={name}
      deployment={deployment}
      sample={sample[1]}
      chosen={wanted ? chosen : ''}
      choice={choice}
    />
  );
}
