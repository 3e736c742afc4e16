/**
 * The typed client of the REST API, through the page's Jupyter server.
 *
 * Only this file knows URLs. Times are RFC 3339 strings in UTC, log offsets are bytes.
 */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type {
  Compute,
  IClusterSpec,
  IExperiment,
  ILogChunk,
  ILogMatches,
  ILogQuery,
  IMetricHistory,
  IModel,
  IPage,
  IPageQuery,
  IRun,
  ISearchQuery,
  IServerStatus,
  ISurvey,
  IUsage,
  IWorkspace,
  Job
} from './resources';
import { IServingApi, ServingApi } from './servingapi';
import { VERSION } from './version';

export type * from './resources';
export type { IServingApi, ITrafficChange } from './servingapi';

const NAMESPACE = 'jupyter-mlops';

export const EVENT_SCHEMA = 'https://jupyter-mlops.github.io/events/changes/v1';

/**
 * A failed call: `message` says what is wrong, `hint` what to do, `code` is for programs.
 *
 * Codes of our own beside the server's: `unreachable` (no answer at all), `not_installed` (no server half),
 * `bad_answer` (something else than our API answered, such as a login page).
 */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly code: string,
    readonly status: number,
    readonly hint: string = ''
  ) {
    super(message);
    this.name = 'ApiError';
  }

  /** Whether a later try may succeed without anybody doing something. */
  get transient(): boolean {
    return this.code === 'unreachable' || this.status >= 500 || this.status === 429;
  }
}

/** What the panel, the renderer and the commands need; tests give a small object of the same form. */
export interface IApi {
  /** The workspace that all calls are about. */
  workspaceName: string;
  /** The same connection, for another workspace. */
  in(workspaceName: string): IApi;
  status(): Promise<IServerStatus>;
  resume(): Promise<IServerStatus>;
  workspace(): Promise<IWorkspace>;
  jobs(query?: IPageQuery & { phase?: string }): Promise<IPage<Job>>;
  job(name: string): Promise<Job>;
  stopJob(name: string): Promise<Job>;
  /** Start another attempt of a job that has ended without success. */
  resumeJob(name: string): Promise<Job>;
  /** It can be restored until it is purged. */
  deleteJob(name: string): Promise<void>;
  restoreJob(name: string): Promise<Job>;
  /** Remove for good. */
  purgeJob(name: string): Promise<void>;
  usage(name: string, maxPoints: number): Promise<IUsage>;
  /** Have TensorBoard run over jobs, runs or folders; resolves to its address when it is up. */
  openTensorboard(sources: string[]): Promise<string>;
  log(name: string, rank: number, query: ILogQuery): Promise<ILogChunk>;
  searchLog(name: string, rank: number, query: ISearchQuery): Promise<ILogMatches>;
  experiments(): Promise<IPage<IExperiment>>;
  runs(query?: IPageQuery & { experiment?: string }): Promise<IPage<IRun>>;
  run(id: string): Promise<IRun>;
  deleteRun(id: string): Promise<void>;
  metrics(runId: string, maxPoints: number): Promise<IMetricHistory>;
  models(query?: IPageQuery): Promise<IPage<IModel>>;
  deleteModel(name: string): Promise<void>;
  /** The calls about endpoints. */
  readonly serving: IServingApi;
  computes(query?: IPageQuery): Promise<IPage<Compute>>;
  /** Ask a cluster whether it can be attached; nothing is saved. */
  checkCompute(name: string, spec: IClusterSpec, createNamespace: boolean): Promise<ISurvey>;
  putCompute(name: string, spec: IClusterSpec): Promise<Compute>;
  /** What is free on an attached cluster. */
  survey(name: string): Promise<ISurvey>;
  mlflowUrl(route?: string): string;
  endpointUrl(name: string): string;
}

export class Api implements IApi {
  /**
   * @param serverSettings - the connection to the Jupyter server of this page
   * @param workspaceName - the workspace that all calls are about
   */
  constructor(
    readonly serverSettings: ServerConnection.ISettings,
    public workspaceName: string = 'default'
  ) {
    this.serving = new ServingApi({
      send: (method, parts, query, body) =>
        this._request(method, this._path(parts), query, JSON.stringify(body ?? {})),
      raw: (method, parts, query, body) => this._send(method, this._path(parts), query, body),
      url: (parts, query) => this._url(this._path(parts), query),
      isMissing: error => error instanceof ApiError && error.status === 404
    });
  }

  readonly serving: IServingApi;

  /** The same connection, for one workspace. */
  in(workspaceName: string): Api {
    return workspaceName === this.workspaceName
      ? this
      : new Api(this.serverSettings, workspaceName);
  }

