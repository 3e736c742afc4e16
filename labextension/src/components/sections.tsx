/** The lists of the panel. */
import { codeIcon, deleteIcon, launchIcon } from '@jupyterlab/ui-components';
import React from 'react';

import { Compute, IModel, IServed } from '../api';
import { formatBytes, relativeTime } from '../format';
import { CommandIDs } from '../ids';
import { mlopsIcon } from '../icons';
import type { SectionName } from '../model';
import { CopyButton, IconButton, useNow, useSignal } from './common';
import { Jobs } from './jobs';
import { List, Row } from './list';
import { Runs } from './runs';
import { CLOCK, ISectionProps } from './section';
import { phaseText, Status, StatusIcon } from './status';

function Models({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  const now = useNow(CLOCK);
  return (
    <List<IModel>
      model={model.models}
      label={trans.__('Models')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{
        text: trans.__('No models yet. Register the one of your best run:'),
        code: '%mlops register best my-model --alias champion'
      }}
    >
      {(item, index) => {
        const args = { name: item.name };
        const open = () => execute(CommandIDs.openModel, args);
        const remove = model.readonly ? undefined : () => execute(CommandIDs.deleteModel, args);
        const time = relativeTime(item.updated_at, now, trans);
        const version = item.latest_version
          ? trans.__('version %1', item.latest_version)
          : trans.__('no version');
        return (
          <Row
            kind="model"
            name={item.name}
            first={index === 0}
            label={[item.name, version, time].join(', ')}
            icon={<mlopsIcon.react tag="span" className="jp-Mlops-icon" />}
            title={item.name}
            aside={time}
            detail={
              <>
                <span className="jp-Mlops-word">{version}</span>
                {Object.entries(item.aliases ?? {}).map(([alias, of]) => (
                  <span key={alias} className="jp-Mlops-alias" title={trans.__('version %1', of)}>
                    @{alias} → {of}
                  </span>
                ))}
                {item.description && <span className="jp-Mlops-muted">{item.description}</span>}
              </>
            }
            onOpen={open}
            onDelete={remove}
            actions={
              <>
                <IconButton
                  icon={launchIcon}
                  label={trans.__('Open in MLflow')}
                  onClick={open}
                  testId="mlops-open"
                />
                <IconButton
                  icon={deleteIcon}
                  label={trans.__('Delete the model')}
                  disabled={!remove}
                  onClick={() => remove?.()}
                  testId="mlops-delete"
                />
              </>
            }
          />
        );
      }}
    </List>
  );
}

function Endpoints({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
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
      {(item, index) => {
        const { name, status } = item;
        const remove = model.readonly
          ? undefined
          : () => execute(CommandIDs.deleteEndpoint, { name });
        const word = phaseText(status.phase, trans);
        return (
          <Row
            kind="endpoint"
            name={name}
            first={index === 0}
            label={[name, word, status.reason].filter(Boolean).join(', ')}
            icon={<StatusIcon phase={status.phase} />}
            title={name}
            onDelete={remove}
            detail={
              <>
                <span className="jp-Mlops-word" aria-live="polite">
                  {word}
                </span>
                {status.phase !== 'Ready' && status.reason && (
                  <span className="jp-Mlops-reason" title={status.reason}>
                    {status.reason}
                  </span>
                )}
              </>
            }
            actions={
              <>
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
            {item.deployments.map(one => {
              const share = item.spec.traffic?.[one.name] ?? 0;
              const served = one.status.model_name || one.spec.model;
              return (
                <div key={one.name} className="jp-Mlops-deployment" title={one.status.reason}>
                  <Status phase={one.status.phase} trans={trans} />
                  <span>{one.name}</span>
                  <span className="jp-Mlops-muted">
                    {one.status.model_version ? `${served} v${one.status.model_version}` : served}
                  </span>
                  <span title={trans.__('Share of the traffic')}>{share} %</span>
                </div>
              );
            })}
          </Row>
        );
      }}
    </List>
  );
}

function Computes({ model, trans }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  return (
    <List<Compute>
      model={model.computes}
      label={trans.__('Compute')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{ text: trans.__('No compute is known.') }}
    >
      {(item, index) => {
        const { status } = item;
        const gpus = status.gpus ?? [];
        const facts = [
          trans._n('%1 CPU', '%1 CPUs', status.cpus),
          formatBytes(status.memory_bytes),
          gpus.length ? gpus.join(', ') : trans.__('no GPU')
        ];
        return (
          <Row
            kind="compute"
            name={item.name}
            first={index === 0}
            label={[item.name, phaseText(status.phase, trans), ...facts].join(', ')}
            icon={<StatusIcon phase={status.phase} />}
            title={item.name}
            aside={
              status.running_jobs
                ? trans._n('%1 running job', '%1 running jobs', status.running_jobs)
                : trans.__('idle')
            }
            detail={
              <>
                <span className="jp-Mlops-word">{phaseText(status.phase, trans)}</span>
                {facts.map(fact => (
                  <span key={fact}>{fact}</span>
                ))}
              </>
            }
          />
        );
      }}
    </List>
  );
}

export const SECTION_VIEWS: Record<SectionName, (props: ISectionProps) => JSX.Element> = {
  runs: Runs,
  jobs: Jobs,
  models: Models,
  endpoints: Endpoints,
  computes: Computes
};
