/** The log of a job or a deployment: processes, attempts, search, and a window of lines that follows the end. */
import { caretDownIcon, caretUpIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useLayoutEffect, useRef, useState } from 'react';

import { parseAnsi, stripAnsi } from '../ansi';
import { formatBytes } from '../format';
import type { ILogSource } from '../joblog';
import { CopyButton, IconButton } from './common';

/** Processes that have tabs; of more there is a list to choose from. */
const MAX_TABS = 8;
/** Lines that are drawn and laid out together: those out of sight cost nothing. */
const BLOCK = 100;
/** Pixels from the end within which the end is followed. */
const NEAR = 24;

const Line = React.memo(function Line(props: { text: string; marked: boolean }): JSX.Element {
  const spans = parseAnsi(props.text).map((span, i) =>
    span.classes ? (
      <span key={i} className={span.classes}>
        {span.text}
      </span>
    ) : (
      span.text
    )
  );
  return (
    <>
      {props.marked ? (
        <mark className="jp-Mlops-logMark" data-testid="mlops-log-mark">
          {spans}
        </mark>
      ) : (
        spans
      )}
      {'\n'}
    </>
  );
});

interface IBlockProps {
  lines: readonly string[];
  /** The number of its first line. */
  first: number;
  marked: number | null;
  /** Words for stretches that are not kept, by the number of the line after. */
  skips: ReadonlyMap<number, string>;
}

function sameBlock(a: IBlockProps, b: IBlockProps): boolean {
  const last = a.first + a.lines.length;
  const within = (line: number | null) => line !== null && line >= a.first && line < last;
  return (
    a.first === b.first &&
    a.lines.length === b.lines.length &&
    a.skips === b.skips &&
    (a.marked === b.marked || (!within(a.marked) && !within(b.marked))) &&
    a.lines.every((line, i) => line === b.lines[i])
  );
}

const Block = React.memo(function Block(props: IBlockProps): JSX.Element {
  const { first, skips } = props;
  return (
    <div className="jp-Mlops-logBlock">
      {props.lines.map((text, i) => (
        <React.Fragment key={first + i}>
          {skips.has(first + i) && (
            <span className="jp-Mlops-logSkip" data-testid="mlops-log-skip">
              {skips.get(first + i)}
              {'\n'}
            </span>
          )}
          <Line text={text} marked={props.marked === first + i} />
        </React.Fragment>
      ))}
    </div>
  );
}, sameBlock);

/** Blocks begin at round numbers, so that new lines change the last one only. */
function blocksOf(lines: readonly string[], first: number): { first: number; lines: string[] }[] {
  const blocks: { first: number; lines: string[] }[] = [];
  let i = 0;
  while (i < lines.length) {
    const end = Math.min(lines.length, (Math.floor((first + i) / BLOCK) + 1) * BLOCK - first);
    blocks.push({ first: first + i, lines: lines.slice(i, end) });
    i = end;
  }
  return blocks;
}

const NO_SKIPS: ReadonlyMap<number, string> = new Map();

function Search({ job, trans }: { job: ILogSource; trans: TranslationBundle }): JSX.Element {
  const { log } = job;
  const { search } = log;
  const [query, setQuery] = useState(search?.query ?? '');
  const found = search?.matches.length ?? 0;
  const next = (by: 1 | -1) => {
    const done = search && search.query === query ? log.step(by) : log.find(query);
    done.catch(() => undefined);
  };
  let status = '';
  if (search?.busy) {
    status = trans.__('searching…');
  } else if (search?.error) {
    status = search.error;
  } else if (search && !found) {
    status = trans.__('nothing found');
  } else if (search) {
    const count = search.next === null ? `${found}` : `${found}+`;
    status = trans.__('%1 of %2', search.index + 1, count);
  }
  return (
    <form
      className="jp-Mlops-logSearch"
      role="search"
      onSubmit={event => {
        event.preventDefault();
        next(1);
      }}
    >
      <input
        type="search"
        value={query}
        placeholder={trans.__('Search the log')}
        aria-label={trans.__('Search the log')}
        data-testid="mlops-log-search"
        onChange={event => {
          setQuery(event.target.value);
          if (!event.target.value) {
            void log.find('');
          }
        }}
        onKeyDown={event => {
          // Notebook shortcuts are not meant for a text field.
          event.stopPropagation();
        }}
      />
      {search && (
        <>
          <span className="jp-Mlops-muted" role="status" data-testid="mlops-log-found">
            {status}
          </span>
          <IconButton
            icon={caretUpIcon}
            label={trans.__('Previous match')}
            disabled={!found}
            onClick={() => next(-1)}
          />
          <IconButton
            icon={caretDownIcon}
            label={trans.__('Next match')}
            disabled={!found}
            onClick={() => next(1)}
            testId="mlops-log-next"
          />
        </>
      )}
    </form>
  );
}

