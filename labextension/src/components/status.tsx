/** Phases of jobs, runs, endpoints, deployments and canaries as icon and word: never as a colour alone. */
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

type Tone = 'wait' | 'busy' | 'good' | 'bad' | 'off' | 'warn';

const TONES: Record<string, Tone> = {
  Queued: 'wait',
  Starting: 'busy',
  Running: 'busy',
  Stopping: 'warn',
  Finalizing: 'warn',
  Completed: 'good',
  Failed: 'bad',
  Canceled: 'off',
  SCHEDULED: 'wait',
  RUNNING: 'busy',
  FINISHED: 'good',
  FAILED: 'bad',
  KILLED: 'off',
  Creating: 'busy',
  Pending: 'wait',
  Preparing: 'busy',
  Proving: 'busy',
  Promoted: 'good',
  RolledBack: 'bad',
  Stopped: 'off',
  Ready: 'good',
  Degraded: 'warn',
  Deleting: 'warn',
  Unreachable: 'bad'
};

export function toneOf(phase: string): Tone {
  return TONES[phase] ?? 'wait';
}

/** The word for a phase. MLflow's run states and our phases say the same thing in the same words. */
export function phaseText(phase: string, trans: TranslationBundle): string {
  switch (phase) {
    case 'Queued':
    case 'SCHEDULED':
      return trans.__('Queued');
    case 'Starting':
      return trans.__('Starting');
    case 'Running':
    case 'RUNNING':
      return trans.__('Running');
    case 'Stopping':
      return trans.__('Stopping');
    case 'Finalizing':
      return trans.__('Finalizing');
    case 'Completed':
    case 'FINISHED':
      return trans.__('Completed');
    case 'Failed':
    case 'FAILED':
      return trans.__('Failed');
    case 'Canceled':
    case 'KILLED':
      return trans.__('Canceled');
    case 'Creating':
      return trans.__('Creating');
    case 'Pending':
      return trans.__('Pending');
    case 'Preparing':
      return trans.__('Preparing');
    case 'Proving':
      return trans.__('Proving');
    case 'Promoted':
      return trans.__('Promoted');
    case 'RolledBack':
      return trans.__('Rolled back');
    case 'Stopped':
      return trans.__('Stopped');
    case 'Ready':
      return trans.__('Ready');
    case 'Degraded':
      return trans.__('Degraded');
    case 'Deleting':
      return trans.__('Deleting');
    case 'Unreachable':
      return trans.__('Unreachable');
    default:
      return phase || trans.__('Unknown');
  }
}

function Shape({ tone }: { tone: Tone }): JSX.Element {
  const line = {
    fill: 'none',
    stroke: 'currentColor',
    strokeWidth: 1.8,
    strokeLinecap: 'round'
  } as const;
  switch (tone) {
    case 'good':
      return (
        <>
          <circle cx="8" cy="8" r="7" fill="currentColor" />
          <path d="M4.8 8.3l2.2 2.2 4.2-4.6" {...line} className="jp-Mlops-statusInner" />
        </>
      );
    case 'bad':
      return (
        <>
          <circle cx="8" cy="8" r="7" fill="currentColor" />
          <path d="M5.6 5.6l4.8 4.8M10.4 5.6l-4.8 4.8" {...line} className="jp-Mlops-statusInner" />
        </>
      );
    case 'off':
      return (
        <>
          <circle cx="8" cy="8" r="6.1" {...line} />
          <path d="M4 12L12 4" {...line} />
        </>
      );
    case 'warn':
      return (
        <>
          <path d="M8 1.5L15 14H1z" fill="currentColor" />
          <path d="M8 6v3.6M8 11.8v.1" {...line} className="jp-Mlops-statusInner" />
        </>
      );
    case 'busy':
      return (
        <>
          <circle cx="8" cy="8" r="6.1" {...line} opacity=".3" />
          <path d="M8 1.9a6.1 6.1 0 0 1 6.1 6.1" {...line} className="jp-Mlops-statusSpin" />
        </>
      );
    default:
      return (
        <>
          <circle cx="8" cy="8" r="6.1" {...line} />
          <path d="M8 4.6V8l2.3 1.6" {...line} />
        </>
      );
  }
}

export function StatusIcon({ phase }: { phase: string }): JSX.Element {
  const tone = toneOf(phase);
  return (
    <svg
      className={`jp-Mlops-status jp-mod-${tone}`}
      width="14"
      height="14"
      viewBox="0 0 16 16"
      aria-hidden="true"
    >
      <Shape tone={tone} />
    </svg>
  );
}

/** Icon and word in one line. */
export function Status(props: {
  phase: string;
  trans: TranslationBundle;
  live?: boolean;
  testId?: string;
}): JSX.Element {
  return (
    <span
      className={`jp-Mlops-badge jp-mod-${toneOf(props.phase)}`}
      role={props.live ? 'status' : undefined}
      aria-live={props.live ? 'polite' : undefined}
      data-testid={props.testId}
      data-phase={props.phase}
    >
      <StatusIcon phase={props.phase} />
      <span>{phaseText(props.phase, props.trans)}</span>
    </span>
  );
}
