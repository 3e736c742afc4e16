/** What a cluster answered: what stands in the way, what there is, and what is free of it. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { formatBytes } from '../format';
import type { ISurvey } from '../resources';
import { waysOf } from '../ways';
import { CopyButton, Message } from './common';

/** The order of what everybody asks for; devices follow. */
const FIRST = ['cpus', 'memory_bytes'];

function wordOf(resource: string, trans: TranslationBundle): string {
  switch (resource) {
    case 'cpus':
      return trans.__('CPUs');
    case 'memory_bytes':
      return trans.__('Memory');
    default:
      return resource;
  }
}

export function amountText(resource: string, value: number): string {
  return resource === 'memory_bytes' ? formatBytes(value) : String(Math.round(value * 100) / 100);
}

/** What there is of each resource and how much of it is taken, as bars. */
export function Room(props: { survey: ISurvey; trans: TranslationBundle }): JSX.Element | null {
  const { survey, trans } = props;
  const { capacity, free } = survey;
  if (!capacity) {
    return (
      <p className="jp-Mlops-muted" data-testid="mlops-room">
        {trans.__('The credentials may not see what there is in the cluster.')}
      </p>
    );
  }
  const rank = (name: string) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  const names = Object.keys(capacity)
    .filter(name => capacity[name] > 0)
    .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  return (
    <dl className="jp-Mlops-room" data-testid="mlops-room">
      {names.map(name => {
        const all = capacity[name];
        const left = free ? Math.max(0, free[name] ?? 0) : null;
        const share = left === null ? 0 : Math.min(100, Math.max(0, (100 * (all - left)) / all));
        const said =
          left === null
            ? amountText(name, all)
            : trans.__('%1 of %2 free', amountText(name, left), amountText(name, all));
        return (
          <React.Fragment key={name}>
            <dt>{wordOf(name, trans)}</dt>
            <dd>
              <span>{said}</span>
              {left !== null && (
                <span
                  className="jp-Mlops-meter"
                  role="meter"
                  aria-label={trans.__('%1 in use', wordOf(name, trans))}
                  aria-valuemin={0}
                  aria-valuemax={100}
                  aria-valuenow={Math.round(share)}
                >
                  <span style={{ width: `${share}%` }} />
                </span>
              )}
            </dd>
          </React.Fragment>
        );
      })}
    </dl>
  );
}

/** Which ways data of jobs take. */
function Ways(props: { survey: ISurvey; trans: TranslationBundle }): JSX.Element | null {
  const ways = waysOf(props.survey, props.trans);
  return ways.length ? (
    <dl className="jp-Mlops-ways" data-testid="mlops-ways">
      {ways.map(([name, text]) => (
        <React.Fragment key={name}>
          <dt>{name}</dt>
          <dd>{text}</dd>
        </React.Fragment>
      ))}
    </dl>
  ) : null;
}

export function SurveyView(props: { survey: ISurvey; trans: TranslationBundle }): JSX.Element {
  const { survey, trans } = props;
  const { namespace } = survey;
  const engines = Object.entries(survey.engines ?? {})
    .filter(([, there]) => there)
    .map(([name]) => name);
  const nodes = survey.nodes ?? [];
  const usable = nodes.filter(node => node.usable).length;
  const facts = [
    survey.version && trans.__('Kubernetes %1', survey.version),
    namespace.level
      ? trans.__('namespace %1 (%2)', namespace.name, namespace.level)
      : trans.__('namespace %1', namespace.name),
    survey.nodes
      ? usable === nodes.length
        ? trans._n('%1 node', '%1 nodes', nodes.length)
        : trans.__('%1 of %2 nodes take pods', usable, nodes.length)
      : '',
    engines.length ? trans.__('has %1', engines.join(', ')) : ''
  ].filter(Boolean);
  return (
    <div className="jp-Mlops-survey" data-testid="mlops-survey">
      <p className="jp-Mlops-muted">{facts.join(' · ')}</p>
      {survey.problems.map(problem => (
        <Message
          key={problem.message}
          tone={problem.fatal ? 'error' : 'warn'}
          title={problem.message}
          testId="mlops-problem"
        >
          {problem.hint}
        </Message>
      ))}
      {survey.role && (
        <p className="jp-Mlops-copyLine">
          {trans.__('The role that gives the permissions')}
          <CopyButton
            text={JSON.stringify(survey.role, null, 2)}
            label={trans.__('Copy the role, for kubectl apply -f -')}
            trans={trans}
            testId="mlops-copy-role"
          />
        </p>
      )}
      <Room survey={survey} trans={trans} />
      <Ways survey={survey} trans={trans} />
      {(survey.quotas ?? []).length > 0 && (
        <table className="jp-Mlops-table">
          <caption>{trans.__('Quotas')}</caption>
          <tbody>
            {(survey.quotas ?? []).map(line => (
              <tr key={`${line.quota} ${line.resource}`}>
                <th scope="row">{line.resource}</th>
                <td>{trans.__('%1 of %2 used', line.used, line.hard)}</td>
                <td className="jp-Mlops-muted">{line.quota}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}