function Ranks(props: {
  job: ILogSource;
  processes: number;
  nameOf: (rank: number) => string;
  onSelect: (rank: number) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { job, processes, nameOf, onSelect, trans } = props;
  const ranks = Array.from({ length: processes }, (_, rank) => rank);
  if (processes > MAX_TABS) {
    return (
      <select
        className="jp-Mlops-select"
        value={job.rank}
        aria-label={trans.__('Process')}
        data-testid="mlops-live-rank"
        onChange={event => onSelect(Number(event.target.value))}
      >
        {ranks.map(rank => (
          <option key={rank} value={rank}>
            {nameOf(rank)}
          </option>
        ))}
      </select>
    );
  }
  return (
    <div
      className="jp-Mlops-tabs"
      role="tablist"
      aria-label={trans.__('Process')}
      data-testid="mlops-live-rank"
      onKeyDown={event => {
        const by = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
        if (by) {
          event.preventDefault();
          event.stopPropagation();
          const rank = (job.rank + by + processes) % processes;
          onSelect(rank);
          (event.currentTarget.children[rank] as HTMLElement).focus();
        }
      }}
    >
      {ranks.map(rank => (
        <button
          key={rank}
          type="button"
          role="tab"
          className="jp-Mlops-tab"
          aria-selected={rank === job.rank}
          tabIndex={rank === job.rank ? 0 : -1}
          data-rank={rank}
          onClick={() => onSelect(rank)}
        >
          {nameOf(rank)}
        </button>
      ))}
    </div>
  );
}

export function Log(props: {
  job: ILogSource;
  processes: number;
  running: boolean;
  /** What a process is called; by itself it is a rank. */
  nameOf?: (rank: number) => string;
  trans: TranslationBundle;
}): JSX.Element {
  const { job, trans } = props;
  const { log } = job;
  const box = useRef<HTMLPreElement>(null);
  const [follow, setFollow] = useState(true);
  /** Where it was scrolled to: only scrolling back pauses. */
  const top = useRef(0);
  /** The height before earlier lines were put above, to stay at the same place. */
  const height = useRef<number | null>(null);
  const lines = job.lines;
  const own = log.isRead || log.browsing;
  const first = own ? log.buffer.first : 0;
  const skipped = own ? log.buffer.skips : [];
  const key = skipped.map(skip => `${skip.line}:${skip.bytes}`).join();
  const skips = React.useMemo(
    () =>
      key
        ? new Map(
            skipped.map(skip => [
              Math.max(skip.line, first),
              trans.__('… %1 not kept …', formatBytes(skip.bytes))
            ])
          )
        : NO_SKIPS,
    [key, first, trans]
  );

  useLayoutEffect(() => {
    const node = box.current;
    if (!node) {
      return;
    }
    if (height.current !== null) {
      node.scrollTop += node.scrollHeight - height.current;
      height.current = null;
    } else if (follow && !log.browsing) {
      node.scrollTop = node.scrollHeight;
    }
  }, [lines, follow]);
  useEffect(() => {
    if (log.marked !== null) {
      box.current?.querySelector('.jp-Mlops-logMark')?.scrollIntoView?.({ block: 'nearest' });
    }
  }, [lines, log.marked]);

  const connected = job.connection !== 'static';
  const { attempts } = job;
  const attempt = log.attempt || log.latest;
  const select = (rank: number, of?: number) => {
    setFollow(true);
    job.selectLog(rank, of);
  };
  return (
    <div className="jp-Mlops-logArea">
      <div className="jp-Mlops-logHead">
        <span className="jp-Mlops-logTitle">{trans.__('Log')}</span>
        {props.processes > 1 && connected && (
          <Ranks
            job={job}
            processes={props.processes}
            nameOf={props.nameOf ?? (rank => trans.__('rank %1', rank))}
            onSelect={rank => select(rank)}
            trans={trans}
          />
        )}
        {attempts.length > 1 && connected && (
          <select
            className="jp-Mlops-select"
            value={attempt}
            aria-label={trans.__('Attempt')}
            data-testid="mlops-live-attempt"
            onChange={event => select(job.rank, Number(event.target.value))}
          >
            {attempts.map(one => (
              <option key={one.attempt} value={one.attempt}>
                {trans.__('attempt %1', one.attempt)}
              </option>
            ))}
          </select>
        )}
        <span className="jp-Mlops-spring" />
        {connected && log.isRead && log.searchable && <Search job={job} trans={trans} />}
        {lines.length > 0 && (
          <CopyButton
            text={() => lines.map(stripAnsi).join('\n')}
            label={trans.__('Copy what is shown of the log')}
            trans={trans}
          />
        )}
      </div>
      {connected && (log.earlier > 0 || log.browsing || !follow) && (
        <div className="jp-Mlops-logMove">
          {log.earlier > 0 && (
            <button
              type="button"
              className="jp-Mlops-more"
              data-testid="mlops-log-earlier"
              onClick={() => {
                setFollow(false);
                height.current = box.current?.scrollHeight ?? null;
                log.loadEarlier().catch(() => {
                  height.current = null;
                });
              }}
            >
              {trans.__('Load earlier (%1)', formatBytes(log.earlier))}
            </button>
          )}
          {log.later > 0 && (
            <button
              type="button"
              className="jp-Mlops-more"
              data-testid="mlops-log-later"
              onClick={() => {
                log.loadLater().catch(() => undefined);
              }}
            >
              {trans.__('Load later (%1)', formatBytes(log.later))}
            </button>
          )}
          <span className="jp-Mlops-spring" />
          {(log.browsing || !follow) && (
            <button
              type="button"
              className="jp-Mlops-more"
              data-testid="mlops-log-follow"
              onClick={() => {
                setFollow(true);
                log.toEnd();
              }}
            >
              {props.running ? trans.__('Paused – follow the end') : trans.__('Go to the end')}
            </button>
          )}
        </div>
      )}
      <pre
        ref={box}
        className="jp-Mlops-log"
        tabIndex={0}
        aria-label={trans.__('Log')}
        data-testid="mlops-live-log"
        onScroll={event => {
          const node = event.currentTarget;
          const back = node.scrollTop < top.current;
          const near = node.scrollHeight - node.scrollTop - node.clientHeight < NEAR;
          top.current = node.scrollTop;
          if (log.browsing) {
            return;
          }
          if (near || back) {
            setFollow(near);
          } else if (follow) {
            // Lines above have got their true height: the end has moved, nobody has.
            node.scrollTop = node.scrollHeight;
          }
        }}
      >
        {blocksOf(lines, first).map(block => (
          <Block
            key={Math.floor(block.first / BLOCK)}
            first={block.first}
            lines={block.lines}
            marked={log.marked}
            skips={skips}
          />
        ))}
        {!lines.length && (
          <span className="jp-Mlops-muted">
            {props.running ? trans.__('No output yet.') : trans.__('No output.')}
          </span>
        )}
      </pre>
    </div>
  );
}
