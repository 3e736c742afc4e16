/** The computes of the panel: this machine and attached clusters, what is free there, and a form to attach one. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useState } from 'react';

import type { ApiError, Compute } from '../api';
import { formatBytes } from '../format';
import { toApiError } from '../listmodel';
import type { WorkspaceModel } from '../model';
import type { ISurvey } from '../resources';
import { AttachForm } from './attach';
import { useSignal } from './common';
import { List, LoadError, Row, Skeleton } from './list';
import type { ISectionProps } from './section';
import { phaseText, StatusIcon } from './status';
import { SurveyView } from './survey';

/** Milliseconds between two looks at what is free, while somebody sees it. */
const INTERVAL = 15_000;

/** What a cluster says of itself now. */
function Cluster(props: {
  name: string;
  model: WorkspaceModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { name, model, trans } = props;
  const [survey, setSurvey] = useState<ISurvey | null>(null);
  const [error, setError] = useState<ApiError | null>(null);
  const [tries, retry] = useState(0);
  useEffect(() => {
    let gone = false;
    const ask = async () => {
      try {
        const found = await model.api.survey(name);
        if (!gone) {
          setSurvey(found);
          setError(null);
        }
      } catch (reason) {
        if (!gone) {
          setError(toApiError(reason));
        }
      }
    };
    void ask();
    const timer = window.setInterval(() => {
      if (!document.hidden) {
        void ask();
      }
    }, INTERVAL);
    return () => {
      gone = true;
      window.clearInterval(timer);
    };
  }, [model, name, tries]);
  if (error) {
    return <LoadError error={error} retry={() => retry(tries + 1)} trans={trans} />;
  }
  return survey ? (
    <SurveyView survey={survey} trans={trans} />
  ) : (
    <Skeleton label={trans.__('Asking the cluster…')} />
  );
}

function factsOf(item: Compute, trans: TranslationBundle): string[] {
  const { spec, status } = item;
  if (spec.type === 'kubernetes') {
    const purposes = [
      spec.training?.image ? trans.__('training') : '',
      spec.serving?.image ? trans.__('serving') : ''
    ].filter(Boolean);
    return [trans.__('Kubernetes'), spec.namespace ?? '', purposes.join(', ')].filter(Boolean);
  }
  const gpus = status.gpus ?? [];
  return [
    trans._n('%1 CPU', '%1 CPUs', status.cpus),
    formatBytes(status.memory_bytes),
    gpus.length ? gpus.join(', ') : trans.__('no GPU')
  ];
}

function ComputeRow(
  props: ISectionProps & { item: Compute; first: boolean; open: boolean; toggle: () => void }
): JSX.Element {
  const { item, model, trans, open, toggle } = props;
  const { status } = item;
  const cluster = item.spec.type === 'kubernetes';
  const facts = factsOf(item, trans);
  const waiting = status.queued_jobs ?? 0;
  const busy = [
    status.running_jobs ? trans._n('%1 running job', '%1 running jobs', status.running_jobs) : '',
    waiting ? trans.__('%1 waiting', waiting) : ''
  ].filter(Boolean);
  return (
    <Row
      kind="compute"
      name={item.name}
      first={props.first}
      label={[item.name, phaseText(status.phase, trans), ...facts].join(', ')}
      icon={<StatusIcon phase={status.phase} />}
      title={item.name}
      aside={busy.join(', ') || trans.__('idle')}
      detail={
        <>
          <span className="jp-Mlops-word">{phaseText(status.phase, trans)}</span>
          {facts.map(fact => (
            <span key={fact}>{fact}</span>
          ))}
          {status.reason && (
            <span className="jp-Mlops-reason" title={status.reason}>
              {status.reason}
            </span>
          )}
        </>
      }
      onOpen={cluster ? toggle : undefined}
      expansion={
        cluster
          ? {
              open,
              label: open ? trans.__('Hide what is free') : trans.__('Show what is free'),
              toggle
            }
          : undefined
      }
    >
      {open && <Cluster name={item.name} model={model} trans={trans} />}
    </Row>
  );
}

export function Computes(props: ISectionProps): JSX.Element {
  const { model, trans } = props;
  const [attaching, setAttaching] = useState(false);
  const [open, setOpen] = useState<ReadonlySet<string>>(new Set());
  useSignal(model.changed);
  const roomy =
    (attaching && !model.readonly) || model.computes.items.some(item => open.has(item.name));
  const { needRoom } = props;
  useEffect(() => needRoom?.(roomy), [roomy]);
  const toggle = (name: string) => {
    const next = new Set(open);
    if (!next.delete(name)) {
      next.add(name);
    }
    setOpen(next);
  };
  return (
    <List<Compute>
      model={model.computes}
      label={trans.__('Compute')}
      trans={trans}
      offline={model.link !== 'up'}
      keyOf={item => item.name}
      empty={{ text: trans.__('No compute is known.') }}
      controls={
        !model.readonly && !attaching ? (
          <button
            type="button"
            className="jp-Mlops-more"
            data-testid="mlops-attach-open"
            onClick={() => setAttaching(true)}
          >
            {trans.__('Attach a cluster…')}
          </button>
        ) : undefined
      }
      banner={
        attaching && !model.readonly ? (
          <AttachForm model={model} trans={trans} onClose={() => setAttaching(false)} />
        ) : undefined
      }
    >
      {(item, index) => (
        <ComputeRow
          {...props}
          item={item}
          first={index === 0}
          open={open.has(item.name)}
          toggle={() => toggle(item.name)}
        />
      )}
    </List>
  );
}
