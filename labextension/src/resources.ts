/** What travels over the REST API. Times are RFC 3339 strings in UTC, log offsets and sizes are bytes. */
export type * from './served';

/** What the Jupyter server extension knows, without asking the control plane. */
export interface IServerStatus {
  version: string;
  workspace: string;
  state: 'up' | 'starting' | 'down';
  message: string;
  readonly: boolean;
  /** How our command line is called in a terminal of this server. */
  command?: string;
}

export interface IWorkspace {
  name: string;
  version: string;
  owner: string;
  role: string;
  started_at: string;
  home: string;
  url: string;
  tracking_uri: string;
  mlflow: {
    state: 'starting' | 'ready' | 'restarting' | 'failed' | 'stopped';
    restarts: number;
    version: string;
    message: string;
  };
  gateway: { state: 'stopped' | 'starting' | 'ready' | 'failed'; url: string };
  counts: { jobs: number; running_jobs: number; endpoints: number; computes: number };
}

/** The envelope in which every resource travels. */
export interface IResource<S, T> {
  kind: string;
  name: string;
  parent: string;
  revision: number;
  created_by: string;
  created_at: string;
  updated_at: string;
  spec: S;
  status: T;
}

export type JobPhase =
  | 'Queued'
  | 'Starting'
  | 'Running'
  | 'Stopping'
  | 'Finalizing'
  | 'Completed'
  | 'Failed'
  | 'Canceled';

export interface IProgress {
  done: number;
  total: number;
}

/** A job's attempt; times are RFC 3339, empty when it has not come to that. */
export interface IAttemptStatus {
  attempt: number;
  phase: string;
  reason: string;
  started_at: string;
  ended_at: string;
  exit_code: number | null;
  failed_rank: number | null;
}

/** What of a job's journal has reached MLflow: counts of records, `pending` in bytes. */
export interface IDelivery {
  delivered: number;
  pending: number;
  duplicates: number;
  rejected: number;
  damaged: number;
  message: string;
}

/** Where a waiting job stands; place 1 is the next to start. */
export interface IQueuePlace {
  place: number;
  length: number;
  reason: string;
}

export interface IJobSpec {
  display_name?: string;
  experiment_name?: string;
  command?: string | null;
  script?: string | null;
  compute?: string;
  distribution?: { type: string; process_count_per_instance: number } | null;
  resources?: { instance_count?: number };
  queue_settings?: { priority: string };
}

export interface IJobStatus {
  phase: JobPhase;
  reason: string;
  run_id: string;
  experiment_id: string;
  attempt: number;
  queued_at: string;
  started_at: string;
  ended_at: string;
  exit_code: number | null;
  failed_rank: number | null;
  ranks: { rank: number; phase: string; pid: number | null; exit_code: number | null }[];
  log_tail: string[];
  progress?: IProgress | null;
  traceback?: string[];
  attempts?: IAttemptStatus[];
  retry_at?: string;
  delivery?: IDelivery | null;
  /** Whether a node was lost with what its ranks had logged last. */
  metrics_incomplete?: boolean;
  queue?: IQueuePlace | null;
  deleted_at?: string;
  /** Which way large files come from a cluster, in words. */
  route?: string;
}

/** How many ranks a job has, on all its nodes together. */
export function ranksOf(spec: IJobSpec): number {
  return (
    (spec.distribution?.process_count_per_instance ?? 1) * (spec.resources?.instance_count ?? 1)
  );
}

export type Job = IResource<IJobSpec, IJobStatus>;

export interface IRun {
  run_id: string;
  name: string;
  experiment_id: string;
  experiment_name: string;
  status: string;
  lifecycle_stage: string;
  start_time: string | null;
  end_time: string | null;
  user: string;
  source: string;
  job: string;
  parent_run_id: string;
  metrics: Record<string, number | null>;
  params: Record<string, string>;
  progress: IProgress | null;
}

export interface IModel {
  name: string;
  description: string;
  latest_version: string | number | null;
  aliases: Record<string, string | number>;
  created_at: string | null;
  updated_at: string | null;
}

export interface IComputeStatus {
  phase: string;
  reason: string;
  cpus: number;
  memory_bytes: number;
  gpus: string[];
  running_jobs: number;
  queued_jobs?: number;
}

export interface IComputeSpec {
  type: string;
  description?: string;
  max_processes?: number;
  context?: string;
  namespace?: string;
  training?: { image?: string; queue?: string };
  serving?: { image?: string };
}

