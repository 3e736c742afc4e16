/** Who changed what of an endpoint, the newest first. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import type { IHistoryItem } from '../api';
import { relativeTime } from '../format';
import { changeOf, trafficText } from '../traffic';
import { useNow } from './common';
import { type IEndpointProps, usePart } from './endpointprops';
import { LoadError } from './list';

/** Characters of a detail. */
const MAX_DETAIL = 160;

function actionText(action: string, trans: TranslationBundle): string {
  switch (action) {
    case 'create':
      return trans.__('Endpoint made');
    case 'update':
      return trans.__('Endpoint changed');
    case 'delete':
      return trans.__('Endpoint deleted');
    case 'traffic':
      return trans.__('Traffic changed');
    case 'canary':
      return trans.__('Canary started');
    case 'promote':
      return trans.__('Canary promoted');
    case 'rollback':
      return trans.__('Rolled back');
    case 'rotate':
      return trans.__('Key rotated');
    case 'token':
      return trans.__('Token made');
    case 'deploy':
      return trans.__('Deployment made');
    case 'change':
      return trans.__('Deployment changed');
    case 'remove':
      return trans.__('Deployment deleted');
    default:
      return action;
  }
}

function plain(value: unknown): string {
  if (Array.isArray(value)) {
    return value.map(plain).join(', ');
  }
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** Parts of a detail that are told in other words, or that say nothing more. */
const TOLD = new Set(['before', 'after', 'changed', 'canary', 'deployment']);

/** What of an entry is worth a line: shares before and after, the limits of a canary, why. */
export function detailText(item: IHistoryItem, trans: TranslationBundle): string {
  const { detail } = item;
  const none = trans.__('nobody');
  const parts: string[] = [];
  if (typeof detail.deployment === 'string') {
    parts.push(detail.deployment);
  }
  const moved = changeOf(item);
  if (moved) {
    parts.push(`${trafficText(moved.before) || none} → ${trafficText(moved.after) || none}`);
  }
  const mirror = changeOf(item, 'mirror_traffic');
  if (mirror) {
    const to = `${trafficText(mirror.before) || none} → ${trafficText(mirror.after) || none}`;
    parts.push(trans.__('mirror to %1', to));
  }
  if (!moved && !mirror && Array.isArray(detail.changed)) {
    parts.push(plain(detail.changed));
  }
  for (const [key, value] of Object.entries(detail)) {
    if (!TOLD.has(key) && value !== '' && value !== null && value !== undefined) {
      parts.push(key === 'reason' ? plain(value) : `${key} ${plain(value)}`);
    }
  }
  const all = parts.join(' · ');
  return all.length > MAX_DETAIL ? `${all.slice(0, MAX_DETAIL)}…` : all;
}

export function History({ live, trans }: IEndpointProps): JSX.Element {
  const now = useNow(10_000);
  const error = usePart(live, 'history');
  const items = live.history;
  if (!items && error) {
    return <LoadError error={error} retry={() => live.refresh()} trans={trans} />;
  }
  if (!items?.length) {
    return (
      <div className="jp-Mlops-empty" role="status">
        {items ? trans.__('Nothing was changed so far.') : trans.__('Loading…')}
      </div>
    );
  }
  return (
    <div className="jp-Mlops-tableArea">
      <table className="jp-Mlops-table jp-Mlops-history" data-testid="mlops-history">
        <thead>
          <tr>
            <th scope="col">{trans.__('When')}</th>
            <th scope="col">{trans.__('Who')}</th>
            <th scope="col">{trans.__('What')}</th>
            <th scope="col">{trans.__('Details')}</th>
          </tr>
        </thead>
        <tbody>
          {items.map((item, i) => (
            <tr key={`${item.at} ${i}`}>
              <td title={new Date(item.at).toLocaleString()}>
                {relativeTime(item.at, now, trans)}
              </td>
              <td>{item.by}</td>
              <td>{actionText(item.action, trans)}</td>
              <td className="jp-mod-wrap">{detailText(item, trans)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
