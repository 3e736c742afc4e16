/** A list of the panel: its loading, empty, error and stale states, and rows that arrow keys walk through. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import { ApiError } from '../api';
import { ListModel } from '../listmodel';
import { Message, NextStep, useSignal } from './common';
import { Rows } from './rows';

/** What a list says when there is nothing in it: a sentence, and the line to type next. */
export interface IEmpty {
  text: string;
  code?: string;
}

export interface IListProps<T> {
  model: ListModel<T>;
  label: string;
  empty: IEmpty;
  trans: TranslationBundle;
  /** Words of an item that the filter looks in; without it there is no filter. */
  words?: (item: T) => string;
  /** More controls beside the filter. */
  controls?: React.ReactNode;
  /** What stands between the filter and the rows. */
  banner?: React.ReactNode;
  keyOf: (item: T) => string;
  /** The header tells already that nothing can be had now. */
  offline?: boolean;
  children: (item: T, index: number) => React.ReactNode;
}

export function errorText(error: ApiError, trans: TranslationBundle): string {
  if (error.code === 'unreachable') {
    return trans.__('The Jupyter server does not answer.');
  }
  if (error.code === 'bad_answer') {
    return trans.__('The answer could not be read. Are you still logged in? Reload the page.');
  }
  return error.hint ? `${error.message} – ${error.hint}` : error.message;
}

/** What is shown in place of something that could not be loaded. */
export function LoadError(props: {
  error: ApiError;
  retry: () => void;
  trans: TranslationBundle;
  testId?: string;
}): JSX.Element {
  const { error, retry, trans } = props;
  return (
    <Message
      tone="error"
      title={trans.__('Could not be loaded')}
      testId={props.testId}
      action={{ label: trans.__('Retry'), onClick: retry }}
    >
      {errorText(error, trans)}
    </Message>
  );
}

export function Skeleton({ label }: { label: string }): JSX.Element {
  return (
    <div className="jp-Mlops-skeleton" role="status" aria-label={label} data-testid="mlops-loading">
      {[70, 45, 60].map(width => (
        <div key={width} className="jp-Mlops-skeletonRow">
          <span style={{ width: `${width}%` }} />
          <span style={{ width: `${width / 2}%` }} />
        </div>
      ))}
    </div>
  );
}

export function List<T>(props: IListProps<T>): JSX.Element {
  const { model, trans, words } = props;
  useSignal(model.changed);
  const [filter, setFilter] = useState('');
  const terms = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const items =
    words && terms.length
      ? model.items.filter(item => {
          const text = words(item).toLowerCase();
          return terms.every(term => text.includes(term));
        })
      : model.items;

  const stale = model.stale && model.error && !props.offline ? errorText(model.error, trans) : '';
  const filterable = words && (model.items.length > 0 || filter !== '');
  return (
    <div className="jp-Mlops-section" data-state={model.state}>
      {(filterable || props.controls) && (
        <div className="jp-Mlops-filter">
          {filterable && (
            <input
              type="search"
              value={filter}
              placeholder={trans.__('Filter')}
              aria-label={trans.__('Filter %1', props.label)}
              data-testid="mlops-filter"
              onChange={event => setFilter(event.target.value)}
            />
          )}
          {props.controls}
        </div>
      )}
      {props.banner}
      {stale && (
        <div className="jp-Mlops-stale" role="status" data-testid="mlops-stale">
          <span title={stale}>{trans.__('Not up to date: %1', stale)}</span>
          <button type="button" className="jp-Mlops-more" onClick={() => void model.refresh()}>
            {trans.__('Retry')}
          </button>
        </div>
      )}
      {(model.state === 'loading' || (model.state === 'error' && props.offline)) && (
        <Skeleton label={trans.__('Loading')} />
      )}
      {model.state === 'error' && model.error && !props.offline && (
        <LoadError
          error={model.error}
          retry={() => void model.reload()}
          trans={trans}
          testId="mlops-error"
        />
      )}
      {model.state === 'ready' && model.items.length === 0 && (
        <div className="jp-Mlops-empty" data-testid="mlops-empty">
          <p>{props.empty.text}</p>
          {props.empty.code && <NextStep code={props.empty.code} trans={trans} />}
        </div>
      )}
      {model.items.length > 0 && (
        <Rows items={items} label={props.label} keyOf={props.keyOf}>
          {props.children}
        </Rows>
      )}
      {model.items.length > 0 && items.length === 0 && (
        <div className="jp-Mlops-empty">
          <p>{trans.__('Nothing matches “%1”.', filter)}</p>
        </div>
      )}
      {model.hasMore && (
        <button
          type="button"
          className="jp-Mlops-more"
          disabled={model.loadingMore}
          data-testid="mlops-more"
          onClick={() => void model.loadMore()}
        >
          {model.loadingMore ? trans.__('Loading…') : trans.__('Load more')}
        </button>
      )}
    </div>
  );
}

export { Row } from './rows';
