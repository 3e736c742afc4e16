/** The jobs of the panel: as many as there are, drawn as far as they can be seen. */
import {
  deleteIcon,
  HTMLSelect,
  launchIcon,
  refreshIcon,
  stopIcon,
  undoIcon
} from '@jupyterlab/ui-components';
import React from 'react';

import type { Job } from '../api';
import { elapsed, formatDuration, percent, relativeTime } from '../format';
import { chartIcon } from '../icons';
import { CommandIDs } from '../ids';
import { DELETED } from '../model';
import { ranksOf } from '../resources';
import { isTerminal } from '../snapshot';
import { IconButton, ProgressBar, useNow, useSignal } from './common';
import { List, Row } from './list';
import { incompleteText, priorityText } from './outcome';
import { CLOCK, ISectionProps } from './section';
import { phaseText, StatusIcon } from './status';

/** States that the list can be narrowed to. */
const FILTERS = ['Queued', 'Running', 'Finalizing', 'Completed', 'Failed', 'Canceled'] as const;

function JobRow(props: ISectionProps & { job: Job; first: boolean }): JSX.Element {
  const { model, trans, execute, job } = props;
  const { spec, status } = job;
  const ended = isTerminal(status.phase);
  const queued = status.phase === 'Queued';
  const deleted = !!status.deleted_at;
  // Of a thousand waiting jobs none needs the second hand.
  const now = useNow(ended || queued ? CLOCK : 1000);
  const args = { name: job.name };
  const open = () => execute(CommandIDs.openJob, args);
  const removal = deleted ? CommandIDs.purgeJob : CommandIDs.deleteJob;
  const remove = model.readonly || !ended ? undefined : () => execute(removal, args);
  const resumable = ended && !deleted && status.phase !== 'Completed';
  const progress = model.progress.get(job.name);
  const done = percent(progress);
  const word = phaseText(status.phase, trans);
  const place =
    queued && status.queue ? trans.__('%1 of %2', status.queue.place, status.queue.length) : '';
  const priority = ended ? '' : priorityText(spec.queue_settings?.priority, trans);
  const reason = (queued && status.queue?.reason) || status.reason;
  const processes = ranksOf(spec);
  const nodes = spec.resources?.instance_count ?? 1;
  const run = { id: status.run_id, experiment: status.experiment_id, name: job.name };
  return (
    <Row
      kind="job"
      name={job.name}
      first={props.first}
      label={[job.name, word, place, status.reason].filter(Boolean).join(', ')}
      icon={<StatusIcon phase={status.phase} />}
      title={job.name}
      aside={
        queued ? (
          <span data-testid="mlops-queue-place" title={trans.__('Place in the queue')}>
            {place}
          </span>
        ) : ended ? (
          relativeTime(status.ended_at || job.updated_at, now, trans)
        ) : undefined
      }
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
          {priority && <span>{priority}</span>}
          {status.attempt > 1 && <span>{trans.__('attempt %1', status.attempt)}</span>}
          {nodes > 1 && <span>{trans.__('%1 nodes', nodes)}</span>}
          {processes > nodes && <span>{trans.__('%1 processes', processes)}</span>}
          {spec.compute && spec.compute !== 'local' && (
            <span>{trans.__('on %1', spec.compute)}</span>
          )}
          {status.metrics_incomplete && (
            <span title={incompleteText(trans)} data-testid="mlops-incomplete">
              {trans.__('metrics incomplete')}
            </span>
          )}
          {reason ? (
            <span className="jp-Mlops-reason" title={reason}>
              {reason}
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
          {status.attempt > 0 && !deleted && (
            <IconButton
              icon={chartIcon}
              label={trans.__('Open in TensorBoard')}
              disabled={model.readonly}
              onClick={() => execute(CommandIDs.openTensorboard, args)}
              testId="mlops-tensorboard-open"
            />
          )}
          {resumable && (
            <IconButton
              icon={refreshIcon}
              label={trans.__('Resume the job')}
              disabled={model.readonly}
              onClick={() => execute(CommandIDs.resumeJob, args)}
              testId="mlops-resume"
            />
          )}
          {deleted && (
            <IconButton
              icon={undoIcon}
              label={trans.__('Restore the job')}
              disabled={model.readonly}
              onClick={() => execute(CommandIDs.restoreJob, args)}
              testId="mlops-restore"
            />
          )}
          {ended && (
            <IconButton
              icon={deleteIcon}
              label={deleted ? trans.__('Purge the job for good') : trans.__('Delete the job')}
              disabled={!remove}
              onClick={() => remove?.()}
              testId="mlops-delete"
            />
          )}
        </>
      }
    >
      {!ended && !queued && <ProgressBar value={done} label={trans.__('Progress')} />}
    </Row>
  );
}

export function Jobs(props: ISectionProps): JSX.Element {
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
      controls={
        (model.jobPhase || model.jobs.items.length > 0) && (
          <HTMLSelect
            value={model.jobPhase}
            aria-label={trans.__('State of the jobs')}
            data-testid="mlops-job-filter"
            onChange={event => {
              model.jobPhase = event.target.value;
            }}
          >
            <option value="">{trans.__('All states')}</option>
            {FILTERS.map(phase => (
              <option key={phase} value={phase}>
                {phaseText(phase, trans)}
              </option>
            ))}
            <option value={DELETED}>{trans.__('Deleted')}</option>
          </HTMLSelect>
        )
      }
      empty={
        model.jobPhase
          ? { text: trans.__('No job is in this state.') }
          : {
              text: trans.__(
                'No jobs yet. Train in processes of their own, from a script or a cell:'
              ),
              code: '%mlops train train.py --processes 2'
            }
      }
    >
      {(job, index) => <JobRow {...props} job={job} first={index === 0} />}
    </List>
  );
}
