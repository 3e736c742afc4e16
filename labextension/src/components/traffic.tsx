/** The traffic of an endpoint: shares that always add up to 100, a mirror, and what a client sticks to. */
import { undoIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import type { Deployment, Traffic } from '../api';
import { CommandIDs } from '../ids';
import { allTo, equal, fill, IShift, isValid, rebalance, sum, trafficText } from '../traffic';
import type { IEndpointProps } from './endpointprops';
import { ShareBar, ShareMark } from './sharebar';
import { Status } from './status';

/** Percent of the requests that are mirrored at first. */
const MIRROR = 10;

/** Before and after, for the question before a change. */
export function Shifts(props: { shifts: readonly IShift[]; trans: TranslationBundle }) {
  const { shifts, trans } = props;
  return (
    <table className="jp-Mlops-table jp-Mlops-shifts" data-testid="mlops-shifts">
      <thead>
        <tr>
          <th scope="col">{trans.__('Deployment')}</th>
          <th scope="col">{trans.__('Now')}</th>
          <th scope="col" aria-hidden="true" />
          <th scope="col">{trans.__('After')}</th>
        </tr>
      </thead>
      <tbody>
        {shifts.map(({ name, before, after }) => (
          <tr key={name} className={before === after ? 'jp-Mlops-muted' : undefined}>
            <th scope="row">{name}</th>
            <td>{before} %</td>
            <td aria-hidden="true">→</td>
            <td>{after} %</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Share(props: {
  one: Deployment;
  index: number;
  value: number;
  disabled: boolean;
  onChange: (value: number) => void;
  onAll: () => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { one, value, disabled, onChange, trans } = props;
  // Half a number is none yet: what is typed counts when it is one.
  const [typed, setTyped] = useState<string | null>(null);
  const isShare = (text: string) => /^\d+$/.test(text) && Number(text) <= 100;
  const outdated = typed !== null && isShare(typed) && Number(typed) !== value;
  const label = trans.__('Share of %1 in percent', one.name);
  return (
    <div className="jp-Mlops-share" data-testid="mlops-share" data-name={one.name}>
      <span className="jp-Mlops-shareName" title={one.name}>
        <ShareMark index={props.index} />
        {one.name}
      </span>
      {one.status.phase === 'Ready' ? (
        <input
          type="range"
          min={0}
          max={100}
          value={value}
          disabled={disabled}
          aria-label={label}
          data-testid="mlops-share-slider"
          onChange={event => onChange(Number(event.target.value))}
        />
      ) : (
        <span className="jp-Mlops-muted" title={one.status.reason}>
          <Status phase={one.status.phase} trans={trans} />
        </span>
      )}
      <span className="jp-Mlops-shareValue">
        <input
          type="number"
          min={0}
          max={100}
          step={1}
          value={typed === null || outdated ? String(value) : typed}
          disabled={disabled}
          aria-label={label}
          data-testid="mlops-share-number"
          onChange={event => {
            const { value: text } = event.target;
            setTyped(text);
            if (isShare(text)) {
              onChange(Number(text));
            }
          }}
          onBlur={() => setTyped(null)}
        />
        %
      </span>
      <button
        type="button"
        className="jp-Mlops-more"
        disabled={disabled || value === 100}
        title={trans.__('All traffic to %1', one.name)}
        aria-label={trans.__('All traffic to %1', one.name)}
        data-testid="mlops-share-all"
        onClick={props.onAll}
      >
        {trans.__('All')}
      </button>
    </div>
  );
}

/** The deployment that gets copies of requests, and of how many. */
function Mirror(props: {
  mirror: Traffic;
  /** Those without traffic of their own. */
  names: readonly string[];
  disabled: boolean;
  onChange: (mirror: Traffic) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { mirror, names, onChange, trans } = props;
  const [name = '', percent = MIRROR] = Object.entries(mirror)[0] ?? [];
  return (
    <div className="jp-Mlops-fieldRow">
      <label>
        <span title={trans.__('Its answers are compared and counted, never returned')}>
          {trans.__('Mirror to')}
        </span>
        <select
          className="jp-Mlops-select"
          value={name}
          disabled={props.disabled || (!names.length && !name)}
          data-testid="mlops-mirror"
          onChange={event => onChange(event.target.value ? { [event.target.value]: percent } : {})}
        >
          <option value="">{trans.__('nobody')}</option>
          {[...new Set([...names, ...(name ? [name] : [])])].map(one => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
      </label>
      {name && (
        <span className="jp-Mlops-shareValue">
          <input
            type="number"
            min={1}
            max={100}
            value={percent}
            disabled={props.disabled}
            aria-label={trans.__('Mirrored requests in percent')}
            data-testid="mlops-mirror-percent"
            onChange={event => {
              const value = Math.round(Number(event.target.value));
              onChange({ [name]: Math.min(100, Math.max(1, value || 1)) });
            }}
          />
          %
        </span>
      )}
    </div>
  );
}

interface IDraft {
  traffic: Record<string, number>;
  mirror: Traffic;
  sticky: string;
}

export function TrafficEditor({ live, trans, readonly, run }: IEndpointProps): JSX.Element {
  const [draft, setDraft] = useState<IDraft | null>(null);
  const [busy, setBusy] = useState(false);
  const spec = live.endpoint?.spec ?? {};
  const names = live.deployments.map(one => one.name);
  const current: IDraft = {
    traffic: fill(live.traffic, names),
    mirror: spec.mirror_traffic ?? {},
    sticky: spec.sticky_header ?? ''
  };
  // Deployments come and go while one edits.
  const shown = draft ? { ...draft, traffic: fill(draft.traffic, names) } : current;
  const change = (part: Partial<IDraft>) => setDraft({ ...shown, ...part });
  const moved = !equal(shown.traffic, current.traffic);
  const remirrored = !equal(shown.mirror, current.mirror);
  const restuck = shown.sticky !== current.sticky;
  const dirty = moved || remirrored || restuck;
  const validHeader = /^[A-Za-z0-9-]{0,64}$/.test(shown.sticky);
  const disabled = readonly || busy;
  const { previous } = live;
  const running = live.endpoint?.status.canary?.phase === 'Running';
  const ready = (name: string) =>
    live.deployments.some(one => one.name === name && one.status.phase === 'Ready');

  const act = async (command: string, args: Record<string, unknown>) => {
    setBusy(true);
    const done = await run(command, { name: live.name, ...args } as never);
    setBusy(false);
    if (done) {
      setDraft(null);
    }
  };
  const apply = () =>
    act(CommandIDs.setTraffic, {
      ...(moved ? { traffic: shown.traffic } : {}),
      ...(remirrored ? { mirror: { ...shown.mirror } } : {}),
      ...(restuck ? { sticky: shown.sticky } : {})
    });

  const inForce = live.endpoint?.status.traffic;
  const partly = inForce && sum(inForce) > 0 && !equal(inForce, live.traffic);
  return (
    <section className="jp-Mlops-card" aria-label={trans.__('Traffic')} data-testid="mlops-traffic">
      <h3>{trans.__('Traffic')}</h3>
      <ShareBar traffic={shown.traffic} names={names} trans={trans} />
      {live.deployments.map((one, i) => (
        <Share
          key={one.name}
          one={one}
          index={i}
          value={shown.traffic[one.name]}
          disabled={disabled || (!ready(one.name) && !shown.traffic[one.name])}
          onChange={value =>
            change({ traffic: rebalance(shown.traffic, one.name, value, current.traffic) })
          }
          onAll={() => change({ traffic: allTo(one.name, names) })}
          trans={trans}
        />
      ))}
      {partly && (
        <p className="jp-Mlops-muted" role="status">
          {trans.__('In force, as not all are ready: %1', trafficText(inForce))}
        </p>
      )}
      <div className="jp-Mlops-fields">
        <Mirror
          mirror={shown.mirror}
          names={names.filter(name => ready(name) && !shown.traffic[name])}
          disabled={disabled}
          onChange={mirror => change({ mirror })}
          trans={trans}
        />
        <label className="jp-Mlops-fieldRow">
          <span title={trans.__('Requests that agree in this header go to the same deployment')}>
            {trans.__('Sticky header')}
          </span>
          <input
            type="text"
            value={shown.sticky}
            placeholder={trans.__('none')}
            disabled={disabled}
            aria-invalid={!validHeader}
            spellCheck={false}
            data-testid="mlops-sticky"
            onChange={event => change({ sticky: event.target.value.trim() })}
          />
        </label>
      </div>
      {dirty && running && moved && (
        <p className="jp-Mlops-warning" role="status">
          {trans.__('A canary runs. A change of the traffic by hand ends it.')}
        </p>
      )}
      <div className="jp-Mlops-cardActions">
        <button
          type="button"
          className="jp-Mlops-button jp-mod-primary"
          disabled={disabled || !dirty || !validHeader || !isValid(shown.traffic)}
          data-testid="mlops-traffic-apply"
          onClick={() => void apply()}
        >
          {busy ? trans.__('Applying…') : trans.__('Apply…')}
        </button>
        {dirty && (
          <button
            type="button"
            className="jp-Mlops-button"
            disabled={busy}
            data-testid="mlops-traffic-reset"
            onClick={() => setDraft(null)}
          >
            {trans.__('Reset')}
          </button>
        )}
        <span className="jp-Mlops-spring" />
        {previous && !running && !dirty && (
          <button
            type="button"
            className="jp-Mlops-more"
            disabled={disabled}
            title={trans.__('Back to %1', trafficText(previous) || trans.__('no traffic'))}
            data-testid="mlops-traffic-previous"
            onClick={() => void act(CommandIDs.rollbackTraffic, {})}
          >
            <undoIcon.react tag="span" className="jp-Mlops-icon" />
            {trans.__('Back to previous')}
          </button>
        )}
      </div>
    </section>
  );
}
