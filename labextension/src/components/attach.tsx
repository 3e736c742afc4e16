/** A cluster is attached: what it is called and where it is, asked before it is saved. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import { toApiError } from '../listmodel';
import type { WorkspaceModel } from '../model';
import type { IClusterSpec, ISurvey } from '../resources';
import { Message } from './common';
import { errorText } from './list';
import { SurveyView } from './survey';

interface IValues {
  name: string;
  context: string;
  namespace: string;
  image: string;
  queue: string;
  create: boolean;
}

const EMPTY: IValues = {
  name: '',
  context: '',
  namespace: '',
  image: '',
  queue: '',
  create: false
};
const NAME = /^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$/;
const NAMESPACE = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

export function specOf(values: IValues): IClusterSpec {
  const training = {
    image: values.image.trim(),
    ...(values.queue.trim() ? { queue: values.queue.trim() } : {})
  };
  return {
    type: 'kubernetes',
    context: values.context.trim(),
    namespace: values.namespace.trim(),
    training
  };
}

export function AttachForm(props: {
  model: WorkspaceModel;
  trans: TranslationBundle;
  onClose: () => void;
}): JSX.Element {
  const { model, trans } = props;
  const [values, setValues] = useState(EMPTY);
  const [busy, setBusy] = useState('');
  const [error, setError] = useState('');
  /** What the cluster said of exactly these values. */
  const [checked, setChecked] = useState<{ of: string; survey: ISurvey } | null>(null);
  const name = values.name.trim();
  const taken = model.computes.items.some(item => item.name === name);
  const wrong = {
    name: taken
      ? trans.__('There is a compute of that name')
      : name && !NAME.test(name)
        ? trans.__('Lower-case letters, digits and dashes')
        : '',
    namespace:
      values.namespace.trim() && !NAMESPACE.test(values.namespace.trim())
        ? trans.__('Lower-case letters, digits and dashes')
        : ''
  };
  const key = JSON.stringify([name, specOf(values)]);
  const complete = !!(name && values.namespace.trim() && values.image.trim());
  const askable = complete && !wrong.name && !wrong.namespace && !busy;
  const survey = checked?.of === key ? checked.survey : null;
  const fits = survey !== null && !survey.problems.some(problem => problem.fatal);

  const attempt = async (what: 'check' | 'attach', action: () => Promise<void>) => {
    setBusy(what);
    setError('');
    try {
      await action();
    } catch (reason) {
      setError(errorText(toApiError(reason), trans));
    }
    setBusy('');
  };
  const check = () =>
    attempt('check', async () => {
      setChecked(null);
      const found = await model.api.checkCompute(name, specOf(values), values.create);
      setChecked({ of: key, survey: found });
    });
  const attach = () =>
    attempt('attach', async () => {
      await model.api.putCompute(name, specOf(values));
      await model.computes.refresh();
      props.onClose();
    });

  const field = (
    id: 'name' | 'context' | 'namespace' | 'image' | 'queue',
    label: string,
    placeholder: string,
    problem = ''
  ) => (
    <label className="jp-Mlops-formField">
      <span>{label}</span>
      <input
        type="text"
        value={values[id]}
        placeholder={placeholder}
        spellCheck={false}
        autoComplete="off"
        aria-invalid={problem ? true : undefined}
        data-testid={`mlops-attach-${id}`}
        onChange={event => setValues({ ...values, [id]: event.target.value })}
      />
      {problem && <span className="jp-Mlops-fieldError">{problem}</span>}
    </label>
  );
  return (
    <form
      className="jp-Mlops-form"
      aria-label={trans.__('Attach a cluster')}
      data-testid="mlops-attach"
      onSubmit={event => {
        event.preventDefault();
        if (askable) {
          void (fits ? attach() : check());
        }
      }}
    >
      {field('name', trans.__('Name for its users'), 'gpu', wrong.name)}
      {field('context', trans.__('Context of the kubeconfig'), trans.__('its current one'))}
      {field('namespace', trans.__('Namespace'), 'team-a', wrong.namespace)}
      <label className="jp-Mlops-inline">
        <input
          type="checkbox"
          checked={values.create}
          data-testid="mlops-attach-create"
          onChange={event => setValues({ ...values, create: event.target.checked })}
        />
        {trans.__('Make the namespace when it is not there')}
      </label>
      {field('image', trans.__('Image of jobs'), 'python:3.11-slim')}
      {field('queue', trans.__('Queue of Kueue'), trans.__('none'))}
      {error && (
        <Message tone="error" title={trans.__('It did not work')} testId="mlops-attach-error">
          {error}
        </Message>
      )}
      {survey && (
        <>
          {fits && (
            <div className="jp-Mlops-good" role="status" data-testid="mlops-attach-fits">
              {trans.__('It can be attached. Nothing is saved yet.')}
            </div>
          )}
          <SurveyView survey={survey} trans={trans} />
        </>
      )}
      <div className="jp-Mlops-formActions">
        <button
          type="button"
          className="jp-Mlops-button"
          disabled={!askable}
          data-testid="mlops-attach-check"
          onClick={() => void check()}
        >
          {busy === 'check' ? trans.__('Asking the cluster…') : trans.__('Check')}
        </button>
        <button
          type="button"
          className="jp-Mlops-button jp-mod-primary"
          disabled={!askable || !fits}
          title={fits ? '' : trans.__('The check comes first')}
          data-testid="mlops-attach-save"
          onClick={() => void attach()}
        >
          {trans.__('Attach')}
        </button>
        <span className="jp-Mlops-spring" />
        <button type="button" className="jp-Mlops-more" onClick={props.onClose}>
          {trans.__('Cancel')}
        </button>
      </div>
    </form>
  );
}
