/** The logs of an endpoint's deployments, one instance at a time. */
import React, { useEffect, useState } from 'react';

import { DeploymentLog } from '../deploymentlog';
import { useSignal } from './common';
import type { IEndpointProps } from './endpointprops';
import { Log } from './log';

function Instance(
  props: IEndpointProps & { log: DeploymentLog; instances: number; running: boolean }
): JSX.Element {
  const { log, trans } = props;
  useSignal(log.changed);
  return (
    <div className="jp-Mlops-live jp-Mlops-deploymentLog">
      {log.problem && (
        <div className="jp-Mlops-notice" role="status">
          {log.problem}
        </div>
      )}
      <Log
        job={log}
        processes={props.instances}
        running={props.running}
        nameOf={instance => trans.__('instance %1', instance)}
        trans={trans}
      />
    </div>
  );
}

export function DeploymentLogs(
  props: IEndpointProps & {
    /** The deployment whose log is shown. */
    chosen: string;
    choose: (deployment: string) => void;
    isVisible: () => boolean;
  }
): JSX.Element {
  const { live, trans, isVisible } = props;
  const names = live.deployments.map(one => one.name);
  const byShare = [...names].sort((a, b) => (live.traffic[b] ?? 0) - (live.traffic[a] ?? 0));
  const name = names.includes(props.chosen) ? props.chosen : (byShare[0] ?? '');
  const [log, setLog] = useState<DeploymentLog | null>(null);
  useEffect(() => {
    const next = name ? new DeploymentLog(live.api, live.name, name, isVisible) : null;
    setLog(next);
    return () => next?.dispose();
  }, [live, name, isVisible]);
  const deployment = live.deployments.find(one => one.name === name);
  if (!deployment || !log) {
    return (
      <div className="jp-Mlops-empty">
        <p>{trans.__('There is no deployment whose log could be read.')}</p>
      </div>
    );
  }
  const { wanted = 1, ready = 1 } = deployment.status.instances ?? {};
  return (
    <div className="jp-Mlops-logs">
      <label className="jp-Mlops-inline">
        <span className="jp-Mlops-muted">{trans.__('Deployment')}</span>
        <select
          className="jp-Mlops-select"
          value={name}
          data-testid="mlops-log-deployment"
          onChange={event => props.choose(event.target.value)}
        >
          {names.map(one => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
      </label>
      <Instance
        {...props}
        key={name}
        log={log}
        instances={Math.max(1, wanted, ready)}
        running={deployment.status.phase !== 'Failed'}
      />
    </div>
  );
}
