/** What is kept of requests and answers, and how to get at it. */
import React from 'react';

import { formatBytes, formatCount, formatShare, relativeTime } from '../format';
import { NextStep, useNow } from './common';
import { type IEndpointProps, usePart } from './endpointprops';
import { LoadError } from './list';

export function Captured({ live, trans }: IEndpointProps): JSX.Element {
  const now = useNow(10_000);
  const error = usePart(live, 'captured');
  const info = live.captured;
  const keeping = live.deployments.filter(
    one => one.spec.data_collector && (one.spec.data_collector.sampling_rate ?? 1) > 0
  );
  if (!info && error) {
    return <LoadError error={error} retry={() => live.refresh()} trans={trans} />;
  }
  const rates = keeping.map(one =>
    trans.__(
      '%1 of the requests to %2',
      formatShare(one.spec.data_collector!.sampling_rate ?? 1),
      one.name
    )
  );
  const masked = [
    ...new Set(keeping.flatMap(one => one.spec.data_collector!.masked_columns ?? []))
  ];
  const facts: [string, string][] = info
    ? [
        [trans.__('Rows'), formatCount(info.rows)],
        [trans.__('Files'), formatCount(info.files)],
        [trans.__('Size'), formatBytes(info.bytes)],
        [trans.__('Oldest'), relativeTime(info.oldest, now, trans) || '–'],
        [trans.__('Newest'), relativeTime(info.newest, now, trans) || '–']
      ]
    : [];
  if (info?.dropped) {
    facts.push([trans.__('Dropped'), formatCount(info.dropped)]);
  }
  return (
    <section
      className="jp-Mlops-card"
      aria-label={trans.__('Captured data')}
      data-testid="mlops-captured"
    >
      <h3>{trans.__('Captured data')}</h3>
      {!info && (
        <p className="jp-Mlops-muted" role="status">
          {trans.__('Loading…')}
        </p>
      )}
      <p className="jp-Mlops-muted">
        {rates.length
          ? trans.__('Kept: %1.', rates.join(', '))
          : trans.__('Nothing is kept of the requests of these deployments.')}
        {masked.length > 0 && ` ${trans.__('Without the values of %1.', masked.join(', '))}`}
      </p>
      {info && info.files > 0 && (
        <dl className="jp-Mlops-values">
          {facts.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      )}
      {info && info.files > 0 && (
        <>
          <p>{trans.__('As a DataFrame in a notebook:')}</p>
          <NextStep code={`df = %mlops endpoint data ${live.name}`} trans={trans} />
          <div className="jp-Mlops-cardActions">
            <a
              className="jp-Mlops-button"
              href={live.api.serving.url(live.name, 'data')}
              download={`${live.name}.parquet`}
              data-testid="mlops-captured-download"
            >
              {trans.__('Download as Parquet')}
            </a>
          </div>
        </>
      )}
      {info && !info.files && !keeping.length && (
        <>
          <p>{trans.__('A deployment keeps a sample when it is asked to:')}</p>
          <NextStep
            code={`%mlops deploy my-model@champion -e ${live.name} --collect 0.1`}
            trans={trans}
          />
        </>
      )}
      {info && !info.files && keeping.length > 0 && (
        <p>{trans.__('No request was kept so far.')}</p>
      )}
    </section>
  );
}
