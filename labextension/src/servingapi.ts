/** The calls about endpoints and deployments. */
import type {
  Deployment,
  Endpoint,
  ICanarySpec,
  ICaptureInfo,
  IEndpointStats,
  IHistoryItem,
  IInvocation,
  ILogChunk,
  ILogQuery,
  IPage,
  IPageQuery,
  IServed,
  Traffic
} from './resources';

/** How the client sends: `parts` are those of the path below the workspace. */
export interface ISender {
  send<T>(method: string, parts: string[], query?: object, body?: unknown): Promise<T>;
  /** The answer as it is, also when it tells an error. */
  raw(method: string, parts: string[], query: object, body: string): Promise<Response>;
  url(parts: string[], query?: object): string;
  /** Whether an error says that the thing is not there. */
  isMissing(error: unknown): boolean;
}

export interface IServingApi {
  list(query?: IPageQuery): Promise<IPage<IServed>>;
  endpoint(name: string): Promise<Endpoint>;
  /** Without the samples that they were proven with. */
  deployments(name: string): Promise<Deployment[]>;
  deployment(name: string, deployment: string): Promise<Deployment>;
  deleteEndpoint(name: string): Promise<void>;
  deleteDeployment(name: string, deployment: string): Promise<void>;
  setTraffic(name: string, change: ITrafficChange): Promise<Endpoint>;
  startCanary(name: string, canary: ICanarySpec): Promise<Endpoint>;
  promote(name: string): Promise<Endpoint>;
  /** End a canary that runs, or return to the traffic before. */
  rollback(name: string, reason?: string): Promise<Endpoint>;
  /** The new key; it is told only this once. */
  rotateKey(name: string, key: string): Promise<{ key: string; value: string }>;
  token(name: string, seconds: number): Promise<{ token: string; expires_at: string }>;
  /** Call it as its owner; `body` is JSON. */
  invoke(name: string, body: string, deployment?: string): Promise<IInvocation>;
  stats(name: string): Promise<IEndpointStats>;
  captured(name: string): Promise<ICaptureInfo>;
  history(name: string, limit: number): Promise<IHistoryItem[]>;
  log(name: string, deployment: string, instance: number, query: ILogQuery): Promise<ILogChunk>;
  /** Where the captured rows, the OpenAPI document and its page are had. */
  url(name: string, what: 'data' | 'openapi.json' | 'docs'): string;
}

/** What is not given stays as it is. */
export interface ITrafficChange {
  traffic?: Traffic;
  mirror_traffic?: Traffic | null;
  sticky_header?: string;
}

export class ServingApi implements IServingApi {
  constructor(private readonly _sender: ISender) {}

  async list(query: IPageQuery = {}): Promise<IPage<IServed>> {
    const page = await this._sender.send<IPage<Endpoint>>('GET', ['endpoints'], query);
    const items = await Promise.all(
      page.items.map(async endpoint => {
        try {
          return { ...endpoint, deployments: await this.deployments(endpoint.name) };
        } catch (error) {
          // Deleted between the two calls: the next refresh will not list it any more.
          if (this._sender.isMissing(error)) {
            return { ...endpoint, deployments: [] };
          }
          throw error;
        }
      })
    );
    return { items, next_token: page.next_token };
  }

  endpoint(name: string): Promise<Endpoint> {
    return this._get(name);
  }

  async deployments(name: string): Promise<Deployment[]> {
    const page = await this._get<IPage<Deployment>>(name, ['deployments'], { limit: 200 });
    // The oldest first: how one is marked does not change when another comes.
    return page.items.sort((a, b) => a.created_at?.localeCompare(b.created_at) || 0);
  }

  deployment(name: string, deployment: string): Promise<Deployment> {
    return this._get(name, ['deployments', deployment]);
  }

  deleteEndpoint(name: string): Promise<void> {
    return this._sender.send('DELETE', ['endpoints', name]);
  }

  deleteDeployment(name: string, deployment: string): Promise<void> {
    return this._sender.send('DELETE', ['endpoints', name, 'deployments', deployment]);
  }

  setTraffic(name: string, change: ITrafficChange): Promise<Endpoint> {
    return this._act(name, 'traffic', change);
  }

  startCanary(name: string, canary: ICanarySpec): Promise<Endpoint> {
    return this._act(name, 'canary', canary);
  }

  promote(name: string): Promise<Endpoint> {
    return this._act(name, 'promote', {});
  }

  rollback(name: string, reason = ''): Promise<Endpoint> {
    return this._act(name, 'rollback', reason ? { reason } : {});
  }

  rotateKey(name: string, key: string): Promise<{ key: string; value: string }> {
    return this._act(name, 'rotate-keys', { key });
  }

  token(name: string, seconds: number): Promise<{ token: string; expires_at: string }> {
    return this._act(name, 'token', { expires_in: seconds });
  }

  async invoke(name: string, body: string, deployment = ''): Promise<IInvocation> {
    const start = performance.now();
    const parts = ['endpoints', name, 'actions', 'invoke'];
    const response = await this._sender.raw('POST', parts, { deployment }, body);
    const text = await response.text();
    const took = performance.now() - start;
    let answer: unknown;
    try {
      answer = JSON.parse(text);
    } catch {
      answer = text.slice(0, 2000);
    }
    return {
      status: response.status,
      body: answer,
      deployment: response.headers.get('X-Deployment') ?? '',
      requestId: response.headers.get('X-Request-Id') ?? '',
      took
    };
  }

  stats(name: string): Promise<IEndpointStats> {
    return this._get(name, ['stats']);
  }

  captured(name: string): Promise<ICaptureInfo> {
    return this._get(name, ['data', 'info']);
  }

  async history(name: string, limit: number): Promise<IHistoryItem[]> {
    const page = await this._get<{ items: IHistoryItem[] }>(name, ['history'], { limit });
    return page.items;
  }

  log(name: string, deployment: string, instance: number, query: ILogQuery): Promise<ILogChunk> {
    const { offset, limit } = query;
    return this._get(name, ['deployments', deployment, 'logs'], {
      offset,
      limit,
      instance: instance || undefined
    });
  }

  url(name: string, what: 'data' | 'openapi.json' | 'docs'): string {
    return this._sender.url(['endpoints', name, what]);
  }

  private _get<T>(name: string, parts: string[] = [], query: object = {}): Promise<T> {
    return this._sender.send('GET', ['endpoints', name, ...parts], query);
  }

  private _act<T>(name: string, action: string, body: unknown): Promise<T> {
    return this._sender.send('POST', ['endpoints', name, 'actions', action], {}, body);
  }
}
