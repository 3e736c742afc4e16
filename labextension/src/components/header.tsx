/** The line on top of the panel, and the one message when nothing can be shown. */
import { launchIcon, refreshIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { relativeTime } from '../format';
import type { WorkspaceModel } from '../model';
import type { IProblem } from '../problem';
import { VERSION } from '../version';
import { IconButton, Message, NextStep, useNow, useSignal } from './common';

/** Milliseconds that the control plane may be away before the panel says more than "reconnecting". */
const PATIENCE = 3000;

type Tone = 'good' | 'busy' | 'bad';

/** Where things stand, in one or two words. */
export function stateText(model: WorkspaceModel, trans: TranslationBundle): [Tone, string, string] {
  const message = model.status?.message ?? '';
  switch (model.link) {
    case 'connecting':
      return ['busy', trans.__('connecting'), message];
    case 'starting':
      return model.status?.state === 'down'
        ? ['bad', trans.__('control plane down'), message]
        : ['busy', trans.__('starting'), message];
    case 'reconnecting':
      return ['busy', trans.__('reconnecting'), message];
  }
  const mlflow = model.workspace?.mlflow;
  switch (mlflow?.state) {
    case 'ready':
      return ['good', trans.__('MLflow ready'), mlflow.version];
    case 'starting':
      return ['busy', trans.__('MLflow starting'), mlflow.message];
    case 'restarting':
      return ['busy', trans.__('MLflow restarting'), mlflow.message];
    case 'failed':
      return ['bad', trans.__('MLflow failed'), mlflow.message];
    default:
      return ['bad', trans.__('MLflow stopped'), mlflow?.message ?? ''];
  }
}

function Problem(props: {
  problem: IProblem;
  trans: TranslationBundle;
  retry: () => void;
}): JSX.Element {
  const { problem, trans } = props;
  const action = { label: trans.__('Retry'), onClick: props.retry };
  switch (problem.kind) {
    case 'missing':
      return (
        <Message
          tone="error"
          testId="mlops-problem"
          title={trans.__('The Jupyter server has no Jupyter MLOps')}
          action={action}
        >
          <p>
            {trans.__(
              'Install it in the environment that runs the Jupyter server, then restart the server:'
            )}
          </p>
          <NextStep code={"pip install 'jupyter-mlops[lab]'"} trans={trans} />
          <p>{trans.__('If it is installed, see whether it is enabled:')}</p>
          <NextStep code="jupyter server extension list" trans={trans} />
        </Message>
      );
    case 'version':
      return (
        <Message
          tone="error"
          testId="mlops-problem"
          title={trans.__('Front end and server are of different versions')}
          action={action}
        >
          {trans.__(
            'This page has version %1, the server %2. Restart the Jupyter server, then reload the page.',
            VERSION,
            problem.detail
          )}
        </Message>
      );
    case 'refused':
      return (
        <Message
          tone="error"
          testId="mlops-problem"
          title={trans.__('The Jupyter server refused')}
          action={action}
        >
          {problem.detail}
        </Message>
      );
    default:
      return (
        <Message
          tone="warn"
          testId="mlops-problem"
          title={trans.__('The Jupyter server does not answer')}
          action={action}
        >
          {trans.__('Trying again by itself.')}
        </Message>
      );
  }
}

export function Header(props: {
  model: WorkspaceModel;
  trans: TranslationBundle;
  openMlflow: () => void;
}): JSX.Element {
  const { model, trans } = props;
  useSignal(model.changed);
  const now = useNow(model.downSince ? 1000 : 5000);
  if (model.problem) {
    return <Problem problem={model.problem} trans={trans} retry={() => void model.refresh()} />;
  }
  const [tone, state, detail] = stateText(model, trans);
  const name = model.workspace?.name ?? model.status?.workspace ?? '…';
  const updated = model.updatedAt ? new Date(model.updatedAt).toISOString() : '';
  // A control plane that died is started again at once; only one that stays away needs words.
  const down = model.downSince > 0 && now - model.downSince > PATIENCE;
  return (
    <>
      <div className="jp-Mlops-header" data-testid="mlops-header">
        <div className="jp-Mlops-headerText">
          <div className="jp-Mlops-headerName" title={model.workspace?.home}>
            {name}
            {model.readonly && <span className="jp-Mlops-tag">{trans.__('read-only')}</span>}
          </div>
          <div className="jp-Mlops-headerState">
            <span
              className={`jp-Mlops-state jp-mod-${tone}`}
              role="status"
              title={detail}
              data-testid="mlops-state"
            >
              {state}
            </span>
            {updated && (
              <span className="jp-Mlops-muted" data-testid="mlops-updated">
                {trans.__(
                  'updated %1',
                  relativeTime(updated, Math.max(now, model.updatedAt), trans)
                )}
              </span>
            )}
          </div>
        </div>
        <IconButton
          icon={launchIcon}
          label={trans.__('Open the MLflow UI')}
          onClick={props.openMlflow}
          testId="mlops-open-mlflow"
        />
        <IconButton
          icon={refreshIcon}
          label={trans.__('Refresh')}
          disabled={model.refreshing}
          onClick={() => void model.refresh()}
          testId="mlops-refresh"
        />
      </div>
      {down && (
        <Message
          tone="warn"
          testId="mlops-down"
          title={trans.__('The control plane cannot be reached')}
          action={
            model.readonly
              ? undefined
              : {
                  label: trans.__('Start it'),
                  onClick: () => void model.resume().catch(() => undefined)
                }
          }
        >
          {detail}
        </Message>
      )}
    </>
  );
}
