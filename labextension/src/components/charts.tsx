/** Charts of curves, and the controls that say how they are drawn. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useMemo, useRef, useState } from 'react';

import type { ISeries } from '../api';
import { HEIGHT, IChartForm, lineStyle, MetricChart } from '../chart';
import { ChartState, MAX_SMOOTHING } from '../chartstate';
import { chartData, hasTimes, ICurve, IMark, originOf, valueAt, XAxis } from '../curves';
import { formatNumber, formatOffset } from '../format';
import { groupSeries, lastValue } from '../series';
import { useSignal } from './common';

/** Charts shown before one asks for all. */
const MAX_CHARTS = 6;
/** Names in a legend before they are cut. */
const MAX_NAME = 40;

/** A run whose curves are drawn. */
export interface IDrawnRun {
  id: string;
  name: string;
  metrics: Record<string, ISeries>;
}

export interface ICurveChartProps {
  title: string;
  curves: readonly ICurve[];
  state: ChartState;
  /** Charts of one group share pointer and zoom. */
  group: string;
  marks?: readonly IMark[];
  /** Another axis than that of the state, which is then not zoomed with the others. */
  axis?: XAxis;
  smoothing?: number;
  log?: boolean;
  floor?: number;
  height?: number;
  format?: (value: number | null | undefined) => string;
  bytes?: boolean;
  /** What stands before the legend. */
  caption?: string;
  testId?: string;
}

function placeText(x: number, axis: XAxis): string {
  switch (axis) {
    case 'relative':
      return formatOffset(x);
    case 'time':
      return new Date(x * 1000).toLocaleTimeString();
    default:
      return `#${formatNumber(x)}`;
  }
}

export function CurveChart(props: ICurveChartProps): JSX.Element {
  const { curves, state, marks } = props;
  const host = useRef<HTMLDivElement>(null);
  const chart = useRef<MetricChart | null>(null);
  const [hover, setHover] = useState<number | null>(null);
  const axis = props.axis ?? state.axis;
  const own = props.axis !== undefined && props.axis !== state.axis;
  const log = props.log ?? state.log;
  const weight = props.smoothing ?? state.smoothing;
  const zoom = own ? null : state.zoom;
  const data = useMemo(() => chartData(curves, axis, weight), [curves, axis, weight]);
  const format = props.format ?? formatNumber;

  useEffect(() => {
    chart.current = new MetricChart({
      host: host.current!,
      group: props.group,
      onHover: setHover,
      onZoom: range => {
        if (!own || !range) {
          state.set({ zoom: range });
        }
      }
    });
    return () => {
      chart.current?.dispose();
      chart.current = null;
    };
  }, [props.group, state, own]);
  useEffect(() => {
    const form: IChartForm = {
      lines: curves.map(({ label, color, dash }) => ({ label, color, dash })),
      axis,
      log,
      smoothed: weight > 0,
      zoom,
      marks: marks ?? [],
      floor: props.floor,
      height: props.height,
      tick: props.format,
      bytes: props.bytes
    };
    void chart.current?.setData(data, form);
  }, [data, log, zoom, marks, props.group, state, own]);

  const [xs, ...rows] = data;
  const last = curves.map(curve => format(lastValue(curve.series)));
  const at = hover !== null && hover < xs.length ? hover : null;
  const smoothed = weight > 0 ? curves.length : 0;
  const value = (i: number) => {
    const found = at === null ? undefined : valueAt(rows[i + smoothed], at);
    return found === undefined ? (at === null ? last[i] : '–') : format(found);
  };
  const words = curves.map((curve, i) => `${curve.label} ${last[i]}`).join(', ');
  return (
    <figure
      className="jp-Mlops-chart"
      data-testid={props.testId ?? 'mlops-live-chart'}
      data-metric={props.title}
      data-points={xs.length}
      data-range={xs.length ? `${xs[0]} ${xs[xs.length - 1]}` : undefined}
      data-lines={curves.length}
      data-marks={marks?.map(mark => `${mark.label}@${mark.x}`).join(' ') || undefined}
      data-zoom={zoom ? zoom.join(' ') : undefined}
    >
      <figcaption>
        {props.caption && <span className="jp-Mlops-chartTitle">{props.caption}</span>}
        {curves.map((curve, i) => (
          <span key={curve.id} className="jp-Mlops-legend" title={curve.label}>
            <span className="jp-Mlops-swatch" style={lineStyle(curve.color, curve.dash)} />
            {curve.label.slice(0, MAX_NAME)} <b>{value(i)}</b>
          </span>
        ))}
        {at !== null && <span className="jp-Mlops-muted">{placeText(xs[at], axis)}</span>}
      </figcaption>
      <div
        ref={host}
        className="jp-Mlops-plot"
        style={{ minHeight: props.height ?? HEIGHT }}
        role="img"
        aria-label={[props.caption, words, ...(marks ?? []).map(mark => mark.label)]
          .filter(Boolean)
          .join(', ')}
      />
    </figure>
  );
}

