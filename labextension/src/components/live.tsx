/** One job as it runs: state, progress, curves and log. The same in a notebook's output and in a tab of its own. */
import { launchIcon, stopIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from 'react';

import type { ISeries } from '../api';
import { parseAnsi } from '../ansi';
import { lineStyle, MetricChart } from '../chart';
import {
  elapsed,
  formatBytes,
  formatDuration,
  formatNumber,
  percent,
  relativeTime
} from '../format';
import type { LiveJob } from '../live';
import { align, groupSeries, IChartGroup, lastValue } from '../series';
import { isTerminal } from '../snapshot';
import { CopyButton, Message, ProgressBar, useNow, useSignal } from './common';
import { Status } from './status';

/** Charts shown before one asks for all. */
const MAX_CHARTS = 6;
/** Lines of log in the page; the rest is counted. */
const MAX_LINES = 1000;

export interface ILiveProps {
  job: LiveJob;
  trans: TranslationBundle;
  readonly: boolean;
  onStop: () => void;
  onOpenMlflow: () => void;
}

function Chart(props: {
  group: IChartGroup;
  metrics: Record<string, ISeries>;
  log: boolean;
  sync: string;
}): JSX.Element {
  const { group, metrics, log } = props;
  const host = useRef<HTMLDivElement>(null);
  const chart = useRef<MetricChart | null>(null);
  const [hover, setHover] = useState<number | null>(null);
  const data = useMemo(() => align(group.keys.map(key => metrics[key])), [group, metrics]);

  useEffect(() => {
    chart.current = new MetricChart({ host: host.current!, group: props.sync, onHover: setHover });
    return () => {
      chart.current?.dispose();
      chart.current = null;
    };
  }, [props.sync]);
  useEffect(() => {
    void chart.current?.setData(group.keys, data, log);
  }, [data, log, props.sync]);

  const [steps, ...rows] = data;
  const last = group.keys.map(key => formatNumber(lastValue(metrics[key])));
  const at = hover !== null && hover < steps.length ? hover : null;
  return (
    <figure
      className="jp-Mlops-chart"
      data-testid="mlops-live-chart"
      data-metric={group.title}
      data-points={steps.length}
    >
      <figcaption>
        {group.keys.map((key, i) => (
          <span key={key} className="jp-Mlops-legend">
            <span className="jp-Mlops-swatch" style={lineStyle(i)} />
            {key} <b>{at === null ? last[i] : formatNumber(rows[i][at])}</b>
          </span>
        ))}
        {at !== null && <span className="jp-Mlops-muted">#{formatNumber(steps[at])}</span>}
      </figcaption>
      <div
        ref={host}
        className="jp-Mlops-plot"
        role="img"
        aria-label={group.keys.map((key, i) => `${key} ${last[i]}`).join(', ')}
      />
    </figure>
  );
}

function Metrics(props: {
  metrics: Record<string, ISeries>;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { metrics, trans } = props;
  const [log, setLog] = useState(false);
  const [all, setAll] = useState(false);
  const sync = useId();
  const { charts, singles } = useMemo(() => groupSeries(metrics), [metrics]);
  if (!charts.length && !singles.length) {
    return null;
  }
  const shown = all ? charts : charts.slice(0, MAX_CHARTS);
  return (
    <div className="jp-Mlops-metrics">
      {singles.length > 0 && (
        <dl className="jp-Mlops-values">
          {singles.map(key => (
            <div key={key}>
              <dt>{key}</dt>
              <dd>{formatNumber(lastValue(metrics[key]))}</dd>
            </div>
          ))}
        </dl>
      )}
      {charts.length > 0 && (
        <>
          <div className="jp-Mlops-charts">
            {shown.map(group => (
              <Chart
                key={group.title}
                group={group}
                metrics={metrics}
                log={log}
                sync={`jupyter-mlops-${sync}`}
              />
            ))}
          </div>
          <div className="jp-Mlops-chartControls">
            <label>
              <input
                type="checkbox"
                checked={log}
                data-testid="mlops-live-log-scale"
                onChange={event => setLog(event.target.checked)}
              />
              {trans.__('Logarithmic')}
            </label>
            {charts.length > MAX_CHARTS && (
              <button type="button" className="jp-Mlops-more" onClick={() => setAll(!all)}>
                {all
                  ? trans.__('Show fewer charts')
                  : trans.__('Show all %1 charts', charts.length)}
              </button>
            )}
          </div>
        </>
      )}
    </div>
  );
}

const Line = React.memo(function Line({ text }: { text: string }): JSX.Element {
  return (
    <>
      {parseAnsi(text).map((span, i) =>
        span.classes ? (
          <span key={i} className={span.classes}>
            {span.text}
          </span>
        ) : (
          span.text
        )
      )}
      {'\n'}
    </>
  );
});

function Log(props: {
  job: LiveJob;
  processes: number;
  running: boolean;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { job, trans } = props;
  const box = useRef<HTMLPreElement>(null);
  const follow = useRef(true);
  const lines = job.lines;
  const shown = lines.slice(-MAX_LINES);
  const first = lines.length - shown.length;

  useLayoutEffect(() => {
    if (follow.current && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [lines]);

  const several = props.processes > 1 && job.connection !== 'static';
  return (
    <div className="jp-Mlops-logArea">
      <div className="jp-Mlops-logHead">
        <span className="jp-Mlops-logTitle">{trans.__('Log')}</span>
        {several && (
          <select
            className="jp-Mlops-rank"
            value={job.rank}
            aria-label={trans.__('Process')}
            data-testid="mlops-live-rank"
            onChange={event => {
              follow.current = true;
              job.selectRank(Number(event.target.value));
            }}
          >
            {Array.from({ length: props.processes }, (_, rank) => (
              <option key={rank} value={rank}>
                {trans.__('rank %1', rank)}
              </option>
            ))}
          </select>
        )}
        {job.earlier > 0 && (
          <button
            type="button"
            className="jp-Mlops-more"
            onClick={() => {
              follow.current = false;
              job.loadEarlier().catch(() => undefined);
            }}
          >
            {trans.__('%1 more before this', formatBytes(job.earlier))}
          </button>
        )}
        <span className="jp-Mlops-spring" />
        {lines.length > 0 && (
          <CopyButton
            text={() =>
              lines
                .map(line =>
                  parseAnsi(line)
                    .map(span => span.text)
                    .join('')
                )
                .join('\n')
            }
            label={trans.__('Copy the log')}
            trans={trans}
          />
        )}
      </div>
      <pre
        ref={box}
        className="jp-Mlops-log"
        tabIndex={0}
        aria-label={trans.__('Log')}
        data-testid="mlops-live-log"
        onScroll={event => {
          const node = event.currentTarget;
          follow.current = node.scrollHeight - node.scrollTop - node.clientHeight < 24;
        }}
      >
        {shown.map((line, i) => (
          <Line key={first + i} text={line} />
        ))}
        {!lines.length && (
          <span className="jp-Mlops-muted">
            {props.running ? trans.__('No output yet.') : trans.__('No output.')}
          </span>
        )}
      </pre>
    </div>
  );
}

function Notice({ job, trans }: { job: LiveJob; trans: TranslationBundle }): JSX.Element | null {
  let text = '';
  if (job.connection === 'retrying') {
    text = trans.__('The server does not answer; trying again.');
  } else if (job.notice === 'deleted') {
    text = trans.__('This job was deleted. What was last seen of it is shown.');
  } else if (job.notice === 'replaced') {
    text = trans.__('Another job has this name now. What was last seen of this one is shown.');
  } else if (job.notice === 'no_server') {
    text = trans.__('This server has no Jupyter MLOps. What was last seen of the job is shown.');
  } else if (job.notice === 'refused') {
    text = trans.__('Not available: %1', job.message);
  }
  return text ? (
    <div className="jp-Mlops-notice" role="status" data-testid="mlops-live-notice">
      {text}
    </div>
  ) : null;
}

export function LiveView(props: ILiveProps): JSX.Element {
  const { job, trans } = props;
  useSignal(job.changed);
  const view = job.view;
  const ended = isTerminal(view.phase);
  const isStatic = job.connection === 'static';
  const now = useNow(ended || isStatic ? 30_000 : 1000);
  const done = percent(view.progress);
  // A snapshot of a job that still ran says nothing about the time since.
  const until = view.endedAt || (isStatic ? job.storedAt : '');
  const duration = view.startedAt
    ? formatDuration(elapsed(view.startedAt, until, Math.max(now, Date.parse(view.startedAt))))
    : '';
  const canStop = !ended && !isStatic && !props.readonly;
  return (
    <div
      className="jp-Mlops-live"
      data-testid="mlops-live"
      data-job={view.name}
      data-phase={view.phase}
      data-connection={job.connection}
    >
      <div className="jp-Mlops-liveHead">
        <Status phase={view.phase} trans={trans} live testId="mlops-live-state" />
        <span className="jp-Mlops-liveName" title={view.name}>
          {view.title}
        </span>
        {duration && (
          <span
            className="jp-Mlops-liveTime"
            title={trans.__('Elapsed time')}
            data-testid="mlops-live-elapsed"
          >
            {duration}
          </span>
        )}
        {view.processes > 1 && (
          <span className="jp-Mlops-muted">{trans.__('%1 processes', view.processes)}</span>
        )}
        {ended && view.endedAt && !isStatic && (
          <span className="jp-Mlops-muted">{relativeTime(view.endedAt, now, trans)}</span>
        )}
        <span className="jp-Mlops-spring" />
        {!isStatic && (
          <>
            <button
              type="button"
              className="jp-Mlops-button"
              disabled={!canStop || view.phase === 'Stopping'}
              title={props.readonly ? trans.__('You may only look') : trans.__('Stop the job')}
              data-testid="mlops-live-stop"
              onClick={props.onStop}
            >
              <stopIcon.react tag="span" className="jp-Mlops-icon" />
              {trans.__('Stop')}
            </button>
            <button
              type="button"
              className="jp-Mlops-button"
              disabled={!view.runId || !view.experimentId}
              title={trans.__('Open the run in MLflow')}
              data-testid="mlops-live-mlflow"
              onClick={props.onOpenMlflow}
            >
              <launchIcon.react tag="span" className="jp-Mlops-icon" />
              {trans.__('MLflow')}
            </button>
          </>
        )}
      </div>
      {!ended && view.phase !== '' && !isStatic && (
        <div className="jp-Mlops-liveProgress" data-testid="mlops-live-progress">
          <ProgressBar value={done} label={trans.__('Progress')} />
          {view.progress && (
            <span>
              {view.progress.done}/{view.progress.total}
            </span>
          )}
        </div>
      )}
      <Notice job={job} trans={trans} />
      {view.reason &&
        (view.phase === 'Failed' ? (
          <Message tone="error" title={view.reason} testId="mlops-live-reason">
            {[
              view.failedRank !== null ? trans.__('Rank %1', view.failedRank) : '',
              exitText(view.exitCode, trans)
            ]
              .filter(Boolean)
              .join(' · ')}
          </Message>
        ) : (
          <div className="jp-Mlops-liveReason">{view.reason}</div>
        ))}
      <Metrics metrics={view.metrics} trans={trans} />
      {view.phase !== '' && (
        <Log job={job} processes={view.processes} running={!ended} trans={trans} />
      )}
      {view.phase === '' && job.connection === 'connecting' && (
        <div className="jp-Mlops-muted jp-Mlops-liveWait">{trans.__('Loading…')}</div>
      )}
    </div>
  );
}

function exitText(code: number | null, trans: TranslationBundle): string {
  if (code === null) {
    return '';
  }
  return code < 0 ? trans.__('ended by signal %1', -code) : trans.__('exit code %1', code);
}
