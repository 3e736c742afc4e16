/** The canary of an endpoint: started with sensible limits, watched beside its baseline, promoted or rolled back. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import type { ICanarySpec, ICanaryStatus } from '../api';
import { CANARY_DEFAULTS, canaryLeft, candidates, ISide, sideOf } from '../canary';
import { formatCount, formatDuration, formatMs, formatShare, relativeTime } from '../format';
import { CommandIDs } from '../ids';
import { NextStep, ProgressBar, useNow } from './common';
import type { IEndpointProps } from './endpointprops';
import { Status } from './status';

/** Requests from which on shares and percentiles say something, and milliseconds that are no difference: the server's. */
const SENSIBLE = 20;
const NOISE = 5;

function Comparison(props: {
  canary: ICanaryStatus;
  spec: ICanarySpec | null | undefined;
  trans: TranslationBundle;
}): JSX.Element {
  const { canary, trans } = props;
  const spec = { ...CANARY_DEFAULTS, ...props.spec };
  const candidate = sideOf(canary.candidate);
  const baseline = sideOf(canary.baseline);
  const ratio = candidate.p95 !== null && baseline.p95 ? candidate.p95 / baseline.p95 : null;
  const excess =
    candidate.errorRate === null ? null : candidate.errorRate - (baseline.errorRate ?? 0);
  const judged = candidate.requests >= Math.min(SENSIBLE, spec.min_requests);
  const slower = (candidate.p95 ?? 0) - (baseline.p95 ?? 0) > NOISE;
  const late = spec.max_latency_ms > 0 && (candidate.p95 ?? 0) > spec.max_latency_ms;
  const rows: [string, (side: ISide) => string, string, boolean][] = [
    [
      trans.__('Requests'),
      side => formatCount(side.requests),
      trans.__('at least %1', formatCount(spec.min_requests)),
      false
    ],
    [
      trans.__('Errors'),
      side => formatShare(side.errorRate),
      trans.__('at most %1 more', formatShare(spec.max_error_rate)),
      judged && excess !== null && excess > spec.max_error_rate
    ],
    [
      trans.__('p95'),
      side => formatMs(side.p95),
      [
        trans.__('at most %1 times', String(spec.max_latency_ratio)),
        spec.max_latency_ms ? formatMs(spec.max_latency_ms) : ''
      ]
        .filter(Boolean)
        .join(', '),
      judged && (late || (slower && ratio !== null && ratio > spec.max_latency_ratio))
    ]
  ];
  return (
    <table className="jp-Mlops-table jp-Mlops-comparisonTable" data-testid="mlops-canary-table">
      <thead>
        <tr>
          <td />
          <th scope="col" title={trans.__('The candidate')}>
            {canary.deployment}
          </th>
          <th scope="col">{trans.__('Baseline')}</th>
          <th scope="col">{trans.__('Limit')}</th>
        </tr>
      </thead>
      <tbody>
        {rows.map(([label, text, limit, broken]) => (
          <tr key={label}>
            <th scope="row">{label}</th>
            <td className={broken ? 'jp-Mlops-broken' : undefined}>
              {broken ? trans.__('%1 – too much', text(candidate)) : text(candidate)}
            </td>
            <td>{text(baseline)}</td>
            <td className="jp-Mlops-muted">{limit}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Running(props: IEndpointProps & { canary: ICanaryStatus }): JSX.Element {
  const { live, canary, trans, readonly, run } = props;
  const now = useNow(1000);
  const spec = live.endpoint?.spec.canary;
  const left = canaryLeft(canary, spec, now)!;
  const total = (spec?.duration ?? CANARY_DEFAULTS.duration) * 1000;
  const wait = left.ms
    ? trans.__('%1 left', formatDuration(left.ms))
    : left.requests
      ? trans._n('waits for %1 request more', 'waits for %1 requests more', left.requests)
      : trans.__('about to be decided');
  return (
    <>
      <p className="jp-Mlops-canaryHead" role="status">
        <Status phase={canary.phase} trans={trans} />
        <span>{trans.__('%1 takes %2 %', canary.deployment, canary.percent)}</span>
        <span className="jp-Mlops-muted" data-testid="mlops-canary-left">
          {wait}
        </span>
      </p>
      <ProgressBar
        value={Math.round((100 * (total - left.ms)) / Math.max(1, total))}
        label={trans.__('Time of the canary')}
      />
      <Comparison canary={canary} spec={spec} trans={trans} />
      <div className="jp-Mlops-cardActions">
        <button
          type="button"
          className="jp-Mlops-button jp-mod-primary"
          disabled={readonly}
          data-testid="mlops-canary-promote"
          onClick={() => void run(CommandIDs.promoteCanary, { name: live.name })}
        >
          {trans.__('Promote…')}
        </button>
        <button
          type="button"
          className="jp-Mlops-button"
          disabled={readonly}
          data-testid="mlops-canary-rollback"
          onClick={() => void run(CommandIDs.rollbackTraffic, { name: live.name })}
        >
          {trans.__('Roll back…')}
        </button>
      </div>
    </>
  );
}

function Last({ canary, trans }: { canary: ICanaryStatus; trans: TranslationBundle }) {
  const now = useNow(10_000);
  const candidate = sideOf(canary.candidate);
  return (
    <div className="jp-Mlops-canaryLast" data-testid="mlops-canary-last" data-phase={canary.phase}>
      <p className="jp-Mlops-canaryHead">
        <Status phase={canary.phase} trans={trans} />
        <span>{canary.deployment}</span>
        <span className="jp-Mlops-muted">{relativeTime(canary.ended_at, now, trans)}</span>
      </p>
      {canary.reason && <p className="jp-Mlops-muted">{canary.reason}</p>}
      {candidate.requests > 0 && (
        <p className="jp-Mlops-muted">
          {trans.__(
            '%1 requests · %2 errors · p95 %3',
            formatCount(candidate.requests),
            formatShare(candidate.errorRate),
            formatMs(candidate.p95)
          )}
        </p>
      )}
    </div>
  );
}

type Limit = Exclude<keyof ICanarySpec, 'deployment'>;

interface ILimitField {
  key: Limit;
  label: string;
  unit: string;
  min: number;
  max: number;
  step: number;
  /** What the field shows is the value times this. */
  scale: number;
}

function limitFields(trans: TranslationBundle): ILimitField[] {
  return [
    { key: 'percent', label: trans.__('Share'), unit: '%', min: 1, max: 99, step: 1, scale: 1 },
    {
      key: 'duration',
      label: trans.__('Duration'),
      unit: trans.__('min'),
      min: 0.1,
      max: 43_200,
      step: 0.5,
      scale: 1 / 60
    },
    {
      key: 'min_requests',
      label: trans.__('Requests at least'),
      unit: '',
      min: 1,
      max: 10_000_000,
      step: 1,
      scale: 1
    },
    {
      key: 'max_error_rate',
      label: trans.__('Errors at most'),
      unit: trans.__('% more'),
      min: 0,
      max: 100,
      step: 0.5,
      scale: 100
    },
    {
      key: 'max_latency_ratio',
      label: trans.__('p95 at most'),
      unit: trans.__('times'),
      min: 1,
      max: 1000,
      step: 0.5,
      scale: 1
    },
    {
      key: 'max_latency_ms',
      label: trans.__('p95 at most (0: any)'),
      unit: 'ms',
      min: 0,
      max: 600_000,
      step: 10,
      scale: 1
    }
  ];
}

function StartForm({ live, trans, readonly, run }: IEndpointProps): JSX.Element {
  const [chosen, setChosen] = useState('');
  const [typed, setTyped] = useState<Partial<Record<Limit, string>>>({});
  const [busy, setBusy] = useState(false);
  const names = candidates(live.deployments, live.traffic).map(one => one.name);
  const deployment = names.includes(chosen) ? chosen : names[0];
  if (!deployment) {
    return (
      <div className="jp-Mlops-empty" data-testid="mlops-canary-empty">
        <p>{trans.__('A canary needs a second deployment that is ready:')}</p>
        <NextStep
          code={`%mlops deploy my-model@challenger -e ${live.name} --canary 10`}
          trans={trans}
        />
      </div>
    );
  }
  const fields = limitFields(trans);
  const valueOf = ({ key, scale }: ILimitField) =>
    typed[key] === undefined ? CANARY_DEFAULTS[key] : Number(typed[key]) / scale;
  const wrong = (field: ILimitField) => {
    const shown = typed[field.key];
    if (shown === undefined) {
      return false;
    }
    const value = Number(shown);
    return shown.trim() === '' || !(value >= field.min && value <= field.max);
  };
  const input = (field: ILimitField) => (
    <label key={field.key} className="jp-Mlops-fieldRow">
      <span>{field.label}</span>
      <span className="jp-Mlops-unitField">
        <input
          type="number"
          min={field.min}
          max={field.max}
          step={field.step}
          value={typed[field.key] ?? String(CANARY_DEFAULTS[field.key] * field.scale)}
          aria-invalid={wrong(field)}
          disabled={readonly}
          data-testid={`mlops-canary-${field.key}`}
          onChange={event => setTyped({ ...typed, [field.key]: event.target.value })}
        />
        {field.unit && <span className="jp-Mlops-muted">{field.unit}</span>}
      </span>
    </label>
  );
  const start = async () => {
    setBusy(true);
    const canary: Record<string, string | number> = { deployment };
    for (const field of fields) {
      const value = valueOf(field);
      canary[field.key] =
        field.key === 'percent' || field.key === 'min_requests' ? Math.round(value) : value;
    }
    await run(CommandIDs.startCanary, { name: live.name, canary });
    setBusy(false);
  };
  return (
    <form
      className="jp-Mlops-form"
      noValidate
      data-testid="mlops-canary-form"
      onSubmit={event => {
        event.preventDefault();
        void start();
      }}
    >
      <div className="jp-Mlops-fields">
        <label className="jp-Mlops-fieldRow">
          <span>{trans.__('Candidate')}</span>
          <select
            className="jp-Mlops-select"
            value={deployment}
            disabled={readonly}
            data-testid="mlops-canary-deployment"
            onChange={event => setChosen(event.target.value)}
          >
            {names.map(name => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        </label>
        {fields.slice(0, 2).map(input)}
      </div>
      <details className="jp-Mlops-more-fields">
        <summary>{trans.__('Limits')}</summary>
        <div className="jp-Mlops-fields">{fields.slice(2).map(input)}</div>
      </details>
      <div className="jp-Mlops-cardActions">
        <button
          type="submit"
          className="jp-Mlops-button"
          disabled={readonly || busy || fields.some(wrong)}
          data-testid="mlops-canary-start"
        >
          {trans.__('Start…')}
        </button>
      </div>
    </form>
  );
}

export function CanaryCard(props: IEndpointProps): JSX.Element {
  const { live, trans } = props;
  const canary = live.endpoint?.status.canary;
  return (
    <section className="jp-Mlops-card" aria-label={trans.__('Canary')} data-testid="mlops-canary">
      <h3>{trans.__('Canary')}</h3>
      {canary?.phase === 'Running' ? (
        <Running {...props} canary={canary} />
      ) : (
        <>
          {canary && <Last canary={canary} trans={trans} />}
          <StartForm {...props} />
        </>
      )}
    </section>
  );
}
