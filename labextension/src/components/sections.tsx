/** The lists of the panel. */
import { deleteIcon, launchIcon } from '@jupyterlab/ui-components';
import React from 'react';

import type { IModel } from '../api';
import { relativeTime } from '../format';
import { CommandIDs } from '../ids';
import { mlopsIcon } from '../icons';
import type { SectionName } from '../sections';
import { IconButton, useNow, useSignal } from './common';
import { Computes } from './computes';
import { Endpoints } from './endpoints';
import { Jobs } from './jobs';
import { List, Row } from './list';
import { Runs } from './runs';
import { CLOCK, ISectionProps } from './section';

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

export const SECTION_VIEWS: Record<SectionName, (props: ISectionProps) => JSX.Element> = {
  runs: Runs,
  jobs: Jobs,
  models: Models,
  endpoints: Endpoints,
  computes: Computes
};