/** The curves of a chart: of one run, colours tell metrics apart; of several, colours tell runs apart. */
export function curvesOf(keys: readonly string[], runs: readonly IDrawnRun[]): ICurve[] {
  const several = runs.length > 1;
  return runs.flatMap((run, r) => {
    const origin = originOf(run.metrics);
    return keys.flatMap((key, k): ICurve[] => {
      const series = run.metrics[key];
      const look = several ? r : k;
      return series?.steps.length
        ? [
            {
              id: `${run.id} ${key}`,
              label: several ? run.name : key,
              series,
              color: look,
              dash: look,
              origin
            }
          ]
        : [];
    });
  });
}

/** All metrics of all runs, each with its longest history: what charts are made of. */
function union(runs: readonly IDrawnRun[]): Record<string, ISeries> {
  const all: Record<string, ISeries> = {};
  for (const { metrics } of runs) {
    for (const [key, series] of Object.entries(metrics)) {
      if (!(series.steps.length <= all[key]?.steps.length)) {
        all[key] = series;
      }
    }
  }
  return all;
}

export function Controls(props: {
  state: ChartState;
  /** Whether points have times. */
  timed: boolean;
  trans: TranslationBundle;
  children?: React.ReactNode;
}): JSX.Element {
  const { state, trans } = props;
  return (
    <div className="jp-Mlops-chartControls" role="group" aria-label={trans.__('Charts')}>
      {props.timed && (
        <select
          className="jp-Mlops-select"
          value={state.axis}
          aria-label={trans.__('Horizontal axis')}
          data-testid="mlops-live-axis"
          onChange={event => state.set({ axis: event.target.value as XAxis })}
        >
          <option value="step">{trans.__('Step')}</option>
          <option value="relative">{trans.__('Relative time')}</option>
          <option value="time">{trans.__('Time of day')}</option>
        </select>
      )}
      <label>
        {trans.__('Smoothing')}
        <input
          type="range"
          min={0}
          max={MAX_SMOOTHING}
          step={0.01}
          value={state.smoothing}
          data-testid="mlops-live-smoothing"
          onChange={event => state.set({ smoothing: Number(event.target.value) })}
        />
        <span className="jp-Mlops-smoothing">{state.smoothing.toFixed(2)}</span>
      </label>
      <label>
        <input
          type="checkbox"
          checked={state.log}
          data-testid="mlops-live-log-scale"
          onChange={event => state.set({ log: event.target.checked })}
        />
        {trans.__('Logarithmic')}
      </label>
      {state.zoom && (
        <button
          type="button"
          className="jp-Mlops-more"
          title={trans.__('Show the whole curves; a double click in a chart does the same')}
          data-testid="mlops-live-reset-zoom"
          onClick={() => state.set({ zoom: null })}
        >
          {trans.__('Reset zoom')}
        </button>
      )}
      {props.children}
    </div>
  );
}

const NO_MARKS: readonly IMark[] = [];

/** Values, charts and controls of one run or of several. The first run's single values are shown. */
export function Metrics(props: {
  runs: readonly IDrawnRun[];
  state: ChartState;
  group: string;
  marks?: readonly IMark[];
  /** How many charts are shown before one asks for all. */
  limit?: number;
  trans: TranslationBundle;
  controls?: React.ReactNode;
}): JSX.Element | null {
  const { runs, state, trans } = props;
  useSignal(state.changed);
  const limit = props.limit ?? MAX_CHARTS;
  const { charts, singles, timed } = useMemo(() => {
    const all = union(runs);
    const { charts, singles } = groupSeries(all);
    return {
      // Several runs have a chart for each metric: what colours mean there is taken.
      charts:
        runs.length > 1
          ? charts.flatMap(group => group.keys.map(key => ({ title: key, keys: [key] })))
          : charts,
      singles,
      timed: Object.values(all).some(hasTimes)
    };
  }, [runs]);
  const shown = state.all ? charts : charts.slice(0, limit);
  const drawn = useMemo(
    () => shown.map(group => ({ group, curves: curvesOf(group.keys, runs) })),
    [runs, charts, state.all]
  );
  const values = singles.filter(key => runs[0]?.metrics[key]);
  if (!charts.length && !values.length) {
    return props.controls ? <div className="jp-Mlops-chartControls">{props.controls}</div> : null;
  }
  return (
    <div className="jp-Mlops-metrics">
      {values.length > 0 && (
        <dl className="jp-Mlops-values">
          {values.map(key => (
            <div key={key}>
              <dt>{key}</dt>
              <dd>{formatNumber(lastValue(runs[0].metrics[key]))}</dd>
            </div>
          ))}
        </dl>
      )}
      {drawn.length > 0 && (
        <div className="jp-Mlops-charts">
          {drawn.map(({ group, curves }) => (
            <CurveChart
              key={group.title}
              title={group.title}
              caption={runs.length > 1 ? group.title : undefined}
              curves={curves}
              state={state}
              group={props.group}
              marks={props.marks ?? NO_MARKS}
            />
          ))}
        </div>
      )}
      <Controls state={state} timed={timed} trans={trans}>
        {charts.length > limit && (
          <button
            type="button"
            className="jp-Mlops-more"
            onClick={() => state.set({ all: !state.all })}
          >
            {state.all
              ? trans.__('Show fewer charts')
              : trans.__('Show all %1 charts', charts.length)}
          </button>
        )}
        {props.controls}
      </Controls>
    </div>
  );
}
