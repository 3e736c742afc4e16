/** What the processes of a job use beside its curves: processor, memory, GPUs, and steps a second. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useMemo } from 'react';

import type { IAttemptStatus, ISeries, IUsage } from '../api';
import type { ChartState } from '../chartstate';
import { ICurve, IMark, originOf, throughput } from '../curves';
import { formatBytes, formatNumber } from '../format';
import { lastValue } from '../series';
import { total, usageCharts, UsageKind, usageOrigin } from '../usage';
import { CurveChart } from './charts';
import { useSignal } from './common';

const HEIGHT = 84;
/** A name for programs. */
const THROUGHPUT = 'throughput';

function title(kind: UsageKind, trans: TranslationBundle): string {
  switch (kind) {
    case 'cpu':
      return trans.__('CPU cores');
    case 'rss':
      return trans.__('Memory');
    case 'gpu':
      return trans.__('GPU');
    case 'gpu_memory':
      return trans.__('GPU memory');
  }
}

function writer(kind: UsageKind): (value: number | null | undefined) => string {
  const missing = (value: number | null | undefined) => value === null || value === undefined;
  switch (kind) {
    case 'cpu':
      return value => (missing(value) ? '–' : formatNumber(value, 3));
    case 'gpu':
      return value => (missing(value) ? '–' : `${Math.round(value!)} %`);
    default:
      return value => (missing(value) ? '–' : formatBytes(value!));
  }
}

const rateText = (value: number | null | undefined) => formatNumber(value, 3);

export function Resources(props: {
  usage: IUsage | null;
  metrics: Record<string, ISeries>;
  attempts: readonly IAttemptStatus[];
  state: ChartState;
  group: string;
  marks: readonly IMark[];
  trans: TranslationBundle;
}): JSX.Element | null {
  const { usage, metrics, marks, state, trans } = props;
  useSignal(state.changed);
  const charts = useMemo(() => {
    // Beside curves over time both begin with the first metric, else these begin with the job.
    const origin = (state.axis === 'step' ? 0 : originOf(metrics)) || usageOrigin(usage);
    const drawn = usageCharts(usage);
    const several = drawn.some(chart => chart.curves.some(curve => curve.node > 0));
    return drawn.map(chart => ({
      kind: chart.kind,
      now: total(chart),
      curves: chart.curves.map(({ rank, node, series }): ICurve => ({
        id: String(rank),
        label: several ? trans.__('rank %1 · node %2', rank, node) : trans.__('rank %1', rank),
        series,
        color: rank,
        dash: rank,
        origin
      }))
    }));
  }, [usage, metrics, state.axis, trans]);
  const rate = useMemo(() => throughput(metrics, props.attempts), [metrics, marks]);
  const rates = useMemo(
    (): ICurve[] =>
      rate
        ? [
            {
              id: 'rate',
              label: trans.__('Steps per second'),
              series: rate,
              color: 0,
              dash: 0,
              origin: originOf(metrics)
            }
          ]
        : [],
    [rate, metrics, trans]
  );
  if (!charts.length && !rates.length) {
    return null;
  }
  const group = `${props.group}-usage`;
  // What is used is sampled over time and knows no steps.
  const axis = state.axis === 'step' ? 'relative' : state.axis;
  return (
    <details
      className="jp-Mlops-resources"
      open={state.resources}
      data-testid="mlops-live-resources"
      onToggle={event => {
        const { open } = event.currentTarget;
        if (open !== state.resources) {
          state.set({ resources: open });
        }
      }}
    >
      <summary>
        <span>{trans.__('Resources')}</span>
        {charts.map(({ kind, now }) => (
          <span key={kind} className="jp-Mlops-resource">
            {title(kind, trans)} <b>{writer(kind)(now)}</b>
          </span>
        ))}
        {rate && (
          <span className="jp-Mlops-resource">
            {trans.__('Steps/s')} <b>{rateText(lastValue(rate))}</b>
          </span>
        )}
      </summary>
      {state.resources && (
        <div className="jp-Mlops-charts jp-mod-small">
          {charts.map(({ kind, curves }) => (
            <CurveChart
              key={kind}
              title={kind}
              caption={title(kind, trans)}
              curves={curves}
              state={state}
              group={group}
              axis={axis}
              smoothing={0}
              log={false}
              floor={0}
              height={HEIGHT}
              format={writer(kind)}
              bytes={kind === 'rss' || kind === 'gpu_memory'}
              testId="mlops-usage-chart"
            />
          ))}
          {rates.length > 0 && (
            <CurveChart
              title={THROUGHPUT}
              curves={rates}
              state={state}
              group={props.group}
              smoothing={0}
              log={false}
              floor={0}
              height={HEIGHT}
              format={rateText}
              marks={marks}
              testId="mlops-usage-chart"
            />
          )}
        </div>
      )}
    </details>
  );
}
