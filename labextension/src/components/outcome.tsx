/**
 * How a job stands or ended: what it waits for, why it failed, its earlier attempts, what is still delivered, and which
 * way its files come.
 */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { elapsed, formatBytes, formatDuration } from '../format';
import type { IJobView } from '../jobfacts';
import { isTerminal } from '../snapshot';
import { CopyButton, Message } from './common';
import { Status } from './status';

/** Lines of log beside a failure; the log itself has the rest. */
const MAX_TAIL = 12;

export function exitText(code: number | null, trans: TranslationBundle): string {
  if (code === null) {
    return '';
  }
  return code < 0 ? trans.__('ended by signal %1', -code) : trans.__('exit code %1', code);
}

function causeText(rank: number | null, code: number | null, trans: TranslationBundle): string {
  const where = rank !== null ? trans.__('Rank %1', rank) : '';
  return [where, exitText(code, trans)].filter(Boolean).join(' · ');
}

export function priorityText(priority: string | undefined, trans: TranslationBundle): string {
  switch (priority) {
    case 'high':
      return trans.__('high priority');
    case 'low':
      return trans.__('low priority');
    default:
      return '';
  }
}

/** What `metrics_incomplete` means. */
export function incompleteText(trans: TranslationBundle): string {
  return trans.__('Metrics are incomplete: a node was lost with what its ranks had logged last.');
}

function Waiting({ view, trans }: { view: IJobView; trans: TranslationBundle }): JSX.Element {
  const parts = [
    view.queue ? trans.__('%1 of %2 in the queue', view.queue.place, view.queue.length) : '',
    priorityText(view.priority, trans),
    view.queue?.reason ?? ''
  ].filter(Boolean);
  const due = view.retryAt ? new Date(view.retryAt).toLocaleTimeString() : '';
  return (
    <div className="jp-Mlops-liveReason" role="status" data-testid="mlops-live-queue">
      {parts.join(' · ') || view.reason}
      {due && <div>{trans.__('The next attempt is due at %1.', due)}</div>}
    </div>
  );
}

function Delivery({ view, trans }: { view: IJobView; trans: TranslationBundle }) {
  const { delivery } = view;
  if (!delivery) {
    return null;
  }
  const parts: string[] = [];
  if (!isTerminal(view.phase) && delivery.pending > 0) {
    parts.push(trans.__('%1 not yet in MLflow', formatBytes(delivery.pending)));
  }
  if (delivery.rejected > 0) {
    parts.push(
      trans._n('%1 record refused by MLflow', '%1 records refused by MLflow', delivery.rejected)
    );
  }
  if (delivery.damaged > 0) {
    parts.push(trans.__('%1 of torn records skipped', formatBytes(delivery.damaged)));
  }
  if (delivery.message) {
    parts.push(delivery.message);
  }
  // What is on its way while a job runs is no news.
  const quiet = view.phase === 'Running' && !delivery.message && !delivery.rejected;
  return parts.length && !quiet ? (
    <div className="jp-Mlops-liveReason" role="status" data-testid="mlops-live-delivery">
      {parts.join(' · ')}
    </div>
  ) : null;
}

function Failure({ view, trans }: { view: IJobView; trans: TranslationBundle }): JSX.Element {
  const tail = view.traceback.length ? [] : view.logTail.slice(-MAX_TAIL);
  const cause = causeText(view.failedRank, view.exitCode, trans);
  return (
    <Message
      tone="error"
      title={view.reason || cause || trans.__('Failed')}
      testId="mlops-live-reason"
    >
      {view.reason ? cause : ''}
      {view.traceback.length > 0 && (
        <details className="jp-Mlops-trace" data-testid="mlops-live-traceback">
          <summary>
            <span>{trans.__('Traceback')}</span>
            <code>{view.traceback[view.traceback.length - 1]}</code>
            <CopyButton
              text={view.traceback.join('\n')}
              label={trans.__('Copy the traceback')}
              trans={trans}
            />
          </summary>
          <pre tabIndex={0}>{view.traceback.join('\n')}</pre>
        </details>
      )}
      {tail.length > 0 && (
        <details className="jp-Mlops-trace" data-testid="mlops-live-tail">
          <summary>
            <span>{trans.__('Last lines')}</span>
            <code>{tail[tail.length - 1]}</code>
          </summary>
          <pre tabIndex={0}>{tail.join('\n')}</pre>
        </details>
      )}
    </Message>
  );
}

function Attempts({ view, trans }: { view: IJobView; trans: TranslationBundle }) {
  const waits = view.phase === 'Queued' || view.phase === '';
  const earlier = waits ? view.attempts : view.attempts.slice(0, -1);
  if (!earlier.length) {
    return null;
  }
  return (
    <details className="jp-Mlops-attempts" data-testid="mlops-live-attempts">
      <summary>{trans._n('%1 earlier attempt', '%1 earlier attempts', earlier.length)}</summary>
      <ol>
        {earlier.map(one => (
          <li key={one.attempt} value={one.attempt}>
            <Status phase={one.phase} trans={trans} />
            <span>{formatDuration(elapsed(one.started_at, one.ended_at, 0))}</span>
            <span className="jp-Mlops-muted">
              {one.reason || causeText(one.failed_rank, one.exit_code, trans)}
            </span>
          </li>
        ))}
      </ol>
    </details>
  );
}

export function Outcome(props: { view: IJobView; trans: TranslationBundle }): JSX.Element {
  const { view, trans } = props;
  const failed = view.phase === 'Failed';
  const waits = view.phase === 'Queued' && (view.queue !== null || view.retryAt !== '');
  return (
    <>
      {view.deletedAt && (
        <div className="jp-Mlops-notice" role="status" data-testid="mlops-live-deleted">
          {trans.__('This job was deleted. It can be restored until it is purged.')}
        </div>
      )}
      {waits && <Waiting view={view} trans={trans} />}
      {failed && (view.reason || view.exitCode !== null) && <Failure view={view} trans={trans} />}
      {!failed && !waits && view.reason && <div className="jp-Mlops-liveReason">{view.reason}</div>}
      {view.incomplete && (
        <div className="jp-Mlops-notice" role="status" data-testid="mlops-live-incomplete">
          {incompleteText(trans)}
        </div>
      )}
      <Delivery view={view} trans={trans} />
      {view.route && (
        <div className="jp-Mlops-liveReason" data-testid="mlops-live-route">
          {trans.__('Large files: %1', view.route)}
        </div>
      )}
      <Attempts view={view} trans={trans} />
    </>
  );
}
