import { nullTranslator } from '@jupyterlab/translation';
import { describe, expect, it } from 'vitest';

import type { ISurvey } from '../src/resources';
import { waysOf } from '../src/ways';
import { FakeApi } from './fakes';

const trans = nullTranslator.load('');
const PROXY = { way: 'proxy', why: '' } as const;
const ROUTE = { listen: '10.0.0.5:7443', address: 'mlops.example:7443', trouble: '' };
const STORE = { claim: '', url: 's3://bucket/jobs', trouble: '' };

function told(given: Partial<ISurvey>): string[] {
  return waysOf({ ...new FakeApi().surveyed, ...given }, trans).map(way => way.join(': '));
}

describe('ways of the data of jobs', () => {
  it('are not told where no jobs run', () => {
    expect(told({})).toEqual([]);
    expect(told({ transfer: null, store: null, route: null, package_cache: null })).toEqual([]);
  });

  it('go over the API, large files through its proxy or not', () => {
    expect(told({ transfer: PROXY })).toEqual([
      "Jobs' data: over the API",
      "Large files: through the API's proxy"
    ]);
    expect(told({ transfer: { way: 'exec', why: '' } })[1]).toBe(
      'Large files: over execution streams, which is slower'
    );
    expect(told({ transfer: { way: 'exec', why: 'no permission to get pods/proxy' } })[1]).toBe(
      'Large files: over execution streams, which is slower (no permission to get pods/proxy)'
    );
  });

  it('go by a route altogether while it is used', () => {
    expect(told({ transfer: PROXY, store: STORE, route: ROUTE })).toEqual([
      "Jobs' data: by the route mlops.example:7443"
    ]);
    const trouble = 'the route is configured, but pods do not reach it';
    expect(told({ transfer: PROXY, store: STORE, route: { ...ROUTE, trouble } })).toEqual([
      `Jobs' data: over the API: ${trouble}`,
      'Large files: through s3://bucket/jobs'
    ]);
  });

  it('go through a store, or say why not', () => {
    expect(told({ transfer: PROXY, store: STORE })[1]).toBe(
      'Large files: through s3://bucket/jobs'
    );
    expect(told({ transfer: PROXY, store: { ...STORE, trouble: 'it refuses' } })[1]).toBe(
      "Large files: through the API's proxy; not through s3://bucket/jobs: it refuses"
    );
    expect(told({ transfer: PROXY, store: { ...STORE, url: '', claim: 'folders' } })).toEqual([
      "Jobs' data: over the API",
      "Large files: through the API's proxy",
      'Folders of jobs: in claim folders'
    ]);
  });

  it('keep packages in a claim, in a folder of nodes, or not at all', () => {
    const kept = { name: 'wheels', size: '20Gi', access_modes: [] };
    const cached = (package_cache: ISurvey['package_cache']) => told({ package_cache })[0];
    expect(cached({ ...kept, kind: 'pod' })).toBe(
      'Packages of jobs: installed by each pod for itself'
    );
    expect(cached({ ...kept, kind: 'claim', access_modes: ['ReadWriteMany'] })).toBe(
      'Packages of jobs: kept in claim wheels, ReadWriteMany, at most 20Gi'
    );
    expect(cached({ ...kept, kind: 'claim' })).toBe(
      'Packages of jobs: kept in claim wheels, at most 20Gi'
    );
    expect(cached({ ...kept, kind: 'host_path', name: '/var/cache/wheels' })).toBe(
      'Packages of jobs: kept in /var/cache/wheels of each node, at most 20Gi'
    );
  });
});
