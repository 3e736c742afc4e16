/** Who may call an endpoint, and where: addresses, keys, tokens. Keys are told once, when they are made. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import { CommandIDs } from '../ids';
import { CopyButton } from './common';
import type { IEndpointProps } from './endpointprops';

/** Seconds for which a token can be had. */
const LIVES = [3600, 86_400, 7 * 86_400, 30 * 86_400] as const;

function lifeText(seconds: number, trans: TranslationBundle): string {
  return seconds < 86_400
    ? trans._n('%1 hour', '%1 hours', seconds / 3600)
    : trans._n('%1 day', '%1 days', seconds / 86_400);
}

export function Address(props: {
  label: string;
  url: string;
  trans: TranslationBundle;
  testId?: string;
}): JSX.Element {
  return (
    <div className="jp-Mlops-url">
      <code title={props.label}>{props.url}</code>
      <CopyButton
        text={props.url}
        label={props.trans.__('Copy the address')}
        trans={props.trans}
        testId={props.testId}
      />
    </div>
  );
}

function Keys({ live, trans, readonly, run }: IEndpointProps): JSX.Element {
  const hints = Object.entries(live.endpoint?.status.key_hints ?? {});
  return (
    <section className="jp-Mlops-card" aria-label={trans.__('Keys')} data-testid="mlops-keys">
      <h3>{trans.__('Keys')}</h3>
      <p className="jp-Mlops-muted">
        {trans.__(
          'Either key opens the endpoint. Rotate the one that nobody uses, hand it out, then rotate the other.'
        )}
      </p>
      <table className="jp-Mlops-table">
        <tbody>
          {hints.map(([key, hint]) => (
            <tr key={key}>
              <th scope="row">{key === 'primary' ? trans.__('Primary') : trans.__('Secondary')}</th>
              <td>
                <code>{`…${hint}`}</code>
              </td>
              <td>
                <button
                  type="button"
                  className="jp-Mlops-button"
                  disabled={readonly}
                  data-testid={`mlops-rotate-${key}`}
                  onClick={() => void run(CommandIDs.rotateKey, { name: live.name, key })}
                >
                  {trans.__('Rotate…')}
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Tokens({ live, trans, readonly, run }: IEndpointProps): JSX.Element {
  const [life, setLife] = useState<number>(LIVES[0]);
  const { name } = live;
  return (
    <section className="jp-Mlops-card" aria-label={trans.__('Tokens')} data-testid="mlops-tokens">
      <h3>{trans.__('Tokens')}</h3>
      <p className="jp-Mlops-muted">
        {trans.__('A token opens this endpoint only, and ends by itself.')}
      </p>
      <div className="jp-Mlops-cardActions">
        <label className="jp-Mlops-inline">
          <span>{trans.__('Good for')}</span>
          <select
            className="jp-Mlops-select"
            value={life}
            disabled={readonly}
            data-testid="mlops-token-life"
            onChange={event => setLife(Number(event.target.value))}
          >
            {LIVES.map(seconds => (
              <option key={seconds} value={seconds}>
                {lifeText(seconds, trans)}
              </option>
            ))}
          </select>
        </label>
        <button
          type="button"
          className="jp-Mlops-button"
          disabled={readonly}
          data-testid="mlops-token-create"
          onClick={() => void run(CommandIDs.createToken, { name, seconds: String(life) })}
        >
          {trans.__('Create a token')}
        </button>
        <span className="jp-Mlops-spring" />
        <button
          type="button"
          className="jp-Mlops-more"
          disabled={readonly}
          data-testid="mlops-token-end"
          onClick={() => void run(CommandIDs.rotateKey, { name, key: 'tokens' })}
        >
          {trans.__('End all tokens…')}
        </button>
      </div>
    </section>
  );
}

export function Access(props: IEndpointProps): JSX.Element {
  const { live, trans } = props;
  const spec = live.endpoint?.spec ?? {};
  const here = live.endpoint?.status.scoring_uri;
  const tokens = spec.auth_mode === 'token';
  return (
    <div className="jp-Mlops-cards">
      <section className="jp-Mlops-card" aria-label={trans.__('Addresses')}>
        <h3>{trans.__('Addresses')}</h3>
        <dl className="jp-Mlops-addresses">
          {here && (
            <>
              <dt>{trans.__('On this machine')}</dt>
              <dd>
                <Address label={trans.__('On this machine')} url={here} trans={trans} />
              </dd>
            </>
          )}
          <dt>{trans.__('From outside, through Jupyter')}</dt>
          <dd>
            {spec.public_network_access === 'disabled' ? (
              <span className="jp-Mlops-muted">{trans.__('closed')}</span>
            ) : (
              <Address
                label={trans.__('From outside, through Jupyter')}
                url={live.api.endpointUrl(live.name)}
                trans={trans}
              />
            )}
          </dd>
        </dl>
      </section>
      {tokens && <Tokens {...props} />}
      <Keys {...props} />
    </div>
  );
}
