/** The runs of the panel; two or more can be selected and compared. */
import { deleteIcon, HTMLSelect, launchIcon } from '@jupyterlab/ui-components';
import React, { useState } from 'react';

import type { IRun } from '../api';
import { formatNumber, keyMetrics, percent, relativeTime } from '../format';
import { CommandIDs } from '../ids';
import { MAX_RUNS } from '../runset';
import { CopyButton, IconButton, ProgressBar, useNow, useSignal } from './common';
import { List, Row } from './list';
import { CLOCK, ISectionProps } from './section';
import { phaseText, StatusIcon } from './status';

export function Runs({ model, trans, execute }: ISectionProps): JSX.Element {
  useSignal(model.changed);
  const now = useNow(CLOCK);
  const readonly = model.readonly;
  const [selected, setSelected] = useState<readonly string[]>([]);
  const toggle = (id: string) =>
    setSelected(selected.includes(id) ? selected.filter(one => one !== id) : [...selected, id]);
  // What was deleted, or filtered away on the server, cannot be seen and so is not compared.
  const chosen = selected.filter(id => model.runs.items.some(run => run.run_id === id));
  const full = chosen.length >= MAX_RUNS;
  const experiments = model.experiments.map(item => item.name);
  const choices =
    model.experiment && !experiments.includes(model.experiment)
      ? [model.experiment, ...experiments]
      : experiments;
  return (
    <List<IRun>
      model={model.runs}
      label={trans.__('Runs')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={run => run.run_id}
      words={run =>
        [run.name, run.experiment_name, run.job, run.run_id, phaseText(run.status, trans)].join(' ')
      }
      controls={
        choices.length > 1 && (
          <HTMLSelect
            value={model.experiment}
            aria-label={trans.__('Experiment')}
            data-testid="mlops-experiment"
            onChange={event => {
              model.experiment = event.target.value;
            }}
          >
            <option value="">{trans.__('All experiments')}</option>
            {choices.map(name => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </HTMLSelect>
        )
      }
      banner={
        chosen.length > 0 && (
          <div className="jp-Mlops-selection" role="status" data-testid="mlops-selection">
            <span>{trans._n('%1 run selected', '%1 runs selected', chosen.length)}</span>
            <button
              type="button"
              className="jp-Mlops-button"
              disabled={chosen.length < 2}
              title={trans.__('Draw the curves of the selected runs over each other')}
              data-testid="mlops-compare"
              onClick={() => execute(CommandIDs.compareRuns, { ids: [...chosen] })}
            >
              {trans.__('Compare')}
            </button>
            <button type="button" className="jp-Mlops-more" onClick={() => setSelected([])}>
              {trans.__('Clear')}
            </button>
          </div>
        )
      }
      empty={{
        text: trans.__('No runs yet. Turn on tracking in a notebook, then train as usual:'),
        code: 'import mlflow; mlflow.autolog()'
      }}
    >
      {(run, index) => {
        const args = { id: run.run_id, experiment: run.experiment_id, name: run.name };
        const open = () => execute(CommandIDs.openRun, args);
        const remove = readonly ? undefined : () => execute(CommandIDs.deleteRun, args);
        const metrics = keyMetrics(run.metrics ?? {}, model.settings.keyMetrics, 2);
        const time = relativeTime(run.start_time, now, trans);
        const done = percent(run.progress);
        return (
          <Row
            kind="run"
            name={run.run_id}
            first={index === 0}
            label={[run.name, phaseText(run.status, trans), run.experiment_name, time].join(', ')}
            icon={<StatusIcon phase={run.status} />}
            title={run.name || run.run_id.slice(0, 8)}
            aside={time}
            detail={
              <>
                <span className="jp-Mlops-word">{phaseText(run.status, trans)}</span>
                {metrics.map(([key, value]) => (
                  <span key={key} className="jp-Mlops-metric" title={`${key} = ${value}`}>
                    {key} <b>{formatNumber(value)}</b>
                  </span>
                ))}
                <span className="jp-Mlops-muted" title={run.experiment_name}>
                  {run.experiment_name}
                </span>
              </>
            }
            onOpen={open}
            onDelete={remove}
            selection={{
              selected: chosen.includes(run.run_id),
              disabled: full && !chosen.includes(run.run_id),
              label: trans.__('Select %1 to compare', run.name || run.run_id.slice(0, 8)),
              toggle: () => toggle(run.run_id)
            }}
            actions={
              <>
                <IconButton
                  icon={launchIcon}
                  label={trans.__('Open in MLflow')}
                  onClick={open}
                  testId="mlops-open"
                />
                <CopyButton text={run.run_id} label={trans.__('Copy the run id')} trans={trans} />
                <IconButton
                  icon={deleteIcon}
                  label={trans.__('Delete the run')}
                  disabled={!remove}
                  onClick={() => remove?.()}
                  testId="mlops-delete"
                />
              </>
            }
          >
            {run.status === 'RUNNING' && done !== null && (
              <ProgressBar value={done} label={trans.__('Progress')} />
            )}
          </Row>
        );
      }}
    </List>
  );
}
