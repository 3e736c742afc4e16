/**
 * A line chart, drawn by uPlot in the colours of the theme.
 *
 * uPlot is loaded with the first chart, not with the page. What is zoomed is told and not done: the owner gives the
 * stretch to show, so that all charts of an output show the same one.
 */
import { IDisposable } from '@lumino/disposable';
import type uPlot from 'uplot';

import type { ChartData, IMark, XAxis } from './curves';
import { formatNumber, formatOffset } from './format';

export const HEIGHT = 132;
/** Fewer points than this are marked, so that the steps can be seen. */
const MAX_MARKED = 24;
/** Pixels below which a drag is a click. */
const MIN_DRAG = 6;
/** How faint the raw curve behind a smoothed one is. */
const FAINT = 0.25;

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
/** Steps of an axis of bytes. */
const BYTES = Array.from({ length: 50 }, (_, power) => 2 ** power);
/** Steps of an axis of time in seconds: whole ones, then what clocks show. */
const SECONDS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400,
  172_800, 604_800, 2_592_000, 31_536_000
];
/** Seconds of an axis of time below which its ticks show seconds. */
const CLOSE = 600;
const STYLES = ['solid', 'dashed', 'dotted'] as const;

/** How a line looks: its colour and its dash are numbers of a palette. */
export interface ILine {
  label: string;
  color: number;
  dash: number;
}

/** How the legend shows a line. */
export function lineStyle(
  color: number,
  dash: number = color
): { borderTopColor: string; borderTopStyle: 'solid' | 'dashed' | 'dotted' } {
  return {
    borderTopColor: `var(${COLORS[color % COLORS.length]})`,
    borderTopStyle: STYLES[dash % STYLES.length]
  };
}

/** What a chart shows beside its data. */
export interface IChartForm {
  lines: readonly ILine[];
  axis: XAxis;
  /** On a logarithmic scale, values that are not positive are left out. */
  log: boolean;
  /** Whether a smoothed row follows for each line. */
  smoothed: boolean;
  zoom: readonly [number, number] | null;
  marks: readonly IMark[];
  /** Where the vertical axis begins at least; for shares and sizes. */
  floor?: number;
  height?: number;
  tick?: (value: number) => string;
  /** Whether the vertical axis counts bytes. */
  bytes?: boolean;
}

export namespace MetricChart {
  export interface IOptions {
    host: HTMLElement;
    /** Charts of one group show the same place under the pointer. */
    group: string;
    /** The index of the place under the pointer; null when it has left. */
    onHover: (index: number | null) => void;
    /** A stretch was dragged over; null: all is wanted again. */
    onZoom: (range: [number, number] | null) => void;
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

