/** Which ways data of jobs take between a cluster and here, in the words of `%mlops compute show`. */
import { TranslationBundle } from '@jupyterlab/translation';

import type { IPackageCache, IStore, ISurvey, ITransfer } from './resources';

/** A name, and what is so. */
export type Way = [name: string, text: string];

/** Where packages stay that jobs have installed. */
function packages(found: IPackageCache, trans: TranslationBundle): string {
  if (found.kind === 'pod') {
    return trans.__('installed by each pod for itself');
  }
  const modes = found.access_modes.join('/');
  if (found.kind === 'claim') {
    return modes
      ? trans.__('kept in claim %1, %2, at most %3', found.name, modes, found.size)
      : trans.__('kept in claim %1, at most %2', found.name, found.size);
  }
  return trans.__('kept in %1 of each node, at most %2', found.name, found.size);
}

/** Which way all comes that jobs have to tell; empty: there are no jobs. */
function data({ route, transfer }: ISurvey, trans: TranslationBundle): string {
  if (!route) {
    return transfer ? trans.__('over the API') : '';
  }
  return route.trouble
    ? trans.__('over the API: %1', route.trouble)
    : trans.__('by the route %1', route.address);
}

/** Which way large files of jobs go; empty where that is not known. */
function files(
  transfer: ITransfer | null | undefined,
  store: IStore | null | undefined,
  trans: TranslationBundle
): string {
  if (store?.url && !store.trouble) {
    return trans.__('through %1', store.url);
  }
  if (!transfer) {
    return '';
  }
  let way = trans.__("through the API's proxy");
  if (transfer.way === 'exec') {
    way = transfer.why
      ? trans.__('over execution streams, which is slower (%1)', transfer.why)
      : trans.__('over execution streams, which is slower');
  }
  return store?.url ? trans.__('%1; not through %2: %3', way, store.url, store.trouble) : way;
}

/** All of them that a cluster has; none where no jobs run. */
export function waysOf(survey: ISurvey, trans: TranslationBundle): Way[] {
  const { package_cache, route, store, transfer } = survey;
  // By a route large files come as all else does.
  const routed = !!route && !route.trouble;
  const ways: Way[] = [
    [trans.__('Packages of jobs'), package_cache ? packages(package_cache, trans) : ''],
    [trans.__("Jobs' data"), data(survey, trans)],
    [trans.__('Large files'), routed ? '' : files(transfer, store, trans)],
    [trans.__('Folders of jobs'), store?.claim ? trans.__('in claim %1', store.claim) : '']
  ];
  return ways.filter(([, text]) => text);
}
