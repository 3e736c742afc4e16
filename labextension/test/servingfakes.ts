/** Endpoints of a server in memory; only for the front end's unit tests. */
import {
  ApiError,
  Deployment,
  Endpoint,
  ICanarySpec,
  ICaptureInfo,
  IDeploymentStats,
  IEndpointStats,
  IHistoryItem,
  IInvocation,
  ILogQuery,
  IPage,
  IPageQuery,
  IServed,
  IServingApi,
  ITrafficChange
} from '../src/api';

export function page<T>(items: T[], query: IPageQuery = {}): IPage<T> {
  const from = Number(query.page_token ?? 0);
  const to = from + (query.limit ?? 50);
  return { items: items.slice(from, to), next_token: to < items.length ? String(to) : null };
}

const TIME = '2026-01-31T12:00:00.000Z';

export function deployment(name: string, more: Partial<Deployment['status']> = {}): Deployment {
  return {
    kind: 'deployment',
    name,
    parent: 'digits',
    revision: 1,
    created_by: 'me',
    created_at: TIME,
    updated_at: TIME,
    spec: { model: 'digits/1', proof: null, data_collector: null },
    status: {
      phase: 'Ready',
      reason: '',
      model_name: 'digits',
      model_version: '1',
      restarts: 0,
      signature: {
        inputs: [
          { name: 'height', type: 'double', required: true },
          { name: 'count', type: 'long', required: true }
        ]
      },
      instances: { ready: 1, wanted: 1 },
      proof: null,
      ...more
    }
  };
}

export function served(
  name: string,
  deployments: Deployment[],
  spec: Endpoint['spec'] = {},
  status: Partial<Endpoint['status']> = {}
): IServed {
  return {
    kind: 'endpoint',
    name,
    parent: '',
    revision: 1,
    created_by: 'me',
    created_at: TIME,
    updated_at: TIME,
    spec: { auth_mode: 'key', traffic: {}, mirror_traffic: {}, sticky_header: '', ...spec },
    status: {
      phase: 'Ready',
      reason: '',
      scoring_uri: `http://127.0.0.1:4000/endpoints/${name}/invocations`,
      key_hints: { primary: 'abcd', secondary: 'wxyz' },
      traffic: spec.traffic ?? {},
      canary: null,
      ...status
    },
    deployments
  };
}

export function counted(
  requests: number,
  more: Partial<IDeploymentStats> & { took?: number } = {}
): IDeploymentStats {
  const { took = 5, ...rest } = more;
  return {
    requests,
    errors: {},
    latency_ms: {
      count: requests,
      sum: requests * took,
      buckets: [1, 2, 4, 8, 16, 32].map(bound => [bound, bound >= took ? requests : 0])
    },
    ...rest
  };
}

type Called = <T>(name: string, answer: () => T) => Promise<T>;

export class FakeServing implements IServingApi {
  constructor(
    private readonly _called: Called,
    private readonly _asked: (call: { name: string; query: object }) => void
  ) {}

  all: IServed[] = [];
  counters: IEndpointStats = { deployments: {} };
  info: ICaptureInfo = { files: 0, bytes: 0, rows: 0, oldest: null, newest: null };
  past: IHistoryItem[] = [];
  answer: IInvocation = {
    status: 200,
    body: { predictions: [7] },
    deployment: 'blue',
    requestId: 'r1',
    took: 3
  };
  text = 'started\n';

  private _do<T>(name: string, sent: object, answer: () => T): Promise<T> {
    this._asked({ name, query: sent });
    return this._called(name, answer);
  }

  private _find(name: string): IServed {
    const found = this.all.find(one => one.name === name);
    if (!found) {
      throw new ApiError('there is no such endpoint', 'not_found', 404);
    }
    return found;
  }

  list(query?: IPageQuery) {
    return this._called('endpoints', () => page(this.all, query));
  }
  endpoint(name: string) {
    return this._called('endpoint', (): Endpoint => this._find(name));
  }
  deployments(name: string) {
    return this._called('deployments', () => this._find(name).deployments);
  }
  deployment(name: string, deployment: string) {
    return this._called('deployment', () => {
      const found = this._find(name).deployments.find(one => one.name === deployment);
      if (!found) {
        throw new ApiError('there is no such deployment', 'not_found', 404);
      }
      return found;
    });
  }
  deleteEndpoint() {
    return this._called('deleteEndpoint', () => undefined);
  }
  deleteDeployment(name: string, deployment: string) {
    return this._do('deleteDeployment', { name, deployment }, () => undefined);
  }
  setTraffic(name: string, change: ITrafficChange) {
    return this._do('setTraffic', change, () => {
      const one = this._find(name);
      one.spec = { ...one.spec, traffic: change.traffic ?? one.spec.traffic };
      return one;
    });
  }
  startCanary(name: string, canary: ICanarySpec) {
    return this._do('startCanary', canary, () => this._find(name));
  }
  promote(name: string) {
    return this._called('promote', () => this._find(name));
  }
  rollback(name: string) {
    return this._called('rollback', () => this._find(name));
  }
  rotateKey(name: string, key: string) {
    return this._do('rotateKey', { name, key }, () => ({ key, value: 'a-new-key' }));
  }
  token(name: string, seconds: number) {
    return this._do('token', { name, seconds }, () => ({ token: 'a-token', expires_at: TIME }));
  }
  invoke(name: string, body: string, deployment?: string) {
    return this._do('invoke', { name, body, deployment }, () => this.answer);
  }
  stats() {
    return this._called('stats', () => structuredClone(this.counters));
  }
  captured() {
    return this._called('captured', () => this.info);
  }
  history() {
    return this._called('history', () => this.past);
  }
  log(_name: string, deployment: string, instance: number, query: ILogQuery) {
    return this._do('deploymentLog', { deployment, instance, ...query }, () => {
      const size = this.text.length;
      const offset = query.offset < 0 ? Math.max(0, size + query.offset) : query.offset;
      const text = this.text.slice(offset);
      return { rank: 0, attempt: 1, offset, next_offset: size, size, text, complete: false };
    });
  }
  url(name: string, what: string) {
    return `/api/endpoints/${name}/${what}`;
  }
}
