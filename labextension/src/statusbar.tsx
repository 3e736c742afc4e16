/** The item in the status bar: how many jobs run or wait, or what is wrong. */
import { ReactWidget } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { useSignal } from './components/common';
import { stateText } from './components/header';
import { mlopsIcon } from './icons';
import type { WorkspaceModel } from './model';

function Item(props: {
  model: WorkspaceModel;
  trans: TranslationBundle;
  open: () => void;
}): JSX.Element | null {
  const { model, trans } = props;
  useSignal(model.changed);
  if (!model.settings.showStatusItem || model.problem?.kind === 'missing') {
    return null;
  }
  const active = model.workspace?.counts.running_jobs ?? 0;
  const [tone, state] = stateText(model, trans);
  const text = model.problem
    ? trans.__('MLOps: problem')
    : tone !== 'good' && model.link !== 'connecting'
      ? trans.__('MLOps: %1', state)
      : active
        ? trans._n('MLOps: %1 job active', 'MLOps: %1 jobs active', active)
        : trans.__('MLOps');
  return (
    <button
      type="button"
      className="jp-Mlops-statusItem"
      title={trans.__('Show the MLOps panel')}
      data-testid="mlops-status-item"
      onClick={props.open}
    >
      <mlopsIcon.react tag="span" className="jp-Mlops-icon" />
      {text}
    </button>
  );
}

export function createStatusItem(
  model: WorkspaceModel,
  trans: TranslationBundle,
  open: () => void
): ReactWidget {
  const widget = ReactWidget.create(<Item model={model} trans={trans} open={open} />);
  widget.addClass('jp-Mlops-statusBar');
  return widget;
}
