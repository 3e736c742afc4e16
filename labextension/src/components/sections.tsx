/** The five lists of the panel. */
import { codeIcon, deleteIcon, launchIcon, stopIcon, HTMLSelect } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React from 'react';

import { Compute, IModel, IRun, IServed, Job } from '../api';
import {
  elapsed,
  formatBytes,
  formatDuration,
  formatNumber,
  keyMetrics,
  percent,
  relativeTime
} from '../format';
import { CommandIDs } from '../ids';
import { mlopsIcon } from '../icons';
import type { SectionName, WorkspaceModel } from '../model';
import { isTerminal } from '../snapshot';
import { CopyButton, IconButton, ProgressBar, useNow, useSignal } from './common';
import { List, Row } from './list';
import { phaseText, Status, StatusIcon } from './status';

export interface ISectionProps {
  model: WorkspaceModel;
  trans: TranslationBundle;
  execute: (command: string, args: ReadonlyPartialJSONObject) => void;
}

/** How often relative times are renewed. */
const CLOCK = 10_000;

function Runs({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  const now = useNow(CLOCK);
  const readonly = model.readonly;
  const experiments = model.experiments.map(item => item.name);
  const choices =
    model.experiment && !experiments.includes(model.experiment)
      ? [model.experiment, ...experiments]
      : experiments;
  return (
    <List<IRun>
      model={model.runs}
      label={trans.__('Runs')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={run => run.run_id}
      words={run =>
        [run.name, run.experiment_name, run.job, run.run_id, phaseText(run.status, trans)].join(' ')
      }
      controls={
        choices.length > 1 && (
          <HTMLSelect
            value={model.experiment}
            aria-label={trans.__('Experiment')}
            data-testid="mlops-experiment"
            onChange={event => {
              model.experiment = event.target.value;
            }}
          >
            <option value="">{trans.__('All experiments')}</option>
            {choices.map(name => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </HTMLSelect>
        )
      }
      empty={{
        text: trans.__('No runs yet. Turn on tracking in a notebook, then train as usual:'),
        code: 'import mlflow; mlflow.autolog()'
      }}
    >
      {(run, index) => {
        const args = { id: run.run_id, experiment: run.experiment_id, name: run.name };
        const open = () => execute(CommandIDs.openRun, args);
        const remove = readonly ? undefined : () => execute(CommandIDs.deleteRun, args);
        const metrics = keyMetrics(run.metrics ?? {}, model.settings.keyMetrics, 2);
        const time = relativeTime(run.start_time, now, trans);
        const done = percent(run.progress);
        return (
          <Row
            kind="run"
            name={run.run_id}
            first={index === 0}
            label={[run.name, phaseText(run.status, trans), run.experiment_name, time].join(', ')}
            icon={<StatusIcon phase={run.status} />}
            title={run.name || run.run_id.slice(0, 8)}
            aside={time}
            detail={
              <>
                <span className="jp-Mlops-word">{phaseText(run.status, trans)}</span>
                {metrics.map(([key, value]) => (
                  <span key={key} className="jp-Mlops-metric" title={`${key} = ${value}`}>
                    {key} <b>{formatNumber(value)}</b>
                  </span>
                ))}
                <span className="jp-Mlops-muted" title={run.experiment_name}>
                  {run.experiment_name}
                </span>
              </>
            }
            onOpen={open}
            onDelete={remove}
            actions={
              <>
                <IconButton
                  icon={launchIcon}
                  label={trans.__('Open in MLflow')}
                  onClick={open}
                  testId="mlops-open"
                />
                <CopyButton text={run.run_id} label={trans.__('Copy the run id')} trans={trans} />
                <IconButton
                  icon={deleteIcon}
                  label={trans.__('Delete the run')}
                  disabled={!remove}
                  onClick={() => remove?.()}
                  testId="mlops-delete"
                />
              </>
            }
          >
            {run.status === 'RUNNING' && done !== null && (
              <ProgressBar value={done} label={trans.__('Progress')} />
            )}
          </Row>
        );
      }}
    </List>
  );
}

function JobRow(props: ISectionProps & { job: Job; first: boolean }): JSX.Element {
  const { model, trans, execute, job } = props;
  const { spec, status } = job;
  const ended = isTerminal(status.phase);
  const now = useNow(ended ? CLOCK : 1000);
  const args = { name: job.name };
  const open = () => execute(CommandIDs.openJob, args);
  const remove = model.readonly || !ended ? undefined : () => execute(CommandIDs.deleteJob, args);
  const progress = model.progress.get(job.name);
  const done = percent(progress);
  const word = phaseText(status.phase, trans);
  const processes = spec.distribution?.process_count_per_instance ?? 1;
  const run = { id: status.run_id, experiment: status.experiment_id, name: job.name };
  return (
    <Row
      kind="job"
      name={job.name}
      first={props.first}
      label={[job.name, word, status.reason].filter(Boolean).join(', ')}
      icon={<StatusIcon phase={status.phase} />}
      title={job.name}
      aside={ended ? relativeTime(status.ended_at || job.updated_at, now, trans) : undefined}
      detail={
        <>
          <span className="jp-Mlops-word" aria-live="polite" data-testid="mlops-job-state">
            {word}
          </span>
          {status.started_at && (
            <span title={trans.__('Elapsed time')}>
              {formatDuration(elapsed(status.started_at, status.ended_at, now))}
            </span>
          )}
          {!ended && progress && (
            <span>
              {progress.done}/{progress.total}
            </span>
          )}
          {processes > 1 && <span>{trans.__('%1 processes', processes)}</span>}
          {status.reason ? (
            <span className="jp-Mlops-reason" title={status.reason}>
              {status.reason}
            </span>
          ) : (
            <span className="jp-Mlops-muted">{spec.experiment_name}</span>
          )}
        </>
      }
      onOpen={open}
      onDelete={remove}
      actions={
        <>
          {!ended && (
            <IconButton
              icon={stopIcon}
              label={trans.__('Stop the job')}
              disabled={model.readonly || status.phase === 'Stopping'}
              onClick={() => execute(CommandIDs.stopJob, args)}
              testId="mlops-stop"
            />
          )}
          <IconButton
            icon={launchIcon}
            label={trans.__('Open in MLflow')}
            disabled={!status.run_id}
            onClick={() => execute(CommandIDs.openRun, run)}
            testId="mlops-open"
          />
          {ended && (
            <IconButton
              icon={deleteIcon}
              label={trans.__('Delete the job')}
              disabled={!remove}
              onClick={() => remove?.()}
              testId="mlops-delete"
            />
          )}
        </>
      }
    >
      {!ended && <ProgressBar value={done} label={trans.__('Progress')} />}
    </Row>
  );
}

function Jobs(props: ISectionProps): JSX.Element {
  const { model, trans } = props;
  useSignal(model.changed);
  return (
    <List<Job>
      model={model.jobs}
      label={trans.__('Jobs')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={job => job.name}
      words={job =>
        [
          job.name,
          job.spec.display_name,
          job.spec.experiment_name,
          phaseText(job.status.phase, trans)
        ].join(' ')
      }
      empty={{
        text: trans.__('No jobs yet. Train in processes of their own, from a script or a cell:'),
        code: '%mlops train train.py --processes 2'
      }}
    >
      {(job, index) => <JobRow {...props} job={job} first={index === 0} />}
    </List>
  );
}

function Models({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  const now = useNow(CLOCK);
  return (
    <List<IModel>
      model={model.models}
      label={trans.__('Models')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{
        text: trans.__('No models yet. Register the one of your best run:'),
        code: '%mlops register best my-model --alias champion'
      }}
    >
      {(item, index) => {
        const args = { name: item.name };
        const open = () => execute(CommandIDs.openModel, args);
        const remove = model.readonly ? undefined : () => execute(CommandIDs.deleteModel, args);
        const time = relativeTime(item.updated_at, now, trans);
        const version = item.latest_version
          ? trans.__('version %1', item.latest_version)
          : trans.__('no version');
        return (
          <Row
            kind="model"
            name={item.name}
            first={index === 0}
            label={[item.name, version, time].join(', ')}
            icon={<mlopsIcon.react tag="span" className="jp-Mlops-icon" />}
            title={item.name}
            aside={time}
            detail={
              <>
                <span className="jp-Mlops-word">{version}</span>
                {Object.entries(item.aliases ?? {}).map(([alias, of]) => (
                  <span key={alias} className="jp-Mlops-alias" title={trans.__('version %1', of)}>
                    @{alias} → {of}
                  </span>
                ))}
                {item.description && <span className="jp-Mlops-muted">{item.description}</span>}
              </>
            }
            onOpen={open}
            onDelete={remove}
            actions={
              <>
                <IconButton
                  icon={launchIcon}
                  label={trans.__('Open in MLflow')}
                  onClick={open}
                  testId="mlops-open"
                />
                <IconButton
                  icon={deleteIcon}
                  label={trans.__('Delete the model')}
                  disabled={!remove}
                  onClick={() => remove?.()}
                  testId="mlops-delete"
                />
              </>
            }
          />
        );
      }}
    </List>
  );
}

function Endpoints({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  return (
    <List<IServed>
      model={model.endpoints}
      label={trans.__('Endpoints')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{
        text: trans.__('No endpoints yet. Put a registered model behind a URL:'),
        code: '%mlops deploy my-model@champion'
      }}
    >
      {(item, index) => {
        const { name, status } = item;
        const remove = model.readonly
          ? undefined
          : () => execute(CommandIDs.deleteEndpoint, { name });
        const word = phaseText(status.phase, trans);
        return (
          <Row
            kind="endpoint"
            name={name}
            first={index === 0}
            label={[name, word, status.reason].filter(Boolean).join(', ')}
            icon={<StatusIcon phase={status.phase} />}
            title={name}
            onDelete={remove}
            detail={
              <>
                <span className="jp-Mlops-word" aria-live="polite">
                  {word}
                </span>
                {status.phase !== 'Ready' && status.reason && (
                  <span className="jp-Mlops-reason" title={status.reason}>
                    {status.reason}
                  </span>
                )}
              </>
            }
            actions={
              <>
                <IconButton
                  icon={codeIcon}
                  label={trans.__('Copy a call in Python')}
                  onClick={() => execute(CommandIDs.copyCall, { name, language: 'python' })}
                  testId="mlops-copy-call"
                />
                <IconButton
                  icon={deleteIcon}
                  label={trans.__('Delete the endpoint')}
                  disabled={!remove}
                  onClick={() => remove?.()}
                  testId="mlops-delete"
                />
              </>
            }
          >
            {status.scoring_uri && (
              <div className="jp-Mlops-url">
                <code title={status.scoring_uri}>{status.scoring_uri}</code>
                <CopyButton
                  text={status.scoring_uri}
                  label={trans.__('Copy the URL')}
                  trans={trans}
                  testId="mlops-copy-url"
                />
              </div>
            )}
            {item.deployments.map(one => {
              const share = item.spec.traffic?.[one.name] ?? 0;
              const served = one.status.model_name || one.spec.model;
              return (
                <div key={one.name} className="jp-Mlops-deployment" title={one.status.reason}>
                  <Status phase={one.status.phase} trans={trans} />
                  <span>{one.name}</span>
                  <span className="jp-Mlops-muted">
                    {one.status.model_version ? `${served} v${one.status.model_version}` : served}
                  </span>
                  <span title={trans.__('Share of the traffic')}>{share} %</span>
                </div>
              );
            })}
          </Row>
        );
      }}
    </List>
  );
}

function Computes({ model, trans }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  return (
    <List<Compute>
      model={model.computes}
      label={trans.__('Compute')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{ text: trans.__('No compute is known.') }}
    >
      {(item, index) => {
        const { status } = item;
        const gpus = status.gpus ?? [];
        const facts = [
          trans._n('%1 CPU', '%1 CPUs', status.cpus),
          formatBytes(status.memory_bytes),
          gpus.length ? gpus.join(', ') : trans.__('no GPU')
        ];
        return (
          <Row
            kind="compute"
            name={item.name}
            first={index === 0}
            label={[item.name, phaseText(status.phase, trans), ...facts].join(', ')}
            icon={<StatusIcon phase={status.phase} />}
            title={item.name}
            aside={
              status.running_jobs
                ? trans._n('%1 running job', '%1 running jobs', status.running_jobs)
                : trans.__('idle')
            }
            detail={
              <>
                <span className="jp-Mlops-word">{phaseText(status.phase, trans)}</span>
                {facts.map(fact => (
                  <span key={fact}>{fact}</span>
                ))}
              </>
            }
          />
        );
      }}
    </List>
  );
}

export const SECTION_VIEWS: Record<SectionName, (props: ISectionProps) => JSX.Element> = {
  runs: Runs,
  jobs: Jobs,
  models: Models,
  endpoints: Endpoints,
  computes: Computes
};