  async setData(data: ChartData, form: IChartForm): Promise<void> {
    const [xs, ...rows] = data;
    const positive = (value: number | null | undefined) =>
      value === null || value === undefined || value > 0 ? value : null;
    this._data = form.log ? [xs, ...rows.map(row => row.map(positive))] : data;
    this._form = form;
    const module = await import('uplot');
    if (this._isDisposed || this._form !== form) {
      return;
    }
    const { lines, axis, log, smoothed, height } = form;
    const shape = JSON.stringify([lines, axis, log, smoothed, height]);
    let plot = this._plot;
    if (!plot || shape !== this._shape) {
      this._shape = shape;
      plot?.destroy();
      plot = this._plot = new module.default(
        this._plotOptions(),
        this._data as uPlot.AlignedData,
        this._options.host
      );
    } else {
      plot.setData(this._data as uPlot.AlignedData, false);
    }
    if (xs.length) {
      plot.setScale('x', this._range());
    }
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

  /** The stretch of the axis to show: what is zoomed to, else all that there is. */
  private _range(): { min: number; max: number } {
    const xs = this._data[0];
    const [min, max] = this._form?.zoom ?? [xs[0] ?? 0, xs[xs.length - 1] ?? 1];
    // A single place needs room around it.
    return max > min ? { min, max } : { min: min - 1, max: min + 1 };
  }

  private _css(name: string): string {
    return getComputedStyle(this._options.host).getPropertyValue(name).trim();
  }

  private _plotOptions(): uPlot.Options {
    const { lines, log, smoothed } = this._form!;
    const axis: uPlot.Axis = {
      stroke: () => this._css('--jp-ui-font-color2') || 'gray',
      font: `10px ${this._css('--jp-ui-font-family') || 'sans-serif'}`,
      grid: { stroke: () => this._css('--jp-border-color2') || 'lightgray', width: 1 },
      ticks: { show: false },
      gap: 4
    };
    const series = (line: ILine, faint: boolean): uPlot.Series => ({
      label: line.label,
      stroke: () => this._css(COLORS[line.color % COLORS.length]) || 'steelblue',
      width: faint ? 1 : 1.5,
      alpha: faint ? FAINT : 1,
      dash: DASHES[line.dash % DASHES.length],
      points: {
        show: (_: uPlot, _series: number, first: number, last: number) =>
          !faint && last - first < MAX_MARKED,
        size: 5
      }
    });
    const options = this._options;
    return {
      width: this._width,
      height: this._form!.height ?? HEIGHT,
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
        bind: {
          dblclick: () => () => {
            options.onZoom(null);
            return null;
          }
        },
        sync: {
          key: options.group,
          scales: ['x', null],
          // Others follow the pointer; only the chart that was dragged over tells of the stretch.
          filters: { pub: type => type === 'mousemove' || type === 'mouseleave' }
        }
      },
      scales: {
        x: { time: false },
        y: {
          distr: log ? 3 : 1,
          ...(!log && this._form!.floor !== undefined ? { range: this._floored } : {})
        }
      },
      axes: [
        {
          ...axis,
          size: 22,
          space: 52,
          ...(this._form!.axis === 'step' ? {} : { incrs: SECONDS }),
          values: (_, ticks) => ticks.map(tick => this._xTick(tick))
        },
        {
          ...axis,
          size: 46,
          space: 26,
          ...(this._form!.bytes ? { incrs: BYTES } : {}),
          values: (_, ticks) =>
            ticks.map(tick =>
              tick === null ? '' : (this._form!.tick?.(tick) ?? formatNumber(tick, 3))
            )
        }
      ],
      series: [
        {},
        ...lines.map(line => series(line, smoothed)),
        ...(smoothed ? lines.map(line => series(line, false)) : [])
      ],
      hooks: {
        setCursor: [plot => options.onHover(plot.cursor.idx ?? null)],
        setSelect: [
          plot => {
            const { left, width } = plot.select;
            if (width >= MIN_DRAG) {
              const range: [number, number] = [
                plot.posToVal(left, 'x'),
                plot.posToVal(left + width, 'x')
              ];
              plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              options.onZoom(range);
            }
          }
        ],
        draw: [plot => this._drawMarks(plot)]
      }
    };
  }

  private readonly _floored = (_: uPlot, low: number, high: number): [number, number] => {
    const floor = this._form?.floor ?? 0;
    return [Math.min(floor, low ?? floor), (high ?? 0) > floor ? high * 1.05 : floor + 1];
  };

  private _drawMarks(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const ratio = bbox.width / Math.max(1, plot.over.clientWidth || bbox.width);
    const { min, max } = this._range();
    for (const mark of this._form?.marks ?? []) {
      if (mark.x < min || mark.x > max) {
        continue;
      }
      const x = Math.round(plot.valToPos(mark.x, 'x', true)) + 0.5;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = this._css('--jp-ui-font-color2') || 'gray';
      ctx.lineWidth = ratio;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.font = `${10 * ratio}px ${this._css('--jp-ui-font-family') || 'sans-serif'}`;
      ctx.textBaseline = 'top';
      const right = x > bbox.left + bbox.width * 0.7;
      ctx.textAlign = right ? 'right' : 'left';
      ctx.fillText(mark.label, x + (right ? -3 : 3) * ratio, bbox.top + ratio);
      ctx.restore();
    }
  }

  private _xTick(value: number): string {
    switch (this._form?.axis) {
      case 'relative':
        return formatOffset(value);
      case 'time':
        return new Date(value * 1000).toLocaleTimeString(
          [],
          // Within some minutes the seconds tell ticks apart.
          this._range().max - this._range().min < CLOSE
            ? { timeStyle: 'medium', hour12: false }
            : { timeStyle: 'short' }
        );
      default:
        // Steps are whole numbers; ticks between them would say nothing.
        return Number.isInteger(value) ? formatNumber(value) : '';
    }
  }

  private get _width(): number {
    return Math.max(120, Math.floor(this._options.host.clientWidth));
  }

  private _fit(): void {
    const width = this._width;
    if (this._plot && this._plot.width !== width && this._options.host.clientWidth > 0) {
      this._plot.setSize({ width, height: this._form?.height ?? HEIGHT });
    }
  }

  private readonly _options: MetricChart.IOptions;
  private readonly _resize: ResizeObserver;
  private readonly _theme: MutationObserver;
  private _plot: uPlot | null = null;
  private _data: ChartData = [[]];
  private _form: IChartForm | null = null;
  private _shape = '';
  private _isDisposed = false;
}
