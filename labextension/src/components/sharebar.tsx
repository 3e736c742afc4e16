/** Shares of traffic as a thin bar. Its parts differ in their patterns and in colour, and text says the same. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import type { Traffic } from '../api';
import { sum, trafficText } from '../traffic';

/** Patterns that the style sheet knows. */
export const PATTERNS = 4;

/** The mark of a deployment beside its name: the pattern of its part of the bar. */
export function ShareMark({ index }: { index: number }): JSX.Element {
  return <span className={`jp-Mlops-shareMark jp-mod-${index % PATTERNS}`} aria-hidden="true" />;
}

export function ShareBar(props: {
  traffic: Traffic;
  /** All deployments, in the order in which they are numbered. */
  names: readonly string[];
  trans: TranslationBundle;
}): JSX.Element {
  const { traffic, names, trans } = props;
  const text = trafficText(traffic);
  const label = text ? trans.__('Traffic: %1', text) : trans.__('No deployment has traffic');
  return (
    <div
      className={`jp-Mlops-shares${sum(traffic) ? '' : ' jp-mod-none'}`}
      role="img"
      aria-label={label}
      title={label}
      data-testid="mlops-shares"
    >
      {names.map(
        (name, i) =>
          (traffic[name] ?? 0) > 0 && (
            <span
              key={name}
              className={`jp-Mlops-sharePart jp-mod-${i % PATTERNS}`}
              style={{ flexGrow: traffic[name] }}
            />
          )
      )}
    </div>
  );
}
