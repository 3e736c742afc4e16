import { ServerConnection } from '@jupyterlab/services';
import { describe, expect, it } from 'vitest';

import { Api, ApiError } from '../src/api';
import { compatible, VERSION } from '../src/version';
import manifest from '../../package.json';

const BASE = 'http://localhost/user/a%40b/';

function connect(answer: (request: Request) => Response | Promise<Response>) {
  const seen: Request[] = [];
  const settings = ServerConnection.makeSettings({
    baseUrl: BASE,
    fetch: (async (request: Request) => {
      seen.push(request);
      return answer(request);
    }) as typeof fetch
  });
  return { api: new Api(settings), seen };
}

const json = (body: unknown, status = 200) =>
  new Response(JSON.stringify(body), { status, headers: { 'Content-Type': 'application/json' } });

async function failure(promise: Promise<unknown>): Promise<ApiError> {
  return promise.then(
    () => {
      throw new Error('it did not fail');
    },
    error => error as ApiError
  );
}

describe('Api', () => {
  it('joins the base url, encodes names and sends its version', async () => {
    const { api, seen } = connect(() => json({ items: [], next_token: null }));
    await api.job('a/../b');
    await api.runs({ experiment: 'my runs', limit: 5, page_token: undefined });
    expect(seen[0].url).toBe(`${BASE}jupyter-mlops/api/v1/workspaces/default/jobs/a%2F..%2Fb`);
    expect(seen[0].headers.get('Jupyter-Mlops-Version')).toBe(VERSION);
    // Nothing but what was asked for: the server refuses unknown parameters.
    expect(seen[1].url).toBe(
      `${BASE}jupyter-mlops/api/v1/workspaces/default/runs?experiment=my+runs&limit=5`
    );
  });

  it('sends actions as JSON', async () => {
    const { api, seen } = connect(() => json({}));
    await api.stopJob('a');
    expect(seen[0].method).toBe('POST');
    expect(seen[0].headers.get('Content-Type')).toBe('application/json');
    expect(await seen[0].text()).toBe('{}');
  });

  it('goes to another workspace with the same connection', async () => {
    const { api, seen } = connect(() => json({}));
    await api.in('team').workspace();
    expect(seen[0].url).toBe(`${BASE}jupyter-mlops/api/v1/workspaces/team`);
    expect(api.in('default')).toBe(api);
  });

  it('reads message, code and hint of an error', async () => {
    const { api } = connect(() => json({ message: 'no', code: 'conflict', hint: 'stop it' }, 409));
    const error = await failure(api.deleteJob('a'));
    expect(error).toMatchObject({ message: 'no', code: 'conflict', hint: 'stop it', status: 409 });
    expect(error.transient).toBe(false);
  });

  it('tells a missing server half from a missing thing', async () => {
    const { api } = connect(() => new Response('<html>', { status: 404 }));
    expect((await failure(api.status())).code).toBe('not_installed');
    expect((await failure(api.job('a'))).code).toBe('');
  });

  it('tells a login page and a dead server', async () => {
    const login = connect(() => new Response('<html>log in</html>', { status: 200 }));
    expect((await failure(login.api.workspace())).code).toBe('bad_answer');
    const dead = connect(() => Promise.reject(new TypeError('refused')));
    const error = await failure(dead.api.workspace());
    expect(error.code).toBe('unreachable');
    expect(error.transient).toBe(true);
  });

  it('takes 204 for done and cuts long HTML errors', async () => {
    expect(await connect(() => new Response(null, { status: 204 })).api.deleteRun('r')).toBe(
      undefined
    );
    const { api } = connect(() => json({ message: 'x'.repeat(5000) }, 500));
    expect((await failure(api.jobs())).message.length).toBe(1000);
  });

  it('lists deployments with their endpoints, also when one goes meanwhile', async () => {
    const { api } = connect(request => {
      if (request.url.includes('gone/deployments')) {
        return json({ message: 'gone', code: 'not_found' }, 404);
      }
      if (request.url.includes('/deployments')) {
        return json({ items: [{ name: 'v1' }] });
      }
      return json({ items: [{ name: 'digits' }, { name: 'gone' }], next_token: null });
    });
    const { items } = await api.serving.list();
    expect(items.map(item => item.deployments.map(one => one.name))).toEqual([['v1'], []]);
  });

  it('makes addresses below the prefix', () => {
    const { api } = connect(() => json({}));
    expect(api.mlflowUrl('/experiments/1/runs/a')).toBe(
      `${BASE}jupyter-mlops/mlflow/#/experiments/1/runs/a`
    );
    expect(api.endpointUrl('digits')).toBe(`${BASE}jupyter-mlops/endpoints/digits/invocations`);
  });
});

describe('version', () => {
  it('is that of the package', () => {
    expect(VERSION).toBe(manifest.version);
  });

  it('is compatible within a minor release while the major one is 0', () => {
    expect(compatible('0.1.7', '0.1.0')).toBe(true);
    expect(compatible('0.2.0', '0.1.0')).toBe(false);
    expect(compatible('1.9.0', '1.2.0')).toBe(true);
    expect(compatible('2.0.0', '1.2.0')).toBe(false);
  });
});
