/** A server in memory, of the form that the REST client gives; only for the front end's unit tests. */
import { MessageLoop } from '@lumino/messaging';
import { Signal } from '@lumino/signaling';
import { act } from 'react';

import {
  ApiError,
  Compute,
  IApi,
  IChange,
  IClusterSpec,
  ILogChunk,
  ILogMatches,
  ILogQuery,
  IModel,
  IPageQuery,
  IRun,
  ISearchQuery,
  ISeries,
  ISurvey,
  IUsage,
  Job,
  JobPhase
} from '../src/api';
import { VERSION } from '../src/version';
import { FakeServing, page } from './servingfakes';

export function job(
  name: string,
  phase: JobPhase = 'Running',
  more: Partial<Job['status']> = {}
): Job {
  return {
    kind: 'job',
    name,
    parent: '',
    revision: 1,
    created_by: 'me',
    created_at: '2026-01-31T12:00:00.000Z',
    updated_at: '2026-01-31T12:00:00.000Z',
    spec: { experiment_name: 'digits', distribution: null },
    status: {
      phase,
      reason: '',
      run_id: `run-of-${name}`,
      experiment_id: '1',
      attempt: 1,
      queued_at: '2026-01-31T12:00:00.000Z',
      started_at: '2026-01-31T12:00:01.000Z',
      ended_at: '',
      exit_code: null,
      failed_rank: null,
      ranks: [],
      log_tail: [],
      ...more
    }
  };
}

export function run(id: string, more: Partial<IRun> = {}): IRun {
  return {
    run_id: id,
    name: id,
    experiment_id: '1',
    experiment_name: 'digits',
    status: 'FINISHED',
    lifecycle_stage: 'active',
    start_time: '2026-01-31T12:00:00.000Z',
    end_time: null,
    user: 'me',
    source: '',
    job: '',
    parent_run_id: '',
    metrics: { accuracy: 0.9 },
    params: {},
    progress: null,
    ...more
  };
}

export class FakeApi implements IApi {
  workspaceName = 'default';
  /** Calls by name, in order. */
  calls: string[] = [];
  /** Thrown by every call while it is set. */
  broken: ApiError | null = null;
  readonly = false;
  version = VERSION;
  allJobs: Job[] = [];
  allRuns: IRun[] = [];
  allModels: IModel[] = [];
  readonly serving = new FakeServing(
    (name, answer) => this._called(name, answer),
    call => this.queries.push(call)
  );
  allComputes: Compute[] = [];
  surveyed: ISurvey = {
    version: 'v1.36.2',
    namespace: { name: 'team-a', exists: true, level: 'restricted' },
    missing: [],
    role: null,
    quotas: [],
    nodes: [{ name: 'n', ready: true, usable: true }],
    capacity: { cpus: 4, memory_bytes: 8 * 1024 ** 3, 'nvidia.com/gpu': 4 },
    free: { cpus: 1, memory_bytes: 6 * 1024 ** 3, 'nvidia.com/gpu': 2 },
    engines: { kueue: true, metrics: false },
    problems: []
  };
  series: Record<string, ISeries> = {};
  /** Other curves for some runs. */
  seriesOf: Record<string, Record<string, ISeries>> = {};
  logs: Record<number, string> = { 0: '' };
  /** What is not kept of the logs. */
  hole: [number, number] | null = null;
  used: IUsage = { name: '', cpus: 2, memory_bytes: 1e9, attempts: [] };
  /** The queries of calls that have one. */
  queries: { name: string; query: object }[] = [];

  count(name: string): number {
    return this.calls.filter(call => call === name).length;
  }

  private async _called<T>(name: string, answer: () => T): Promise<T> {
    this.calls.push(name);
    await Promise.resolve();
    if (this.broken) {
      throw this.broken;
    }
    return answer();
  }

  private _find<T>(items: T[], test: (item: T) => boolean): T {
    const found = items.find(test);
    if (!found) {
      throw new ApiError('there is no such thing', 'not_found', 404);
    }
    return found;
  }

