/** The endpoints of the panel: their state and traffic; unfolded, their deployments and how these do. */
import { codeIcon, deleteIcon, launchIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useState } from 'react';

import type { Deployment, ICanaryStatus, IServed } from '../api';
import { canaryLeft, isNews } from '../canary';
import { formatCount, formatDuration, formatMs, formatShare } from '../format';
import { CommandIDs } from '../ids';
import type { ISummary } from '../rates';
import { effective, trafficText } from '../traffic';
import { CopyButton, IconButton, useNow, useSignal } from './common';
import { modelText } from './deployments';
import { List, Row } from './list';
import { proofText } from './proof';
import { CLOCK, ISectionProps } from './section';
import { ShareBar, ShareMark } from './sharebar';
import { phaseText, Status, StatusIcon } from './status';

/** What goes on with a canary, in a few words. */
export function canaryText(
  canary: ICanaryStatus,
  left: ReturnType<typeof canaryLeft>,
  trans: TranslationBundle
): string {
  if (canary.phase === 'RolledBack') {
    // Where a person did it, the reason says that and no more.
    if (/^rolled back/i.test(canary.reason)) {
      return trans.__('%1 %2', canary.deployment, canary.reason);
    }
    return canary.reason
      ? trans.__('rolled back: %1', canary.reason)
      : trans.__('rolled back from %1', canary.deployment);
  }
  const what = trans.__('canary %1 %2 %', canary.deployment, canary.percent);
  if (!left) {
    return what;
  }
  const wait = left.ms
    ? trans.__('%1 left', formatDuration(left.ms))
    : trans._n('waits for %1 request', 'waits for %1 requests', left.requests);
  return [what, wait].join(' · ');
}

function CanaryBadge({ item, trans }: { item: IServed; trans: TranslationBundle }) {
  const canary = item.status.canary;
  const running = canary?.phase === 'Running';
  const now = useNow(running ? 1000 : 0);
  if (!canary || !isNews(canary, now)) {
    return null;
  }
  const text = canaryText(canary, canaryLeft(canary, item.spec.canary, now), trans);
  return (
    <div
      className={`jp-Mlops-canaryBadge${running ? '' : ' jp-mod-bad'}`}
      title={text}
      data-testid="mlops-canary-badge"
    >
      <StatusIcon phase={canary.phase} />
      <span>{text}</span>
    </div>
  );
}

/** Requests, errors and latency of the last minute in one line. */
export function summaryText(summary: ISummary | null, trans: TranslationBundle): string {
  if (!summary) {
    return '';
  }
  if (!summary.perMinute) {
    return trans.__('no requests');
  }
  return [
    trans.__('%1/min', formatCount(summary.perMinute)),
    trans.__('%1 errors', formatShare(summary.errorRate)),
    trans.__('p95 %1', formatMs(summary.p95))
  ].join(' · ');
}

