/** Chooses runs of the same experiment to draw beside the own one. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useState } from 'react';

import type { IApi, IRun } from '../api';
import { lineStyle } from '../chart';
import type { ChartState } from '../chartstate';
import { formatNumber, keyMetrics, relativeTime } from '../format';
import { toApiError } from '../listmodel';
import { MAX_RUNS } from '../runset';
import { errorText } from './list';
import { StatusIcon } from './status';

/** Runs that are offered: the latest ones. */
const OFFERED = 200;

export function RunPicker(props: {
  api: IApi;
  state: ChartState;
  /** The run that is drawn anyway. */
  own: string;
  experiment: string;
  trans: TranslationBundle;
  onClose: () => void;
}): JSX.Element {
  const { api, state, own, experiment, trans } = props;
  const [runs, setRuns] = useState<readonly IRun[] | null>(null);
  const [error, setError] = useState('');
  const [query, setQuery] = useState('');

  useEffect(() => {
    let wanted = true;
    api.runs({ experiment: experiment || undefined, limit: OFFERED }).then(
      page => wanted && setRuns(page.items.filter(run => run.run_id !== own)),
      reason => wanted && setError(errorText(toApiError(reason), trans))
    );
    return () => {
      wanted = false;
    };
  }, [api, experiment, own, trans]);

  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (runs ?? []).filter(run => {
    const words = [run.name, run.run_id, run.job, run.user, run.status].join(' ').toLowerCase();
    return terms.every(term => words.includes(term));
  });
  const picked = state.picked;
  const full = picked.length >= MAX_RUNS - 1;
  const now = Date.now();
  return (
    <div
      className="jp-Mlops-picker"
      role="group"
      aria-label={trans.__('Runs to compare with')}
      data-testid="mlops-picker"
      onKeyDown={event => {
        // Notebook shortcuts are not meant for what is typed here.
        event.stopPropagation();
        if (event.key === 'Escape') {
          props.onClose();
        }
      }}
    >
      <div className="jp-Mlops-filter">
        <input
          type="search"
          value={query}
          autoFocus
          placeholder={trans.__('Search runs')}
          aria-label={trans.__('Search runs')}
          data-testid="mlops-picker-search"
          onChange={event => setQuery(event.target.value)}
        />
        <button
          type="button"
          className="jp-Mlops-more"
          disabled={!picked.length}
          onClick={() => state.set({ picked: [] })}
        >
          {trans.__('Clear')}
        </button>
        <button type="button" className="jp-Mlops-more" onClick={props.onClose}>
          {trans.__('Close')}
        </button>
      </div>
      <ul className="jp-Mlops-pickerList">
        {found.map(run => {
          const index = picked.findIndex(one => one.id === run.run_id);
          const on = index >= 0;
          return (
            <li key={run.run_id}>
              <label>
                <input
                  type="checkbox"
                  checked={on}
                  disabled={!on && full}
                  data-run={run.run_id}
                  onChange={() =>
                    state.set({
                      picked: on
                        ? picked.filter(one => one.id !== run.run_id)
                        : [...picked, { id: run.run_id, name: run.name }]
                    })
                  }
                />
                <StatusIcon phase={run.status} />
                <span className="jp-Mlops-pickerName">{run.name || run.run_id.slice(0, 8)}</span>
                {on && <span className="jp-Mlops-swatch" style={lineStyle(index + 1)} />}
                {keyMetrics(run.metrics ?? {}, [], 1).map(([key, value]) => (
                  <span key={key} className="jp-Mlops-muted">
                    {key} {formatNumber(value)}
                  </span>
                ))}
                <span className="jp-Mlops-spring" />
                <span className="jp-Mlops-muted">{relativeTime(run.start_time, now, trans)}</span>
              </label>
            </li>
          );
        })}
      </ul>
      {error && <div className="jp-Mlops-muted">{error}</div>}
      {runs !== null && !found.length && (
        <div className="jp-Mlops-muted">{trans.__('No other run of this experiment.')}</div>
      )}
      {runs === null && !error && <div className="jp-Mlops-muted">{trans.__('Loading…')}</div>}
      {full && <div className="jp-Mlops-muted">{trans.__('%1 runs are the most.', MAX_RUNS)}</div>}
    </div>
  );
}
