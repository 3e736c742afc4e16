/** The deployments of an endpoint: what serves, how it does, how it was proven, and why it failed. */
import { caretDownIcon, caretRightIcon, deleteIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import type { Deployment, IDeploymentStats } from '../api';
import { formatCount, formatMs, formatShare } from '../format';
import { CommandIDs } from '../ids';
import type { ISummary } from '../rates';
import { IconButton, NextStep } from './common';
import type { IEndpointProps } from './endpointprops';
import { Proof, proofText } from './proof';
import { ShareMark } from './sharebar';
import { Status } from './status';

/** Lines of log beside a failure. */
const MAX_TAIL = 12;

/** The model that it serves, with its version. */
export function modelText(one: Deployment, trans: TranslationBundle): string {
  const { model_name, model_version } = one.status;
  const served = model_name || one.spec.model || trans.__('script');
  return model_version ? `${served} v${model_version}` : served;
}

function Facts(props: {
  one: Deployment;
  stats: IDeploymentStats | undefined;
  trans: TranslationBundle;
}): JSX.Element {
  const { one, stats, trans } = props;
  const scale = one.spec.scale_settings;
  const mirror = stats?.mirror;
  const facts: string[] = [];
  if (scale?.type === 'target_utilization') {
    facts.push(trans.__('%1 to %2 instances', scale.min_instances ?? 1, scale.max_instances ?? 1));
  }
  if (one.status.restarts) {
    facts.push(trans._n('%1 restart', '%1 restarts', one.status.restarts));
  }
  if (stats) {
    facts.push(trans.__('%1 requests since the gateway started', formatCount(stats.requests)));
    if (stats.queued || stats.in_flight) {
      facts.push(
        trans.__(
          '%1 waiting, %2 under way',
          String(stats.queued ?? 0),
          String(stats.in_flight ?? 0)
        )
      );
    }
    const { errors } = stats;
    if (errors['4xx']) {
      facts.push(trans.__("%1 by callers' mistakes", formatCount(errors['4xx'])));
    }
    if (errors.rejected) {
      facts.push(trans.__('%1 refused as too many', formatCount(errors.rejected)));
    }
    if (stats.retried) {
      facts.push(trans.__('%1 tried again', formatCount(stats.retried)));
    }
  }
  if (mirror && ((mirror.compared ?? 0) > 0 || (mirror.failed ?? 0) > 0)) {
    facts.push(
      trans.__(
        'mirror: %1 compared, %2 differ, %3 failed',
        formatCount(mirror.compared ?? 0),
        formatCount(mirror.different ?? 0),
        formatCount(mirror.failed ?? 0)
      )
    );
  }
  return <div className="jp-Mlops-muted">{facts.join(' · ')}</div>;
}

function Failure(props: {
  one: Deployment;
  onLog: () => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { one, trans } = props;
  const tail = (one.status.log_tail ?? []).slice(-MAX_TAIL);
  return (
    <div
      className="jp-Mlops-message jp-mod-error"
      role="alert"
      data-testid="mlops-deployment-failure"
    >
      <div className="jp-Mlops-messageTitle">
        {one.status.reason || trans.__('It failed; the log may say why.')}
      </div>
      {tail.length > 0 && <pre className="jp-Mlops-tail">{tail.join('\n')}</pre>}
      <button type="button" className="jp-Mlops-button" onClick={props.onLog}>
        {trans.__('Open the log')}
      </button>
    </div>
  );
}

interface IRowProps extends IEndpointProps {
  one: Deployment;
  index: number;
  summary: ISummary | null;
  onLog: (deployment: string) => void;
}

function DeploymentRow(props: IRowProps): JSX.Element {
  const { live, one, summary, trans, readonly, run } = props;
  const { status } = one;
  const failed = status.phase === 'Failed' || status.proof?.passed === false;
  const [opened, setOpened] = useState<boolean | null>(null);
  const open = opened ?? failed;
  const share = live.traffic[one.name] ?? 0;
  const proof = proofText(status.proof, trans);
  const stats = live.stats.latest?.deployments[one.name];
  const label = open
    ? trans.__('Hide details of %1', one.name)
    : trans.__('Details of %1', one.name);
  const Caret = open ? caretDownIcon : caretRightIcon;
  return (
    <>
      <tr data-testid="mlops-deployment-row" data-name={one.name} data-phase={status.phase}>
        <th scope="row">
          <span className="jp-Mlops-deploymentCell">
            <button
              type="button"
              className="jp-Mlops-caret"
              title={label}
              aria-label={label}
              aria-expanded={open}
              onClick={() => setOpened(!open)}
            >
              <Caret.react tag="span" className="jp-Mlops-icon" />
            </button>
            <ShareMark index={props.index} />
            {one.name}
          </span>
        </th>
        <td>
          <Status phase={status.phase} trans={trans} />
        </td>
        <td title={modelText(one, trans)}>{modelText(one, trans)}</td>
        <td className="jp-mod-number">{share} %</td>
        <td className="jp-mod-number">
          {status.instances ? `${status.instances.ready}/${status.instances.wanted}` : '–'}
        </td>
        <td title={status.proof?.message || proof}>{proof || '–'}</td>
        <td className="jp-mod-number">{summary ? formatCount(summary.perMinute) : '–'}</td>
        <td className="jp-mod-number">{formatShare(summary?.errorRate)}</td>
        <td className="jp-mod-number">{formatMs(summary?.p95)}</td>
        <td>
          <span className="jp-Mlops-cellActions">
            <button
              type="button"
              className="jp-Mlops-more"
              data-testid="mlops-deployment-log"
              onClick={() => props.onLog(one.name)}
            >
              {trans.__('Log')}
            </button>
            <IconButton
              icon={deleteIcon}
              label={
                share
                  ? trans.__('It has traffic: move that first')
                  : trans.__('Delete deployment %1', one.name)
              }
              disabled={readonly || share > 0 || status.phase === 'Deleting'}
              testId="mlops-deployment-delete"
              onClick={() =>
                void run(CommandIDs.deleteDeployment, { name: live.name, deployment: one.name })
              }
            />
          </span>
        </td>
      </tr>
      {open && (
        <tr className="jp-Mlops-detailRow">
          <td colSpan={10}>
            {status.phase === 'Failed' ? (
              <Failure one={one} onLog={() => props.onLog(one.name)} trans={trans} />
            ) : (
              status.reason && <div className="jp-Mlops-muted">{status.reason}</div>
            )}
            <Facts one={one} stats={stats} trans={trans} />
            {status.proof && <Proof proof={status.proof} trans={trans} />}
          </td>
        </tr>
      )}
    </>
  );
}

export function Deployments(
  props: IEndpointProps & { onLog: (deployment: string) => void }
): JSX.Element {
  const { live, trans } = props;
  if (!live.deployments.length) {
    return (
      <div className="jp-Mlops-empty" data-testid="mlops-deployments-empty">
        <p>
          {trans.__('Nothing serves yet. Put a registered model, or one in the notebook, here:')}
        </p>
        <NextStep code={`%mlops deploy my-model@champion -e ${live.name}`} trans={trans} />
      </div>
    );
  }
  return (
    <div className="jp-Mlops-tableArea">
      <table className="jp-Mlops-table jp-Mlops-deploymentTable" data-testid="mlops-deployments">
        <thead>
          <tr>
            <th scope="col">{trans.__('Deployment')}</th>
            <th scope="col">{trans.__('State')}</th>
            <th scope="col">{trans.__('Model')}</th>
            <th scope="col">{trans.__('Traffic')}</th>
            <th scope="col" title={trans.__('Instances that answer, of those wanted')}>
              {trans.__('Instances')}
            </th>
            <th scope="col">{trans.__('Proof')}</th>
            <th scope="col">{trans.__('Requests/min')}</th>
            <th scope="col" title={trans.__('Of the last minute, without those of callers')}>
              {trans.__('Errors')}
            </th>
            <th scope="col">{trans.__('p95')}</th>
            <td />
          </tr>
        </thead>
        <tbody>
          {live.deployments.map((one, i) => (
            <DeploymentRow
              {...props}
              key={one.name}
              one={one}
              index={i}
              summary={live.stats.summary(one.name)}
            />
          ))}
        </tbody>
      </table>
    </div>
  );
}
