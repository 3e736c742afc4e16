/** What came of a deployment's proof, in words and in full. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import type { IProof } from '../api';
import { formatMs, formatNumber } from '../format';
import { StatusIcon } from './status';

/** Packages shown before one asks for all. */
const MAX_PACKAGES = 8;

/** In a few words; empty when nothing was proven yet. */
export function proofText(proof: IProof | null | undefined, trans: TranslationBundle): string {
  if (!proof) {
    return '';
  }
  if (proof.passed === false) {
    return trans.__('proof failed');
  }
  if (proof.passed && proof.kind === 'equal') {
    return trans.__('answers as the notebook did');
  }
  if (proof.passed && proof.kind === 'answered') {
    return trans.__('answered its example');
  }
  return trans.__('not proven');
}

/** The proof with its numbers, and the packages whose versions differ. */
export function Proof(props: { proof: IProof; trans: TranslationBundle }): JSX.Element {
  const { proof, trans } = props;
  const facts = [
    typeof proof.rows === 'number' ? trans._n('%1 row', '%1 rows', proof.rows) : '',
    typeof proof.max_difference === 'number'
      ? trans.__('largest difference %1', formatNumber(proof.max_difference, 3))
      : '',
    typeof proof.took_ms === 'number' ? formatMs(proof.took_ms) : ''
  ].filter(Boolean);
  const packages = proof.packages ?? [];
  const rest = packages.length - MAX_PACKAGES;
  return (
    <div className="jp-Mlops-proof" data-testid="mlops-proof" data-passed={String(proof.passed)}>
      <div className="jp-Mlops-proofHead">
        <StatusIcon
          phase={proof.passed === false ? 'Failed' : proof.passed ? 'Ready' : 'Pending'}
        />
        <span>{proofText(proof, trans)}</span>
        {facts.length > 0 && <span className="jp-Mlops-muted">{facts.join(' · ')}</span>}
      </div>
      {proof.message && <div className="jp-Mlops-muted">{proof.message}</div>}
      {packages.length > 0 && (
        <table className="jp-Mlops-table">
          <caption>
            {trans._n(
              '%1 package differs from the notebook',
              '%1 packages differ from the notebook',
              packages.length
            )}
          </caption>
          <thead>
            <tr>
              <th scope="col">{trans.__('Package')}</th>
              <th scope="col">{trans.__('Notebook')}</th>
              <th scope="col">{trans.__('Deployment')}</th>
            </tr>
          </thead>
          <tbody>
            {packages.slice(0, MAX_PACKAGES).map(one => (
              <tr key={one.name}>
                <th scope="row">{one.name}</th>
                <td>{one.kernel || trans.__('none')}</td>
                <td>{one.deployment || trans.__('none')}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {rest > 0 && <div className="jp-Mlops-muted">{trans.__('and %1 more', rest)}</div>}
    </div>
  );
}
