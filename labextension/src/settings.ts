/** The settings of `schema/plugin.json`, with their defaults. */
import { CHART_DEFAULTS, MAX_SMOOTHING } from './chartstate';
import { AXES, XAxis } from './curves';

export interface ISettings {
  /** Seconds between refreshes of the panel, beside the changes that the server tells. */
  refreshInterval: number;
  pageSize: number;
  confirmStop: boolean;
  confirmDelete: boolean;
  showStatusItem: boolean;
  /** Metrics shown first in the list of runs. */
  keyMetrics: readonly string[];
  /** What charts start with. */
  smoothing: number;
  xAxis: XAxis;
}

export const DEFAULTS: ISettings = {
  refreshInterval: 10,
  pageSize: 50,
  confirmStop: true,
  confirmDelete: true,
  showStatusItem: true,
  keyMetrics: [],
  smoothing: CHART_DEFAULTS.smoothing,
  xAxis: CHART_DEFAULTS.axis
};

/** Settings as they come from the registry: checked by the schema, except when a user's file is broken. */
export function readSettings(composite: Record<string, unknown>): ISettings {
  const flag = (key: keyof ISettings) =>
    typeof composite[key] === 'boolean' ? (composite[key] as boolean) : (DEFAULTS[key] as boolean);
  const number = (key: keyof ISettings, low: number, high: number) => {
    const value = composite[key];
    const known = typeof value === 'number' && Number.isFinite(value);
    return Math.min(high, Math.max(low, known ? value : (DEFAULTS[key] as number)));
  };
  const metrics = composite.keyMetrics;
  return {
    refreshInterval: number('refreshInterval', 1, 3600),
    pageSize: Math.round(number('pageSize', 5, 200)),
    confirmStop: flag('confirmStop'),
    confirmDelete: flag('confirmDelete'),
    showStatusItem: flag('showStatusItem'),
    keyMetrics: Array.isArray(metrics)
      ? metrics.filter((key): key is string => typeof key === 'string')
      : DEFAULTS.keyMetrics,
    smoothing: number('smoothing', 0, MAX_SMOOTHING),
    xAxis: AXES.find(axis => axis === composite.xAxis) ?? DEFAULTS.xAxis
  };
}