export type Compute = IResource<IComputeSpec, IComputeStatus>;

/** A cluster to be attached. */
export type IClusterSpec = IComputeSpec & { type: 'kubernetes'; namespace: string };

/** Where packages stay that jobs have installed: in each pod alone, in a claim, or in a folder of each node. */
export interface IPackageCache {
  kind: 'pod' | 'claim' | 'host_path';
  name: string;
  /** Above this the least recently used go. */
  size: string;
  access_modes: string[];
}

/** How large files come back from pods: through the API's proxy, or over execution streams, and why so. */
export interface ITransfer {
  way: 'proxy' | 'exec';
  why: string;
}

/** A claim in which the folders of jobs lie, and an object store that large files go through; empty: none. */
export interface IStore {
  claim: string;
  url: string;
  /** Why the object store is not used; empty: it is. */
  trouble: string;
}

/** Where pods of jobs may call the control plane. */
export interface IRoute {
  listen: string;
  /** The same as pods see it. */
  address: string;
  /** Why it is not used; empty: it is. */
  trouble: string;
}

/** What is true of a cluster; null is what its credentials may not see. Amounts are CPUs, bytes and devices. */
export interface ISurvey {
  version: string;
  namespace: { name: string; exists: boolean | null; level: string };
  missing: string[];
  role: object | null;
  quotas: { quota: string; resource: string; used: string; hard: string }[] | null;
  nodes: { name: string; ready: boolean; usable: boolean }[] | null;
  capacity: Record<string, number> | null;
  free: Record<string, number> | null;
  engines: Record<string, boolean>;
  package_cache?: IPackageCache | null;
  transfer?: ITransfer | null;
  store?: IStore | null;
  route?: IRoute | null;
  problems: { message: string; hint: string; fatal: boolean }[];
}

export interface ISeries {
  steps: number[];
  values: (number | null)[];
  /** Milliseconds since the epoch, where they are known. */
  timestamps?: number[];
}

export interface IMetricHistory {
  run_id: string;
  status: string;
  metrics: Record<string, ISeries & { last?: number | null; total?: number }>;
}

export interface ILogChunk {
  rank: number;
  attempt: number;
  offset: number;
  next_offset: number;
  size: number;
  text: string;
  complete: boolean;
  /** Bytes between the offset that was asked for and `offset` that are not kept. */
  skipped?: number;
  /** Begin and end of what is not kept of this log. */
  hole?: [number, number] | null;
}

export interface ILogQuery {
  offset: number;
  limit?: number;
  attempt?: number;
}

export interface IExperiment {
  experiment_id: string;
  name: string;
  lifecycle_stage: string;
}

export interface IPage<T> {
  items: T[];
  next_token?: string | null;
}

export interface IPageQuery {
  limit?: number;
  page_token?: string;
}

/** One change, as the event stream brings it. */
export interface IChange {
  seq: number;
  kind: string;
  name: string;
  parent?: string;
  op: 'put' | 'delete';
  revision?: number;
  phase?: string;
}

/** A search in a rank's log from `offset` on, which is at line `line`. */
export interface ISearchQuery {
  q: string;
  offset?: number;
  line?: number;
  limit?: number;
  attempt?: number;
}

export interface ILogMatch {
  /** Where its line begins. */
  offset: number;
  /** Its number from 1; null behind what is not kept. */
  line: number | null;
  text: string;
}

export interface ILogMatches {
  matches: ILogMatch[];
  next_offset: number;
  next_line: number | null;
  size: number;
  complete: boolean;
}

type Numbers = (number | null)[];

/** What the processes of one attempt use; all lists are as long as `times`, in milliseconds since the epoch. */
export interface IUsageSamples {
  times: number[];
  /** `cpu` in cores, `gpu` in percent, the others in bytes. */
  ranks: {
    rank: number;
    /** The number of its machine. */
    node?: number;
    cpu: Numbers;
    rss: Numbers;
    gpu: Numbers;
    gpu_memory: Numbers;
    peak_rss: number | null;
  }[];
}

/** `cpus` and `memory_bytes` are the machine's. */
export interface IUsage {
  name: string;
  cpus: number;
  memory_bytes: number;
  attempts: { attempt: number; started_at: string; ended_at: string; samples: IUsageSamples }[];
}