  status() {
    return this._called('status', () => ({
      version: this.version,
      workspace: 'default',
      state: 'up' as const,
      message: '',
      readonly: this.readonly
    }));
  }
  resume() {
    return this.status();
  }
  workspace() {
    return this._called('workspace', () => ({
      name: 'default',
      version: VERSION,
      owner: 'me',
      role: 'owner',
      started_at: '',
      home: '/home/me',
      url: '',
      tracking_uri: '',
      mlflow: { state: 'ready' as const, restarts: 0, version: '3', message: '' },
      gateway: { state: 'stopped' as const, url: '' },
      counts: { jobs: 0, running_jobs: 0, endpoints: 0, computes: 1 }
    }));
  }
  in() {
    return this;
  }
  jobs(query?: IPageQuery & { phase?: string }) {
    this.queries.push({ name: 'jobs', query: { ...query } });
    const wanted = this.allJobs.filter(({ status }) =>
      query?.phase === 'Deleted'
        ? status.deleted_at
        : !status.deleted_at && (!query?.phase || status.phase === query.phase)
    );
    return this._called('jobs', () => page(wanted, query));
  }
  job(name: string) {
    return this._called('job', () => this._find(this.allJobs, one => one.name === name));
  }
  stopJob(name: string) {
    return this._called('stopJob', () => this._find(this.allJobs, one => one.name === name));
  }
  resumeJob(name: string) {
    return this._called('resumeJob', () => this._find(this.allJobs, one => one.name === name));
  }
  deleteJob() {
    return this._called('deleteJob', () => undefined);
  }
  restoreJob(name: string) {
    return this._called('restoreJob', () => this._find(this.allJobs, one => one.name === name));
  }
  purgeJob() {
    return this._called('purgeJob', () => undefined);
  }
  usage() {
    return this._called('usage', () => this.used);
  }
  log(_name: string, rank: number, query: ILogQuery): Promise<ILogChunk> {
    return this._called('log', () => {
      this.queries.push({ name: 'log', query: { rank, ...query } });
      const text = this.logs[rank] ?? '';
      const asked = query.offset < 0 ? Math.max(0, text.length + query.offset) : query.offset;
      const inHole = this.hole && asked >= this.hole[0] && asked < this.hole[1];
      const offset = inHole ? this.hole![1] : asked;
      const end = this.hole && offset < this.hole[0] ? this.hole[0] : text.length;
      const part = text.slice(offset, Math.min(end, offset + (query.limit ?? 100_000)));
      const next_offset = offset + part.length;
      return {
        rank,
        attempt: query.attempt ?? 1,
        offset,
        next_offset,
        size: text.length,
        text: part,
        complete: false,
        skipped: offset - asked,
        hole: this.hole
      };
    });
  }
  searchLog(_name: string, rank: number, query: ISearchQuery): Promise<ILogMatches> {
    return this._called('searchLog', () => {
      this.queries.push({ name: 'searchLog', query: { rank, ...query } });
      const text = this.logs[rank] ?? '';
      const matches: ILogMatches['matches'] = [];
      let offset = 0;
      text.split('\n').forEach((line, i) => {
        if (line.includes(query.q) && offset >= (query.offset ?? 0)) {
          matches.push({ offset, line: i + 1, text: line });
        }
        offset += line.length + 1;
      });
      const all = matches.length <= (query.limit ?? 100);
      const found = matches.slice(0, query.limit ?? 100);
      const last = found[found.length - 1];
      const next_offset = all ? text.length : last.offset + last.text.length + 1;
      return { matches: found, next_offset, next_line: 1, size: text.length, complete: all };
    });
  }
  experiments() {
    return this._called('experiments', () => page([]));
  }
  runs(query?: IPageQuery & { experiment?: string }) {
    return this._called('runs', () =>
      page(
        this.allRuns.filter(one => !query?.experiment || one.experiment_name === query.experiment),
        query
      )
    );
  }
  run(id: string) {
    return this._called('run', () => this._find(this.allRuns, one => one.run_id === id));
  }
  deleteRun() {
    return this._called('deleteRun', () => undefined);
  }
  metrics(run_id: string) {
    return this._called('metrics', () => ({
      run_id,
      status: '',
      metrics: this.seriesOf[run_id] ?? this.series
    }));
  }
  models(query?: IPageQuery) {
    return this._called('models', () => page(this.allModels, query));
  }
  deleteModel() {
    return this._called('deleteModel', () => undefined);
  }
  computes(query?: IPageQuery) {
    return this._called('computes', () => page(this.allComputes, query));
  }
  checkCompute(name: string, spec: IClusterSpec, createNamespace: boolean) {
    this.queries.push({ name: 'checkCompute', query: { name, spec, createNamespace } });
    return this._called('checkCompute', () => this.surveyed);
  }
  putCompute(name: string, spec: IClusterSpec) {
    this.queries.push({ name: 'putCompute', query: { name, spec } });
    return this._called('putCompute', () => {
      const made = { ...this.allComputes[0], name, spec };
      this.allComputes.push(made);
      return made;
    });
  }
  survey() {
    return this._called('survey', () => this.surveyed);
  }
  openTensorboard(sources: string[]) {
    return this._called('openTensorboard', () => `/tensorboard/${sources.join('+')}/`);
  }
  mlflowUrl(route = '') {
    return `/mlflow/#${route}`;
  }
  endpointUrl(name: string) {
    return `/endpoints/${name}/invocations`;
  }
}

export class FakeEvents {
  readonly stream = new Signal<this, { schema_id: string; [key: string]: unknown }>(this);

  emit(
    items: Partial<IChange>[],
    state = 'up',
    schema_id = 'https://jupyter-mlops.github.io/events/changes/v1'
  ) {
    this.stream.emit({ schema_id, seq: 1, state, items });
  }
}

/** Do something, and wait until React has drawn what came of it. */
export async function drawn(action: () => unknown): Promise<void> {
  const page = globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean };
  page.IS_REACT_ACT_ENVIRONMENT = true;
  await act(async () => {
    await action();
    MessageLoop.flush();
  });
  page.IS_REACT_ACT_ENVIRONMENT = false;
}
