/**
 * Endpoints and deployments as they travel over the REST API.
 *
 * Shares of traffic are percent, rates from 0 to 1, durations of a canary seconds, latencies milliseconds.
 */
import type { IResource } from './resources';

/** Percent of the requests by deployment; together 0 or 100. */
export type Traffic = Readonly<Record<string, number>>;

export interface ICanarySpec {
  deployment: string;
  percent?: number;
  /** Seconds. */
  duration?: number;
  min_requests?: number;
  /** Errors of its requests, from 0 to 1, beyond those that the baseline has. */
  max_error_rate?: number;
  /** Its p95 against that of the baseline. */
  max_latency_ratio?: number;
  /** Milliseconds of its p95; 0: any. */
  max_latency_ms?: number;
}

export type CanaryPhase = 'Running' | 'Promoted' | 'RolledBack' | 'Stopped';

/** What was counted of one side of a canary since it began. */
export interface ICanarySide {
  requests?: number;
  errors?: number;
  error_rate?: number;
  /** Milliseconds. */
  p50?: number | null;
  p95?: number | null;
}

export interface ICanaryStatus {
  phase: CanaryPhase;
  deployment: string;
  percent: number;
  /** The traffic before it. */
  previous?: Traffic;
  reason: string;
  started_at: string;
  ended_at: string;
  candidate?: ICanarySide | null;
  baseline?: ICanarySide | null;
}

export interface IEndpointSpec {
  auth_mode?: 'key' | 'token';
  description?: string;
  tags?: Record<string, string>;
  traffic?: Traffic;
  mirror_traffic?: Traffic;
  sticky_header?: string;
  compute?: string;
  public_network_access?: 'enabled' | 'disabled';
  canary?: ICanarySpec | null;
}

export interface IEndpointStatus {
  phase: 'Creating' | 'Ready' | 'Degraded' | 'Failed';
  reason: string;
  scoring_uri: string;
  key_hints: Record<string, string>;
  /** What is in force: what was asked for, less what is not ready. */
  traffic?: Traffic;
  /** What a rollback without a canary returns to. */
  previous_traffic?: Traffic;
  canary?: ICanaryStatus | null;
}

export type Endpoint = IResource<IEndpointSpec, IEndpointStatus>;

/** A model's signature as MLflow writes it: named columns, or tensors; and parameters of a call. */
export interface ISignature {
  inputs?: unknown;
  outputs?: unknown;
  params?: unknown;
}

/** A package whose version differs between the kernel that deployed and the deployment. */
export interface IPackageDifference {
  name: string;
  kernel: string;
  deployment: string;
}

/** What came of the sample that a deployment had to answer before it took traffic. */
export interface IProof {
  passed: boolean | null;
  kind: 'equal' | 'answered' | 'none';
  message: string;
  rows?: number;
  max_difference?: number | null;
  packages?: IPackageDifference[];
  took_ms?: number;
}

export interface IInstances {
  ready: number;
  wanted: number;
}

export interface IDeploymentSpec {
  model?: string | null;
  instance_count?: number;
  scale_settings?: { type?: string; min_instances?: number; max_instances?: number };
  data_collector?: { sampling_rate?: number; masked_columns?: string[] } | null;
  /** The sample: a request that the deployment had to answer as the kernel did. */
  proof?: { request?: unknown; origin?: string } | null;
}

export interface IDeploymentStatus {
  phase: 'Pending' | 'Preparing' | 'Starting' | 'Proving' | 'Ready' | 'Failed' | 'Deleting';
  reason: string;
  model_name: string;
  model_version: string;
  restarts: number;
  signature: ISignature;
  log_tail?: string[];
  instances?: IInstances;
  proof?: IProof | null;
}

export type Deployment = IResource<IDeploymentSpec, IDeploymentStatus>;

/** An endpoint with what stands behind it: what the panel shows in one row. */
export interface IServed extends Endpoint {
  deployments: Deployment[];
}

/** Counted since the gateway's start. */
export interface IDeploymentStats {
  requests: number;
  /** `4xx`: what callers got wrong, which is no error of the deployment. `model`: 424, `timeout`: 504, `rejected`: 429. */
  errors: Partial<Record<'4xx' | '5xx' | 'model' | 'timeout' | 'rejected', number>>;
  latency_ms: {
    count: number;
    sum: number;
    p50?: number | null;
    p95?: number | null;
    p99?: number | null;
    /** Upper bound in milliseconds (the last may be null or Infinity as text), and how many took at most that. */
    buckets?: [number | string | null, number][];
  };
  queued?: number;
  in_flight?: number;
  rows?: number;
  batches?: number;
  retried?: number;
  instances?: Partial<IInstances>;
  mirror?: Partial<Record<'compared' | 'different' | 'failed' | 'dropped', number>> | null;
  captured?: number;
  capture_dropped?: number;
}

export interface IEndpointStats {
  deployments: Record<string, IDeploymentStats>;
  /** When the gateway began to count: seconds since the epoch, or an RFC 3339 time. */
  started_at?: number | string | null;
}

/** What is kept of requests and answers. */
export interface ICaptureInfo {
  files: number;
  bytes: number;
  rows: number;
  oldest: string | null;
  newest: string | null;
  dropped?: number;
}

/** One thing that somebody did to an endpoint. */
export interface IHistoryItem {
  at: string;
  by: string;
  action: string;
  detail: Record<string, unknown>;
}

/** What an endpoint answered to one call, whether it went well or not. */
export interface IInvocation {
  status: number;
  body: unknown;
  /** Which deployment answered; empty when it is not told. */
  deployment: string;
  requestId: string;
  /** Milliseconds until the answer was there, as this page saw it. */
  took: number;
}
