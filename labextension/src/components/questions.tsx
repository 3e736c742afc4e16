/** What a question shows before traffic is changed. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import type { Endpoint, ICanarySpec, ITrafficChange } from '../api';
import { CANARY_DEFAULTS } from '../canary';
import { formatDuration, formatMs, formatShare } from '../format';
import { effective, equal, shifts, trafficText } from '../traffic';
import { Shifts } from './traffic';

function Line(props: { label: string; before: string; after: string }): JSX.Element {
  return (
    <p>
      {props.label}: {props.before} → {props.after}
    </p>
  );
}

/** Shares, mirror and header before and after; of what does not change nothing is said. */
export function trafficQuestion(
  endpoint: Endpoint,
  change: ITrafficChange,
  trans: TranslationBundle
): React.ReactElement {
  const { spec } = endpoint;
  const before = effective(endpoint);
  const none = trans.__('none');
  const mirrored = change.mirror_traffic;
  return (
    <div className="jp-Mlops-question">
      {change.traffic && !equal(before, change.traffic) && (
        <Shifts shifts={shifts(before, change.traffic)} trans={trans} />
      )}
      {mirrored !== undefined && (
        <Line
          label={trans.__('Mirror')}
          before={trafficText(spec.mirror_traffic ?? {}) || none}
          after={trafficText(mirrored ?? {}) || none}
        />
      )}
      {change.sticky_header !== undefined && (
        <Line
          label={trans.__('Sticky header')}
          before={spec.sticky_header || none}
          after={change.sticky_header || none}
        />
      )}
    </div>
  );
}

/** What a canary will do by itself. */
export function canaryQuestion(canary: ICanarySpec, trans: TranslationBundle): React.ReactElement {
  const spec = { ...CANARY_DEFAULTS, ...canary };
  const latency = spec.max_latency_ms ? formatMs(spec.max_latency_ms) : '';
  return (
    <div className="jp-Mlops-question">
      <p>
        {trans.__(
          'It takes %1 % of the traffic for %2, and then all of it when it had at least %3 requests.',
          spec.percent,
          formatDuration(spec.duration * 1000),
          spec.min_requests
        )}
      </p>
      <p>
        {trans.__(
          'It is rolled back at once when it has more than %1 errors beyond those of the others, or a p95 of more than %2 times theirs.',
          formatShare(spec.max_error_rate),
          spec.max_latency_ratio
        )}
        {latency && ` ${trans.__('Its p95 may be %1 at most.', latency)}`}
      </p>
    </div>
  );
}
