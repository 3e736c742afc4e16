/** A key or token that is told only once: shown in a dialog, copied from there, kept nowhere. */
import { Dialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { CopyButton } from './common';

export async function showSecret(options: {
  title: string;
  value: string;
  note: string;
  trans: TranslationBundle;
}): Promise<void> {
  const { trans } = options;
  await showDialog({
    title: options.title,
    body: (
      <div className="jp-Mlops-secret">
        <div className="jp-Mlops-url">
          <code data-testid="mlops-secret">{options.value}</code>
          <CopyButton
            text={options.value}
            label={trans.__('Copy')}
            trans={trans}
            testId="mlops-secret-copy"
          />
        </div>
        <p>{options.note}</p>
      </div>
    ),
    buttons: [Dialog.okButton({ label: trans.__('Done') })]
  });
}
