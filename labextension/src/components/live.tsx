/** One job as it runs: state, progress, curves, resources and log. The same in a notebook and in a tab of its own. */
import { launchIcon, refreshIcon, stopIcon, terminalIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useId, useMemo, useState } from 'react';

import { lineStyle } from '../chart';
import type { ChartState } from '../chartstate';
import { attemptMarks } from '../curves';
import { elapsed, formatDuration, percent, relativeTime } from '../format';
import type { IJobView } from '../jobfacts';
import type { LiveJob } from '../live';
import type { RunSet } from '../runset';
import { isTerminal } from '../snapshot';
import { IDrawnRun, Metrics } from './charts';
import { ProgressBar, useNow, useSignal } from './common';
import { Log } from './log';
import { Outcome } from './outcome';
import { Resources } from './resources';
import { RunPicker } from './runpicker';
import { Status } from './status';

export interface ILiveProps {
  job: LiveJob;
  /** How its charts are looked at. */
  state: ChartState;
  /** The runs that are drawn beside its own. */
  others: RunSet;
  trans: TranslationBundle;
  readonly: boolean;
  onStop: () => void;
  onResume: () => void;
  /** Open a shell beside the process whose log is shown; absent where there are no terminals. */
  onShell?: () => void;
  onOpenMlflow: () => void;
}

/** Curves, those of other runs beside them, and what the processes use. */
function Curves(props: {
  job: LiveJob;
  view: IJobView;
  state: ChartState;
  others: RunSet;
  trans: TranslationBundle;
}): JSX.Element {
  const { job, view, state, others, trans } = props;
  useSignal(state.changed);
  useSignal(others.changed);
  const [picking, setPicking] = useState(false);
  const sync = `jupyter-mlops-${useId()}`;
  const { metrics, attempts } = view;
  const picked = state.picked;
  useEffect(() => others.pick(picked), [others, picked]);

  const beside = others.runs;
  const runs = useMemo((): IDrawnRun[] => {
    const own = { id: view.runId, name: view.title, metrics };
    return [own, ...beside.filter(run => run.id !== view.runId)];
  }, [metrics, beside, view.runId, view.title]);
  const story = JSON.stringify(attempts.map(one => [one.attempt, one.started_at]));
  const marks = useMemo(
    () => attemptMarks(attempts, metrics, state.axis, n => trans.__('attempt %1', n)),
    [story, metrics, state.axis, trans]
  );
  const connected = job.connection !== 'static';
  return (
    <>
      {runs.length > 1 && (
        <ul className="jp-Mlops-runs" data-testid="mlops-live-runs">
          {runs.map((run, i) => (
            <li key={run.id}>
              <span className="jp-Mlops-swatch" style={lineStyle(i)} />
              {run.name}
            </li>
          ))}
        </ul>
      )}
      <Metrics
        runs={runs}
        state={state}
        group={sync}
        marks={marks}
        trans={trans}
        controls={
          connected &&
          view.runId &&
          (picking || Object.keys(metrics).length > 0) && (
            <button
              type="button"
              className="jp-Mlops-more"
              aria-expanded={picking}
              data-testid="mlops-live-compare"
              onClick={() => setPicking(!picking)}
            >
              {trans.__('Compare…')}
            </button>
          )
        }
      />
      {picking && connected && (
        <RunPicker
          api={job.api}
          state={state}
          own={view.runId}
          experiment={view.experiment}
          trans={trans}
          onClose={() => setPicking(false)}
        />
      )}
      {connected && (
        <Resources
          usage={job.usage}
          metrics={metrics}
          attempts={attempts}
          state={state}
          group={sync}
          marks={marks}
          trans={trans}
        />
      )}
    </>
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
  const duration =
    view.startedAt && view.phase !== 'Queued'
      ? formatDuration(elapsed(view.startedAt, until, Math.max(now, Date.parse(view.startedAt))))
      : '';
  const canStop = !ended && !isStatic && !props.readonly;
  const canResume =
    (view.phase === 'Failed' || view.phase === 'Canceled') && !props.readonly && !view.deletedAt;
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
            {props.onShell && view.phase === 'Running' && !props.readonly && (
              <button
                type="button"
                className="jp-Mlops-button"
                title={trans.__('Open a terminal beside rank %1', job.rank)}
                data-testid="mlops-live-shell"
                onClick={props.onShell}
              >
                <terminalIcon.react tag="span" className="jp-Mlops-icon" />
                {trans.__('Shell')}
              </button>
            )}
            {canResume && (
              <button
                type="button"
                className="jp-Mlops-button"
                title={trans.__('Start another attempt in the same run')}
                data-testid="mlops-live-resume"
                onClick={props.onResume}
              >
                <refreshIcon.react tag="span" className="jp-Mlops-icon" />
                {trans.__('Resume')}
              </button>
            )}
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
      {!ended && view.phase !== '' && view.phase !== 'Queued' && !isStatic && (
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
      <Outcome view={view} trans={trans} />
      <Curves job={job} view={view} state={props.state} others={props.others} trans={trans} />
      {view.phase !== '' && (
        <Log job={job} processes={view.processes} running={!ended} trans={trans} />
      )}
      {view.phase === '' && job.connection === 'connecting' && (
        <div className="jp-Mlops-muted jp-Mlops-liveWait">{trans.__('Loading…')}</div>
      )}
    </div>
  );
}
