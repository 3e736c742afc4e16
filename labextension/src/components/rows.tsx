/**
 * Rows of a list that arrow keys walk through. Of a long list those near the visible part are drawn, in blocks; the
 * others are room of the height that they had or will have.
 */
import { caretDownIcon, caretRightIcon } from '@jupyterlab/ui-components';
import React, { useCallback, useLayoutEffect, useReducer, useRef, useState } from 'react';

/** Rows of a list that is drawn in parts. */
export const WINDOWED = 100;
/** Rows of one part. */
export const BLOCK = 25;
/** Pixels of a row that was not drawn yet. */
const ROW = 44;
/** Pixels above and below the visible part that are drawn. */
const MARGIN = 600;

export interface IRowsProps<T> {
  items: readonly T[];
  label: string;
  keyOf: (item: T) => string;
  children: (item: T, index: number) => React.ReactNode;
}

export function Rows<T>(props: IRowsProps<T>): JSX.Element {
  const { items } = props;
  const list = useRef<HTMLDivElement>(null);
  const heights = useRef(new Map<number, number>());
  const [, draw] = useReducer((count: number) => count + 1, 0);
  const [view, setView] = useState<readonly [number, number]>([0, 0]);
  const [focused, setFocused] = useState(-1);
  const windowed = items.length > WINDOWED;
  const count = windowed ? Math.ceil(items.length / BLOCK) : 0;
  const heightOf = (block: number) =>
    heights.current.get(block) ?? ROW * Math.min(BLOCK, items.length - block * BLOCK);

  const look = useCallback(() => {
    const node = list.current;
    const scroller = node?.closest<HTMLElement>('.jp-Mlops-sectionWidget');
    if (node && scroller) {
      const top = scroller.scrollTop - node.offsetTop;
      const next: [number, number] = [top - MARGIN, top + scroller.clientHeight + MARGIN];
      // Whole blocks come and go: small steps change nothing.
      setView(old => (Math.abs(old[0] - next[0]) + Math.abs(old[1] - next[1]) < 100 ? old : next));
    }
  }, []);

  useLayoutEffect(() => {
    const scroller = list.current?.closest<HTMLElement>('.jp-Mlops-sectionWidget');
    if (!windowed || !scroller) {
      return undefined;
    }
    look();
    const observer = new ResizeObserver(look);
    observer.observe(scroller);
    scroller.addEventListener('scroll', look, { passive: true });
    return () => {
      observer.disconnect();
      scroller.removeEventListener('scroll', look);
    };
  }, [windowed, look]);
  useLayoutEffect(() => {
    // What is drawn tells its height, for the time when it is not.
    let changed = false;
    for (const node of Array.from(list.current?.children ?? [])) {
      const { block, drawn } = (node as HTMLElement).dataset;
      const height = (node as HTMLElement).offsetHeight;
      if (block && drawn && height && heights.current.get(Number(block)) !== height) {
        heights.current.set(Number(block), height);
        changed = true;
      }
    }
    if (changed) {
      draw();
    }
  });

  const onKeyDown = (event: React.KeyboardEvent<HTMLElement>) => {
    const rows = Array.from(event.currentTarget.querySelectorAll<HTMLElement>('.jp-Mlops-row'));
    const index = rows.findIndex(row => row.contains(document.activeElement));
    if (index < 0 || (event.target as HTMLElement).matches('input[type=search]')) {
      return;
    }
    const target = {
      ArrowDown: Math.min(rows.length - 1, index + 1),
      ArrowUp: Math.max(0, index - 1),
      Home: 0,
      End: rows.length - 1
    }[event.key];
    if (target === undefined) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (windowed && (event.key === 'Home' || event.key === 'End')) {
      // That end may not be drawn yet.
      setFocused(event.key === 'Home' ? 0 : count - 1);
      wanted.current = event.key;
      return;
    }
    rows[target].focus();
  };
  const wanted = useRef('');
  useLayoutEffect(() => {
    const rows = list.current?.querySelectorAll<HTMLElement>('.jp-Mlops-row');
    if (wanted.current && rows?.length) {
      rows[wanted.current === 'Home' ? 0 : rows.length - 1].focus();
      wanted.current = '';
    }
  });

  const rowsOf = (from: number, to: number) =>
    items
      .slice(from, to)
      .map((item, i) => (
        <React.Fragment key={props.keyOf(item)}>{props.children(item, from + i)}</React.Fragment>
      ));
  let top = 0;
  return (
    <div
      ref={list}
      className="jp-Mlops-list"
      role="list"
      aria-label={props.label}
      data-total={items.length}
      onKeyDown={onKeyDown}
      onFocus={event => {
        const block = event.target.closest<HTMLElement>('[data-block]')?.dataset.block;
        setFocused(block ? Number(block) : -1);
      }}
    >
      {windowed
        ? Array.from({ length: count }, (_, block) => {
            const height = heightOf(block);
            const shown =
              (top + height >= view[0] && top <= view[1]) || block === focused || block === 0;
            top += height;
            return (
              <div
                key={block}
                role="none"
                data-block={block}
                data-drawn={shown || undefined}
                style={shown ? undefined : { height }}
              >
                {shown && rowsOf(block * BLOCK, (block + 1) * BLOCK)}
              </div>
            );
          })
        : rowsOf(0, items.length)}
    </div>
  );
}

