/** The table of what differs between runs, and their curves over each other. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useId, useMemo, useState } from 'react';

import { lineStyle } from '../chart';
import type { ChartState } from '../chartstate';
import { formatNumber } from '../format';
import { differences, IDifference, IRunCurves, RunSet } from '../runset';
import { Metrics } from './charts';
import { useSignal } from './common';
import { Status } from './status';

/** Charts shown before one asks for all: here they are what one came for. */
const CHARTS = 24;
/** Rows of the table shown before one asks for all. */
const ROWS = 12;

function cell(value: string | number | null): string {
  return value === null ? '–' : typeof value === 'number' ? formatNumber(value) : value;
}

function Table(props: {
  runs: readonly IRunCurves[];
  rows: readonly IDifference[];
  trans: TranslationBundle;
  onOpen: (run: IRunCurves) => void;
}): JSX.Element {
  const { runs, rows, trans } = props;
  const [all, setAll] = useState(false);
  const shown = all ? rows : rows.slice(0, ROWS);
  return (
    <div className="jp-Mlops-tableArea">
      <table className="jp-Mlops-table" data-testid="mlops-comparison-table">
        <caption>{trans.__('What differs')}</caption>
        <thead>
          <tr>
            <th scope="col">{trans.__('Run')}</th>
            {runs.map((run, i) => (
              <th key={run.id} scope="col">
                <span className="jp-Mlops-swatch" style={lineStyle(i)} />
                <button type="button" className="jp-Mlops-more" onClick={() => props.onOpen(run)}>
                  {run.name}
                </button>
              </th>
            ))}
          </tr>
          <tr>
            <th scope="row">{trans.__('State')}</th>
            {runs.map(run => (
              <td key={run.id}>
                {run.run ? <Status phase={run.run.status} trans={trans} /> : run.error || '…'}
              </td>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map(row => (
            <tr key={`${row.kind} ${row.key}`} data-kind={row.kind}>
              <th scope="row">
                {row.key}
                <span className="jp-Mlops-tag">
                  {row.kind === 'param' ? trans.__('parameter') : trans.__('metric')}
                </span>
              </th>
              {row.values.map((value, i) => (
                <td key={runs[i].id} title={value === null ? undefined : String(value)}>
                  {cell(value)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > ROWS && (
        <button type="button" className="jp-Mlops-more" onClick={() => setAll(!all)}>
          {all ? trans.__('Show fewer rows') : trans.__('Show all %1 rows', rows.length)}
        </button>
      )}
      {!rows.length && runs.every(run => run.run) && (
        <div className="jp-Mlops-muted">
          {trans.__('Parameters and last values of the metrics are the same.')}
        </div>
      )}
    </div>
  );
}

export function Comparison(props: {
  runs: RunSet;
  state: ChartState;
  trans: TranslationBundle;
  onOpen: (run: IRunCurves) => void;
}): JSX.Element {
  const { state, trans } = props;
  useSignal(props.runs.changed);
  const sync = `jupyter-mlops-${useId()}`;
  const { runs } = props.runs;
  const rows = useMemo(() => differences(runs), [runs]);
  return (
    <div className="jp-Mlops-comparisonBody">
      <Table runs={runs} rows={rows} trans={trans} onOpen={props.onOpen} />
      <Metrics runs={runs} state={state} group={sync} limit={CHARTS} trans={trans} />
    </div>
  );
}
