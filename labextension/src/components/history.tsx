/** Who changed what of an endpoint, the newest first. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect } from 'react';

import type { IHistoryItem } from '../api';
import { relativeTime } from '../format';
import { trafficOf, trafficText } from '../traffic';
import { Message, useNow } from './common';
import type { IEndpointProps } from './endpointprops';
import { errorText } from './list';

/** Characters of a detail that has no words of its own. */
const MAX_DETAIL = 160;

/** What was done, in the words of the audit. */
function actionText(action: string, trans: TranslationBundle): string {
  const words: Record<string, string> = {
    'endpoints/write': trans.__('Endpoint changed'),
    'endpoints/create': trans.__('Endpoint made'),
    'endpoints/delete': trans.__('Endpoint deleted'),
    'endpoints/traffic': trans.__('Traffic changed'),
    'endpoints/canary': trans.__('Canary started'),
    'endpoints/promote': trans.__('Canary promoted'),
    'endpoints/rollback': trans.__('Rolled back'),
    'endpoints/secrets/write': trans.__('Key rotated'),
    'endpoints/token': trans.__('Token made'),
    'deployments/write': trans.__('Deployment made or changed'),
    'deployments/create': trans.__('Deployment made'),
    'deployments/delete': trans.__('Deployment deleted')
  };
  return words[action] ?? action;
}

function plain(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

export function detailText(item: IHistoryItem, trans: TranslationBundle): string {
  const change = trafficOf(item);
  const told = change ? ['before', 'after', 'traffic'] : [];
  const text = Object.entries(item.detail)
    .filter(([key, value]) => !told.includes(key) && value !== '' && value != null)
    .map(([key, value]) => `${key} ${plain(value)}`)
    .join(' · ');
  const none = trans.__('nobody');
  const moved = change
    ? `${trafficText(change.before) || none} → ${trafficText(change.after) || none}`
    : '';
  const all = [moved, text].filter(Boolean).join(' · ');
  return all.length > MAX_DETAIL ? `${all.slice(0, MAX_DETAIL)}…` : all;
}

export function History({ live, trans }: IEndpointProps): JSX.Element {
  const now = useNow(10_000);
  useEffect(() => {
    live.show('history', true);
    return () => live.show('history', false);
  }, [live]);
  const items = live.history;
  const error = live.partErrors.get('history');
  if (!items && error) {
    return (
      <Message
        tone="error"
        title={trans.__('Could not be loaded')}
        action={{ label: trans.__('Retry'), onClick: () => live.refresh() }}
      >
        {errorText(error, trans)}
      </Message>
    );
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
