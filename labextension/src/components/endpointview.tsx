/** One endpoint in a tab: what it is, and on pages of their own how it does, a call, logs, access, data, history. */
import { deleteIcon, refreshIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useRef } from 'react';

import { CommandIDs } from '../ids';
import type { LiveEndpoint } from '../liveendpoint';
import { Access, Address } from './access';
import { CanaryCard } from './canary';
import { Captured } from './captured';
import { IconButton, Message, useSignal } from './common';
import { DeploymentLogs } from './deploymentlogs';
import { Deployments } from './deployments';
import type { IEndpointProps } from './endpointprops';
import { History } from './history';
import { errorText, LoadError, Skeleton } from './list';
import { Rates } from './rates';
import { Status } from './status';
import { TrafficEditor } from './traffic';
import { TryIt } from './tryit';

export const PAGES = ['overview', 'try', 'logs', 'access', 'data', 'history'] as const;
export type EndpointPage = (typeof PAGES)[number];

/** What the tab remembers of how it is looked at. */
export interface IEndpointLook {
  page: EndpointPage;
  /** The deployment whose log is shown. */
  deployment: string;
}

export interface IEndpointViewProps extends IEndpointProps {
  look: IEndpointLook;
  onLook: (look: Partial<IEndpointLook>) => void;
  isVisible: () => boolean;
}

function pageText(page: EndpointPage, trans: TranslationBundle): string {
  switch (page) {
    case 'overview':
      return trans.__('Overview');
    case 'try':
      return trans.__('Try it');
    case 'logs':
      return trans.__('Logs');
    case 'access':
      return trans.__('Access');
    case 'data':
      return trans.__('Data');
    case 'history':
      return trans.__('History');
  }
}

function Head(props: IEndpointProps): JSX.Element {
  const { live, trans, readonly, run } = props;
  const { endpoint, name } = live;
  const here = endpoint?.status.scoring_uri;
  const { phase = '', reason = '' } = endpoint?.status ?? {};
  return (
    <header className="jp-Mlops-endpointHead">
      <div className="jp-Mlops-endpointTitle">
        {phase && <Status phase={phase} trans={trans} live testId="mlops-endpoint-state" />}
        <h2 title={endpoint?.spec.description}>{name}</h2>
        {endpoint && (
          <span className="jp-Mlops-tag" title={trans.__('What callers show')}>
            {endpoint.spec.auth_mode === 'token' ? trans.__('token') : trans.__('key')}
          </span>
        )}
        {endpoint?.spec.compute && endpoint.spec.compute !== 'local' && (
          <span className="jp-Mlops-tag">{endpoint.spec.compute}</span>
        )}
        {here && (
          <Address
            label={trans.__('On this machine')}
            url={here}
            trans={trans}
            testId="mlops-copy-url"
          />
        )}
        <span className="jp-Mlops-spring" />
        <IconButton
          icon={refreshIcon}
          label={trans.__('Refresh')}
          onClick={() => live.refresh()}
          testId="mlops-endpoint-refresh"
        />
        <IconButton
          icon={deleteIcon}
          label={trans.__('Delete the endpoint')}
          disabled={readonly || !endpoint}
          onClick={() => void run(CommandIDs.deleteEndpoint, { name })}
          testId="mlops-endpoint-delete"
        />
      </div>
      {phase !== 'Ready' && reason && <div className="jp-Mlops-muted">{reason}</div>}
    </header>
  );
}

function Pages(props: {
  page: EndpointPage;
  choose: (page: EndpointPage) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { page, choose, trans } = props;
  const list = useRef<HTMLDivElement>(null);
  const move = (by: number) => {
    const next = (PAGES.indexOf(page) + by + PAGES.length) % PAGES.length;
    choose(PAGES[next]);
    (list.current?.children[next] as HTMLElement | undefined)?.focus();
  };
  return (
    <div
      ref={list}
      className="jp-Mlops-tabs jp-Mlops-pages"
      role="tablist"
      aria-label={trans.__('Endpoint')}
      onKeyDown={event => {
        const by = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
        if (by) {
          event.preventDefault();
          move(by);
        }
      }}
    >
      {PAGES.map(one => (
        <button
          key={one}
          type="button"
          role="tab"
          className="jp-Mlops-tab"
          aria-selected={one === page}
          tabIndex={one === page ? 0 : -1}
          data-testid={`mlops-page-${one}`}
          onClick={() => choose(one)}
        >
          {pageText(one, trans)}
        </button>
      ))}
    </div>
  );
}

function Notices({ live, trans }: { live: LiveEndpoint; trans: TranslationBundle }) {
  const { state, error } = live;
  if (state === 'deleted') {
    return (
      <Message tone="warn" title={trans.__('There is no endpoint %1.', live.name)}>
        {live.endpoint ? trans.__('It was deleted. What was last seen of it is shown.') : ''}
      </Message>
    );
  }
  if (state === 'error' && error) {
    return (
      <LoadError
        error={error}
        retry={() => live.refresh()}
        trans={trans}
        testId="mlops-endpoint-error"
      />
    );
  }
  if (state === 'stale' && error) {
    return (
      <div className="jp-Mlops-stale" role="status" data-testid="mlops-endpoint-stale">
        <span>{trans.__('Not up to date: %1', errorText(error, trans))}</span>
        <button type="button" className="jp-Mlops-more" onClick={() => live.refresh()}>
          {trans.__('Retry')}
        </button>
      </div>
    );
  }
  return null;
}

function Overview(props: IEndpointViewProps): JSX.Element {
  const { live } = props;
  const onLog = (deployment: string) => props.onLook({ page: 'logs', deployment });
  return (
    <>
      {live.deployments.length > 0 && (
        <div className="jp-Mlops-cards">
          <TrafficEditor {...props} />
          <CanaryCard {...props} />
        </div>
      )}
      <Deployments {...props} onLog={onLog} />
      <Rates {...props} />
    </>
  );
}

function Page(props: IEndpointViewProps): JSX.Element {
  switch (props.look.page) {
    case 'try':
      return <TryIt {...props} />;
    case 'logs':
      return (
        <DeploymentLogs
          {...props}
          chosen={props.look.deployment}
          choose={deployment => props.onLook({ deployment })}
        />
      );
    case 'access':
      return <Access {...props} />;
    case 'data':
      return <Captured {...props} />;
    case 'history':
      return <History {...props} />;
    default:
      return <Overview {...props} />;
  }
}

export function EndpointPanel(props: IEndpointViewProps): JSX.Element {
  const { live, trans, look } = props;
  useSignal(live.changed);
  const readonly = props.readonly || live.state === 'deleted';
  return (
    <div
      className="jp-Mlops-endpoint"
      data-testid="mlops-endpoint"
      data-name={live.name}
      data-state={live.state}
    >
      <Head {...props} readonly={readonly} />
      {(live.state !== 'deleted' || live.endpoint) && (
        <Pages page={look.page} choose={page => props.onLook({ page })} trans={trans} />
      )}
      <Notices live={live} trans={trans} />
      {live.state === 'loading' && !live.endpoint && <Skeleton label={trans.__('Loading')} />}
      {live.endpoint && (
        <div className="jp-Mlops-page" role="tabpanel" aria-label={pageText(look.page, trans)}>
          <Page {...props} readonly={readonly} />
        </div>
      )}
    </div>
  );
}
