/** Small live charts of an endpoint: requests, errors and latency of each deployment, since the tab was opened. */
import React, { useId, useMemo, useState } from 'react';

import { ChartState } from '../chartstate';
import type { ICurve } from '../curves';
import { formatMs, formatNumber } from '../format';
import type { Curve } from '../rates';
import { CurveChart } from './charts';
import { useSignal } from './common';
import type { IEndpointProps } from './endpointprops';

const HEIGHT = 104;
/** Names for programs. */
const [RATE, ERRORS, LATENCY] = ['rate', 'errors', 'latency'];

const rateText = (value: number | null | undefined) =>
  value === null || value === undefined ? '–' : formatNumber(value, 3);
const percentText = (value: number | null | undefined) =>
  value === null || value === undefined ? '–' : `${formatNumber(value, 3)} %`;

export function Rates({ live, trans }: IEndpointProps): JSX.Element | null {
  const [state] = useState(() => new ChartState({ axis: 'time', smoothing: 0 }));
  useSignal(state.changed);
  const group = `jupyter-mlops-rates-${useId()}`;
  const { stats } = live;
  const names = live.deployments.map(one => one.name);
  const key = names.join();
  const charts = useMemo(() => {
    const curve = (name: string, i: number, kind: Curve, label: string, dash: number): ICurve => ({
      id: `${name} ${kind}`,
      label,
      series: stats.series(name, kind),
      color: i,
      dash,
      origin: 0
    });
    // One that never answered has no curve.
    const drawn = live.deployments
      .map((one, i) => ({ name: one.name, i, ready: one.status.phase === 'Ready' }))
      .filter(
        ({ name, ready }) =>
          stats.series(name, 'rate').values.length > 0 &&
          (ready || stats.latest!.deployments[name]?.requests)
      );
    return {
      rate: drawn.map(({ name, i }) => curve(name, i, 'rate', name, i)),
      errors: drawn.map(({ name, i }) => curve(name, i, 'errors', name, i)),
      latency: drawn.flatMap(({ name, i }) => [
        curve(name, i, 'p95', trans.__('%1 p95', name), 0),
        curve(name, i, 'p50', trans.__('%1 p50', name), 2)
      ])
    };
  }, [stats.version, key, trans]);
  if (!names.length) {
    return null;
  }
  if (!charts.rate.length) {
    const error = live.partErrors.get('stats');
    return (
      <div className="jp-Mlops-chartsWait jp-Mlops-muted" role="status">
        {error
          ? trans.__('No figures: %1', error.message)
          : trans.__('Figures come with the next look.')}
      </div>
    );
  }
  const shared = { state, group, smoothing: 0, log: false, floor: 0, height: HEIGHT };
  return (
    <div className="jp-Mlops-charts jp-mod-rates" data-testid="mlops-rates">
      <CurveChart
        {...shared}
        title={RATE}
        caption={trans.__('Requests/s')}
        curves={charts.rate}
        format={rateText}
        testId="mlops-rate-chart"
      />
      <CurveChart
        {...shared}
        title={ERRORS}
        caption={trans.__('Errors')}
        curves={charts.errors}
        format={percentText}
        testId="mlops-rate-chart"
      />
      <CurveChart
        {...shared}
        title={LATENCY}
        caption={trans.__('Latency')}
        curves={charts.latency}
        format={formatMs}
        testId="mlops-rate-chart"
      />
    </div>
  );
}