function DeploymentLine(props: {
  one: Deployment;
  index: number;
  share: number;
  summary: ISummary | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { one, share, summary, trans } = props;
  const { status } = one;
  const served = modelText(one, trans);
  const instances = status.instances;
  const proof = proofText(status.proof, trans);
  const numbers = summaryText(summary, trans);
  return (
    <div className="jp-Mlops-deployment" data-testid="mlops-deployment" data-name={one.name}>
      <div className="jp-Mlops-deploymentLine">
        <ShareMark index={props.index} />
        <span className="jp-Mlops-deploymentName" title={one.name}>
          {one.name}
        </span>
        <span className="jp-Mlops-muted" title={served}>
          {served}
        </span>
        <span title={trans.__('Share of the traffic')}>{share} %</span>
      </div>
      <div className="jp-Mlops-deploymentLine jp-mod-wrap jp-Mlops-muted">
        <Status phase={status.phase} trans={trans} />
        {instances && instances.wanted > 0 && (
          <span title={trans.__('Instances that answer, of those wanted')}>
            {instances.ready}/{instances.wanted}
          </span>
        )}
        {status.phase === 'Ready' && numbers && <span>{numbers}</span>}
        {status.phase === 'Ready' && !numbers && proof && <span title={proof}>{proof}</span>}
      </div>
      {status.phase !== 'Ready' && status.reason && (
        <div className="jp-Mlops-deploymentReason" title={status.reason}>
          {status.reason}
        </div>
      )}
    </div>
  );
}

function EndpointRow(
  props: ISectionProps & { item: IServed; first: boolean; open: boolean; toggle: () => void }
): JSX.Element {
  const { model, trans, execute, item, open } = props;
  const { name, status, deployments } = item;
  const args = { name };
  useEffect(() => {
    if (!open) {
      return undefined;
    }
    const watch = model.stats.watch(name);
    return () => watch.dispose();
  }, [model, name, open]);
  const remove = model.readonly ? undefined : () => execute(CommandIDs.deleteEndpoint, args);
  const show = () => execute(CommandIDs.openEndpoint, args);
  const traffic = effective(item);
  const word = phaseText(status.phase, trans);
  const shares = trafficText(traffic);
  const names = deployments.map(one => one.name);
  const failed = deployments.find(one => one.status.phase === 'Failed');
  const reason =
    (status.phase !== 'Ready' && status.reason) ||
    (failed ? trans.__('%1 failed: %2', failed.name, failed.status.reason) : '');
  const window = model.stats.of(name);
  return (
    <Row
      kind="endpoint"
      name={name}
      first={props.first}
      label={[name, word, shares, reason].filter(Boolean).join(', ')}
      icon={<StatusIcon phase={status.phase} />}
      title={name}
      onOpen={show}
      onDelete={remove}
      expansion={
        deployments.length || status.scoring_uri
          ? {
              open,
              label: open ? trans.__('Hide the deployments') : trans.__('Show the deployments'),
              toggle: props.toggle
            }
          : undefined
      }
      detail={
        <>
          <span className="jp-Mlops-word" aria-live="polite">
            {word}
          </span>
          {reason ? (
            <span className="jp-Mlops-reason" title={reason}>
              {reason}
            </span>
          ) : (
            <span className="jp-Mlops-muted" title={shares}>
              {shares || trans.__('no traffic')}
            </span>
          )}
        </>
      }
      actions={
        <>
          <IconButton
            icon={launchIcon}
            label={trans.__('Open the endpoint')}
            onClick={show}
            testId="mlops-open"
          />
          <IconButton
            icon={codeIcon}
            label={trans.__('Copy a call in Python')}
            onClick={() => execute(CommandIDs.copyCall, { name, language: 'python' })}
            testId="mlops-copy-call"
          />
          <IconButton
            icon={deleteIcon}
            label={trans.__('Delete the endpoint')}
            disabled={!remove}
            onClick={() => remove?.()}
            testId="mlops-delete"
          />
        </>
      }
    >
      {deployments.length > 1 && <ShareBar traffic={traffic} names={names} trans={trans} />}
      <CanaryBadge item={item} trans={trans} />
      {open && (
        <div className="jp-Mlops-unfolded">
          {deployments.map((one, i) => (
            <DeploymentLine
              key={one.name}
              one={one}
              index={i}
              share={traffic[one.name] ?? 0}
              summary={window?.summary(one.name) ?? null}
              trans={trans}
            />
          ))}
          {status.scoring_uri && (
            <div className="jp-Mlops-url">
              <code title={status.scoring_uri}>{status.scoring_uri}</code>
              <CopyButton
                text={status.scoring_uri}
                label={trans.__('Copy the URL')}
                trans={trans}
                testId="mlops-copy-url"
              />
            </div>
          )}
        </div>
      )}
    </Row>
  );
}

export function Endpoints(props: ISectionProps): JSX.Element {
  const { model, trans } = props;
  useSignal(model.changed);
  useSignal(model.stats.changed);
  useNow(CLOCK);
  const [opened, setOpened] = useState<readonly string[]>([]);
  return (
    <List<IServed>
      model={model.endpoints}
      label={trans.__('Endpoints')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{
        text: trans.__('No endpoints yet. Put a registered model behind a URL:'),
        code: '%mlops deploy my-model@champion'
      }}
    >
      {(item, index) => (
        <EndpointRow
          {...props}
          item={item}
          first={index === 0}
          open={opened.includes(item.name)}
          toggle={() =>
            setOpened(
              opened.includes(item.name)
                ? opened.filter(one => one !== item.name)
                : [...opened, item.name]
            )
          }
        />
      )}
    </List>
  );
}