  async status(): Promise<IServerStatus> {
    try {
      const status = await this._request<Partial<IServerStatus>>('GET', ['status']);
      if (typeof status.version !== 'string' || typeof status.state !== 'string') {
        throw new ApiError('The answer is not that of Jupyter MLOps', 'bad_answer', 200);
      }
      return status as IServerStatus;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        throw new ApiError('The server half is missing', 'not_installed', 404);
      }
      throw error;
    }
  }

  /** Start the control plane again after somebody stopped it on purpose. */
  resume(): Promise<IServerStatus> {
    return this._request('POST', ['status']);
  }

  workspace(): Promise<IWorkspace> {
    return this._get([]);
  }

  jobs(query: IPageQuery & { phase?: string } = {}): Promise<IPage<Job>> {
    return this._get(['jobs'], query);
  }

  job(name: string): Promise<Job> {
    return this._get(['jobs', name]);
  }

  stopJob(name: string): Promise<Job> {
    return this._request('POST', this._path(['jobs', name, 'actions', 'stop']));
  }

  resumeJob(name: string): Promise<Job> {
    return this._request('POST', this._path(['jobs', name, 'actions', 'resume']));
  }

  deleteJob(name: string): Promise<void> {
    return this._request('DELETE', this._path(['jobs', name]));
  }

  restoreJob(name: string): Promise<Job> {
    return this._request('POST', this._path(['jobs', name, 'actions', 'restore']));
  }

  purgeJob(name: string): Promise<void> {
    return this._request('POST', this._path(['jobs', name, 'actions', 'purge']));
  }

  usage(name: string, maxPoints: number): Promise<IUsage> {
    return this._get(['jobs', name, 'usage'], { max_points: maxPoints });
  }

  async openTensorboard(sources: string[]): Promise<string> {
    const body = JSON.stringify({ sources });
    const answer = await this._request<{ path: string }>(
      'POST',
      this._path(['tensorboards']),
      {},
      body
    );
    return URLExt.join(this.serverSettings.baseUrl, NAMESPACE, answer.path);
  }

  log(name: string, rank: number, query: ILogQuery): Promise<ILogChunk> {
    return this._get(['jobs', name, 'logs', String(rank)], query);
  }

  searchLog(name: string, rank: number, query: ISearchQuery): Promise<ILogMatches> {
    return this._get(['jobs', name, 'logs', String(rank), 'search'], query);
  }

  experiments(): Promise<IPage<IExperiment>> {
    return this._get(['experiments'], { limit: 200 });
  }

  runs(query: IPageQuery & { experiment?: string } = {}): Promise<IPage<IRun>> {
    return this._get(['runs'], query);
  }

  run(id: string): Promise<IRun> {
    return this._get(['runs', id]);
  }

  deleteRun(id: string): Promise<void> {
    return this._request('DELETE', this._path(['runs', id]));
  }

  metrics(runId: string, maxPoints: number): Promise<IMetricHistory> {
    return this._get(['runs', runId, 'metrics'], { max_points: maxPoints });
  }

  models(query: IPageQuery = {}): Promise<IPage<IModel>> {
    return this._get(['models'], query);
  }

  deleteModel(name: string): Promise<void> {
    return this._request('DELETE', this._path(['models', name]));
  }

  computes(query: IPageQuery = {}): Promise<IPage<Compute>> {
    return this._get(['computes'], query);
  }

  checkCompute(name: string, spec: IClusterSpec, createNamespace: boolean): Promise<ISurvey> {
    const body = JSON.stringify({ spec, create_namespace: createNamespace });
    return this._request('POST', this._path(['computes', name, 'actions', 'check']), {}, body);
  }

  putCompute(name: string, spec: IClusterSpec): Promise<Compute> {
    return this._request('PUT', this._path(['computes', name]), {}, JSON.stringify(spec));
  }

  survey(name: string): Promise<ISurvey> {
    return this._get(['computes', name, 'survey']);
  }

  /** The page of the MLflow UI for a route such as `/experiments/0/runs/abc`. */
  mlflowUrl(route: string = ''): string {
    const base = URLExt.join(this.serverSettings.baseUrl, NAMESPACE, 'mlflow') + '/';
    return route ? `${base}#${route}` : base;
  }

  /** Where an endpoint is called from outside of this machine. */
  endpointUrl(name: string): string {
    const path = [NAMESPACE, 'endpoints', encodeURIComponent(name), 'invocations'];
    return URLExt.join(this.serverSettings.baseUrl, ...path);
  }

  private _path(parts: string[]): string[] {
    return ['api', 'v1', 'workspaces', this.workspaceName, ...parts];
  }

  private _get<T>(parts: string[], query: object = {}): Promise<T> {
    return this._request<T>('GET', this._path(parts), query);
  }

  private _url(parts: string[], query: object = {}): string {
    const search = new URLSearchParams();
    for (const [key, value] of Object.entries(query)) {
      if (value !== undefined && value !== null && value !== '') {
        search.set(key, String(value));
      }
    }
    const path = parts.map(encodeURIComponent);
    const url = URLExt.join(this.serverSettings.baseUrl, NAMESPACE, ...path);
    return search.size ? `${url}?${search}` : url;
  }

  private async _send(
    method: string,
    parts: string[],
    query: object,
    body: string
  ): Promise<Response> {
    const init: RequestInit = {
      method,
      // With 'no-store', Jupyter adds a number to the query, which a strict server would refuse.
      cache: 'no-cache',
      headers: { 'Content-Type': 'application/json', 'Jupyter-Mlops-Version': VERSION }
    };
    if (method !== 'GET' && method !== 'DELETE') {
      init.body = body;
    }
    try {
      return await ServerConnection.makeRequest(this._url(parts, query), init, this.serverSettings);
    } catch {
      throw new ApiError('The Jupyter server does not answer', 'unreachable', 0);
    }
  }

  private async _request<T>(
    method: string,
    parts: string[],
    query: object = {},
    sent = '{}'
  ): Promise<T> {
    const response = await this._send(method, parts, query, sent);
    if (response.status === 204) {
      return undefined as T;
    }
    let body: unknown;
    try {
      body = await response.json();
    } catch {
      body = undefined;
    }
    if (!response.ok) {
      throw toError(response, body);
    }
    if (body === undefined) {
      // A login page answers 200 with HTML when the session has ended.
      throw new ApiError('The answer could not be read', 'bad_answer', response.status);
    }
    return body as T;
  }
}

function toError(response: Response, body: unknown): ApiError {
  const error = (typeof body === 'object' && body !== null ? body : {}) as Record<string, unknown>;
  const text = (value: unknown) => (typeof value === 'string' ? value.slice(0, 1000) : '');
  const message = text(error.message) || `HTTP ${response.status} ${response.statusText}`.trim();
  return new ApiError(message, text(error.code), response.status, text(error.hint));
}