export interface IRowProps {
  kind: string;
  name: string;
  /** What a screen reader says for the row. */
  label: string;
  first: boolean;
  icon: React.ReactNode;
  title: React.ReactNode;
  aside?: React.ReactNode;
  detail?: React.ReactNode;
  actions?: React.ReactNode;
  children?: React.ReactNode;
  onOpen?: () => void;
  onDelete?: () => void;
  /** A box to select the row with; the space key does the same. */
  selection?: { selected: boolean; disabled: boolean; label: string; toggle: () => void };
  /** More of it that unfolds below; the arrow keys to the right and left do the same. */
  expansion?: { open: boolean; label: string; toggle: () => void };
}

export function Row(props: IRowProps): JSX.Element {
  const { selection, expansion } = props;
  const onRowKey = (event: React.KeyboardEvent<HTMLElement>) => {
    if (event.target !== event.currentTarget) {
      return;
    }
    if (event.key === 'Enter' && props.onOpen) {
      event.preventDefault();
      props.onOpen();
    } else if (event.key === 'Delete' && props.onDelete) {
      event.preventDefault();
      props.onDelete();
    } else if (event.key === ' ' && selection && !selection.disabled) {
      event.preventDefault();
      selection.toggle();
    } else if (event.key === (expansion?.open ? 'ArrowLeft' : 'ArrowRight') && expansion) {
      event.preventDefault();
      expansion.toggle();
    }
  };
  return (
    <div
      role="listitem"
      className={[
        'jp-Mlops-row',
        props.actions ? 'jp-mod-actions' : '',
        selection ? 'jp-mod-selectable' : '',
        selection?.selected ? 'jp-mod-selected' : ''
      ]
        .filter(Boolean)
        .join(' ')}
      data-testid="mlops-row"
      data-kind={props.kind}
      data-name={props.name}
      aria-label={props.label}
      tabIndex={props.first ? 0 : -1}
      onKeyDown={onRowKey}
    >
      <div className="jp-Mlops-rowIcon">
        {props.icon}
        {selection && (
          <input
            type="checkbox"
            className="jp-Mlops-selectBox"
            checked={selection.selected}
            disabled={selection.disabled}
            aria-label={selection.label}
            title={selection.label}
            data-testid="mlops-select"
            onChange={selection.toggle}
          />
        )}
      </div>
      <div className="jp-Mlops-rowBody">
        <div className="jp-Mlops-rowLine">
          {expansion && (
            <button
              type="button"
              className="jp-Mlops-caret"
              title={expansion.label}
              aria-label={expansion.label}
              aria-expanded={expansion.open}
              tabIndex={-1}
              data-testid="mlops-expand"
              onClick={expansion.toggle}
            >
              {expansion.open ? (
                <caretDownIcon.react tag="span" className="jp-Mlops-icon" />
              ) : (
                <caretRightIcon.react tag="span" className="jp-Mlops-icon" />
              )}
            </button>
          )}
          {props.onOpen ? (
            <button
              type="button"
              className="jp-Mlops-rowTitle"
              tabIndex={-1}
              onClick={props.onOpen}
            >
              {props.title}
            </button>
          ) : (
            <span className="jp-Mlops-rowTitle">{props.title}</span>
          )}
          {props.aside && <span className="jp-Mlops-rowAside">{props.aside}</span>}
        </div>
        {props.detail && <div className="jp-Mlops-rowDetail">{props.detail}</div>}
        {props.children}
      </div>
      {props.actions && <div className="jp-Mlops-rowActions">{props.actions}</div>}
    </div>
  );
}
