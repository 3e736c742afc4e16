/** Small parts that all views share: buttons, progress, messages, a clock, and a net under rendering errors. */
import { LabIcon, checkIcon, copyIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { ISignal } from '@lumino/signaling';
import React, { useEffect, useReducer, useState } from 'react';

/** Draw again whenever the signal is emitted. */
export function useSignal<T>(signal: ISignal<T, unknown>): void {
  const [, draw] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    const slot = () => draw();
    signal.connect(slot);
    return () => {
      signal.disconnect(slot);
    };
  }, [signal]);
}

/** The time in milliseconds, renewed at an interval; 0 stops it. Rests while the page is hidden. */
export function useNow(interval: number): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    if (!interval) {
      return undefined;
    }
    const timer = window.setInterval(() => {
      if (!document.hidden) {
        setNow(Date.now());
      }
    }, interval);
    return () => window.clearInterval(timer);
  }, [interval]);
  return now;
}

export interface IIconButton {
  icon: LabIcon;
  label: string;
  onClick: () => void;
  disabled?: boolean;
  tabIndex?: number;
  testId?: string;
}

export function IconButton(props: IIconButton): JSX.Element {
  return (
    <button
      type="button"
      className="jp-Mlops-iconButton"
      title={props.label}
      aria-label={props.label}
      disabled={props.disabled}
      tabIndex={props.tabIndex}
      data-testid={props.testId}
      onClick={event => {
        event.stopPropagation();
        props.onClick();
      }}
    >
      <props.icon.react tag="span" className="jp-Mlops-icon" />
    </button>
  );
}

/** Copies a text, and says so for a moment. */
export function CopyButton(props: {
  text: string | (() => string);
  label: string;
  trans: TranslationBundle;
  tabIndex?: number;
  testId?: string;
}): JSX.Element {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) {
      return undefined;
    }
    const timer = window.setTimeout(() => setCopied(false), 1500);
    return () => window.clearTimeout(timer);
  }, [copied]);
  return (
    <IconButton
      icon={copied ? checkIcon : copyIcon}
      label={copied ? props.trans.__('Copied') : props.label}
      tabIndex={props.tabIndex}
      testId={props.testId}
      onClick={() => {
        void copyText(typeof props.text === 'string' ? props.text : props.text()).then(setCopied);
      }}
    />
  );
}

/** Whether the text is in the clipboard. Pages without https have no clipboard API, so the old way is there too. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement('textarea');
    area.value = text;
    area.style.position = 'fixed';
    area.style.opacity = '0';
    document.body.appendChild(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** `value` is a percentage; null draws a bar without an end. */
export function ProgressBar(props: { value: number | null; label: string }): JSX.Element {
  const known = props.value !== null;
  return (
    <div
      className={`jp-Mlops-progress${known ? '' : ' jp-mod-unknown'}`}
      role="progressbar"
      aria-label={props.label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={props.value ?? undefined}
    >
      <div style={known ? { width: `${props.value}%` } : undefined} />
    </div>
  );
}

export function Message(props: {
  tone: 'error' | 'warn' | 'info';
  title: string;
  children?: React.ReactNode;
  action?: { label: string; onClick: () => void };
  testId?: string;
}): JSX.Element {
  return (
    <div
      className={`jp-Mlops-message jp-mod-${props.tone}`}
      role={props.tone === 'error' ? 'alert' : 'status'}
      data-testid={props.testId}
    >
      <div className="jp-Mlops-messageTitle">{props.title}</div>
      {props.children && <div className="jp-Mlops-messageText">{props.children}</div>}
      {props.action && (
        <button type="button" className="jp-Mlops-button" onClick={props.action.onClick}>
          {props.action.label}
        </button>
      )}
    </div>
  );
}

/** A line to type, with a button that copies it. */
export function NextStep(props: { code: string; trans: TranslationBundle }): JSX.Element {
  return (
    <div className="jp-Mlops-nextStep">
      <code>
        {props.code.split(' ').map((word, i) => (
          <React.Fragment key={i}>
            {i > 0 && ' '}
            <span className="jp-Mlops-word">{word}</span>
          </React.Fragment>
        ))}
      </code>
      <CopyButton text={props.code} label={props.trans.__('Copy')} trans={props.trans} />
    </div>
  );
}

/** Keeps an error in one section from taking the whole panel away. */
export class ErrorBoundary extends React.Component<
  { trans: TranslationBundle; children: React.ReactNode },
  { message: string }
> {
  state = { message: '' };

  static getDerivedStateFromError(error: unknown): { message: string } {
    return { message: error instanceof Error ? error.message : String(error) };
  }

  render(): React.ReactNode {
    if (!this.state.message) {
      return this.props.children;
    }
    const { trans } = this.props;
    return (
      <Message
        tone="error"
        title={trans.__('This part could not be drawn')}
        action={{ label: trans.__('Try again'), onClick: () => this.setState({ message: '' }) }}
      >
        {this.state.message}
      </Message>
    );
  }
}
