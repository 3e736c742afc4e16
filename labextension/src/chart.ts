/**
 * A line chart of one group of metrics over steps, drawn by uPlot in the colours of the theme.
 *
 * uPlot is loaded with the first chart, not with the page.
 */
import { IDisposable } from '@lumino/disposable';
import type uPlot from 'uplot';

import { formatNumber } from './format';

const HEIGHT = 132;
/** Fewer points than this are marked, so that the steps can be seen. */
const MAX_MARKED = 24;

/** Theme variables that differ well from each other, in light and in dark themes. */
const COLORS = [
  '--jp-brand-color1',
  '--jp-warn-color1',
  '--jp-mirror-editor-operator-color',
  '--jp-accent-color1',
  '--jp-error-color1',
  '--jp-info-color1'
];
/** Lines differ in their dashes too, for eyes and printers that do not see colours. */
const DASHES: number[][] = [[], [7, 3], [2, 2]];

/** How the legend shows the line of a series. */
export function lineStyle(index: number): {
  borderTopColor: string;
  borderTopStyle: 'solid' | 'dashed' | 'dotted';
} {
  const styles = ['solid', 'dashed', 'dotted'] as const;
  return {
    borderTopColor: `var(${COLORS[index % COLORS.length]})`,
    borderTopStyle: styles[index % styles.length]
  };
}

export type ChartData = [number[], ...(number | null)[][]];

export namespace MetricChart {
  export interface IOptions {
    host: HTMLElement;
    /** Charts of one group show the same step under the pointer. */
    group: string;
    /** The index of the step under the pointer; null when it has left. */
    onHover: (index: number | null) => void;
  }
}

export class MetricChart implements IDisposable {
  constructor(options: MetricChart.IOptions) {
    this._options = options;
    this._resize = new ResizeObserver(() => this._fit());
    this._resize.observe(options.host);
    this._theme = new MutationObserver(() => this._plot?.redraw(false, true));
    this._theme.observe(document.body, { attributeFilter: ['data-jp-theme-name'] });
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** Show `data`; on a logarithmic scale, values that are not positive are left out. */
  async setData(keys: readonly string[], data: ChartData, log: boolean): Promise<void> {
    const [steps, ...rows] = data;
    this._data = log
      ? [steps, ...rows.map(row => row.map(value => (value !== null && value > 0 ? value : null)))]
      : data;
    this._keys = keys;
    const module = await import('uplot');
    if (this._isDisposed || this._data[0] !== steps) {
      return;
    }
    const form = JSON.stringify([keys, log]);
    if (this._plot && form === this._form) {
      this._plot.setData(this._data as uPlot.AlignedData);
      return;
    }
    this._form = form;
    this._plot?.destroy();
    this._plot = new module.default(
      this._plotOptions(log),
      this._data as uPlot.AlignedData,
      this._options.host
    );
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._resize.disconnect();
      this._theme.disconnect();
      this._plot?.destroy();
      this._plot = null;
    }
  }

  private _plotOptions(log: boolean): uPlot.Options {
    const css = (name: string) =>
      getComputedStyle(this._options.host).getPropertyValue(name).trim();
    const axis: uPlot.Axis = {
      stroke: () => css('--jp-ui-font-color2') || 'gray',
      font: `10px ${css('--jp-ui-font-family') || 'sans-serif'}`,
      grid: { stroke: () => css('--jp-border-color2') || 'lightgray', width: 1 },
      ticks: { show: false },
      gap: 4
    };
    return {
      width: this._width,
      height: HEIGHT,
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: false, y: false },
        points: { size: 6 },
        sync: { key: this._options.group, scales: ['x', null] }
      },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
      axes: [
        { ...axis, size: 22, space: 48, values: (_, ticks) => ticks.map(tick => this._tick(tick)) },
        {
          ...axis,
          size: 46,
          space: 26,
          values: (_, ticks) => ticks.map(tick => (tick === null ? '' : formatNumber(tick, 3)))
        }
      ],
      series: [
        {},
        ...this._keys.map((key, i) => ({
          label: key,
          stroke: () => css(COLORS[i % COLORS.length]) || 'steelblue',
          width: 1.5,
          dash: DASHES[i % DASHES.length],
          spanGaps: true,
          points: {
            show: (_: uPlot, _series: number, first: number, last: number) =>
              last - first < MAX_MARKED,
            size: 5
          }
        }))
      ],
      hooks: {
        setCursor: [plot => this._options.onHover(plot.cursor.idx ?? null)]
      }
    };
  }

  /** Steps are whole numbers; ticks between them would say nothing. */
  private _tick(value: number): string {
    return Number.isInteger(value) ? formatNumber(value) : '';
  }

  private get _width(): number {
    return Math.max(120, Math.floor(this._options.host.clientWidth));
  }

  private _fit(): void {
    const width = this._width;
    if (this._plot && this._plot.width !== width && this._options.host.clientWidth > 0) {
      this._plot.setSize({ width, height: HEIGHT });
    }
  }

  private readonly _options: MetricChart.IOptions;
  private readonly _resize: ResizeObserver;
  private readonly _theme: MutationObserver;
  private _plot: uPlot | null = null;
  private _data: ChartData = [[]];
  private _keys: readonly string[] = [];
  private _form = '';
  private _isDisposed = false;
}
