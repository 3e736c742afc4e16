/** What is shown of a job, wherever it comes from: the server, or a notebook's snapshot. */
import type {
  IAttemptStatus,
  IDelivery,
  IProgress,
  IQueuePlace,
  IRun,
  ISeries,
  Job,
  JobPhase
} from './api';
import { ranksOf } from './resources';
import type { IJobOutput } from './snapshot';

/** Times are RFC 3339, empty when it has not come to that. */
export interface IJobView {
  name: string;
  title: string;
  phase: JobPhase | '';
  reason: string;
  queuedAt: string;
  startedAt: string;
  endedAt: string;
  exitCode: number | null;
  failedRank: number | null;
  processes: number;
  runId: string;
  experimentId: string;
  progress: IProgress | null;
  metrics: Record<string, ISeries>;
  experiment: string;
  priority: string;
  /** All attempts, also the one that runs. */
  attempts: readonly IAttemptStatus[];
  traceback: readonly string[];
  /** The last lines of the failing rank. */
  logTail: readonly string[];
  /** When the next attempt is due, as an RFC 3339 time. */
  retryAt: string;
  delivery: IDelivery | null;
  /** Whether metrics were lost with a node. */
  incomplete: boolean;
  queue: IQueuePlace | null;
  deletedAt: string;
  /** Which way large files come from a cluster, in words. */
  route: string;
}

/** Attempts as the status tells them: those that have ended, then the one that runs or was the last. */
export function attemptsOf(status: Job['status']): IAttemptStatus[] {
  const attempts: IAttemptStatus[] = [...(status.attempts ?? [])];
  const last = attempts[attempts.length - 1];
  if (status.attempt > (last?.attempt ?? 0) && status.started_at) {
    // The job has started with its first attempt; a later one has not begun before the one before it ended.
    const started_at =
      last && last.ended_at > status.started_at ? last.ended_at : status.started_at;
    attempts.push({
      attempt: status.attempt,
      phase: status.phase,
      reason: status.reason,
      started_at,
      ended_at: status.ended_at,
      exit_code: status.exit_code,
      failed_rank: status.failed_rank
    });
  }
  return attempts;
}

/** What is known beside the job itself. */
export interface IKnown {
  name: string;
  runId: string;
  stored: IJobOutput | null;
  metrics: Record<string, ISeries>;
}

/** As the notebook's snapshot has it. */
export function storedFacts({ name, runId, stored, metrics }: IKnown): IJobView {
  const snapshot = stored?.snapshot;
  return {
    name,
    title: name,
    phase: snapshot?.phase ?? '',
    reason: snapshot?.reason ?? '',
    queuedAt: snapshot?.queued_at ?? '',
    startedAt: snapshot?.started_at ?? '',
    endedAt: snapshot?.ended_at ?? '',
    exitCode: snapshot?.exit_code ?? null,
    failedRank: null,
    processes: snapshot?.processes ?? 1,
    runId,
    experimentId: stored?.experiment_id ?? '',
    progress: snapshot?.progress ?? null,
    metrics,
    experiment: '',
    priority: '',
    attempts: [],
    traceback: [],
    logTail: [],
    retryAt: '',
    delivery: null,
    incomplete: false,
    queue: null,
    deletedAt: '',
    route: ''
  };
}

/** As the server has it; the snapshot fills what it does not know. */
export function jobFacts(
  { name, created_at, spec, status }: Job,
  run: IRun | null,
  { runId, stored, metrics }: IKnown
): IJobView {
  return {
    name,
    title: name,
    phase: status.phase,
    reason: status.reason ?? '',
    queuedAt: status.queued_at || created_at,
    startedAt: status.started_at,
    endedAt: status.ended_at,
    exitCode: status.exit_code,
    failedRank: status.failed_rank,
    processes: ranksOf(spec),
    runId: status.run_id || runId,
    experimentId: status.experiment_id || stored?.experiment_id || '',
    progress: status.progress ?? run?.progress ?? stored?.snapshot.progress ?? null,
    metrics,
    experiment: run?.experiment_name ?? spec.experiment_name ?? '',
    priority: spec.queue_settings?.priority ?? '',
    attempts: attemptsOf(status),
    traceback: status.traceback ?? [],
    logTail: status.log_tail ?? [],
    retryAt: status.retry_at ?? '',
    delivery: status.delivery ?? null,
    incomplete: status.metrics_incomplete ?? false,
    queue: status.queue ?? null,
    deletedAt: status.deleted_at ?? '',
    route: status.route ?? ''
  };
}
