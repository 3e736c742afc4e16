/** What all commands share: their arguments, questions before they act, and notices of what failed. */
import { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { DisposableSet } from '@lumino/disposable';
import type React from 'react';

import { errorText } from './components/list';
import { toApiError } from './listmodel';
import type { IMlops } from './tokens';

export type Args = ReadonlyPartialJSONObject;

const STRING = { type: 'string' } as const;

/** The schema of a command's arguments. */
export function describe(properties: Record<string, string>) {
  return {
    args: {
      type: 'object' as const,
      properties: Object.fromEntries(
        Object.entries(properties).map(([key, description]) => [key, { ...STRING, description }])
      )
    }
  };
}

export function text(args: Args, key: string): string {
  const value = args[key];
  return typeof value === 'string' ? value : '';
}

export class CommandKit {
  constructor(
    readonly app: JupyterFrontEnd,
    readonly mlops: IMlops,
    readonly trans: TranslationBundle
  ) {}

  /** All commands that were added; disposing it takes them away. */
  readonly added = new DisposableSet();

  readonly writable = (): boolean => !this.mlops.model.readonly;

  readonly execute = (command: string, args: Args): void => {
    void this.app.commands.execute(command, args);
  };

  add(
    id: string,
    label: string,
    run: (args: Args) => unknown,
    more: Omit<CommandRegistry.ICommandOptions, 'execute' | 'label'>
  ): void {
    const { describedBy, ...options } = more;
    this.added.add(
      this.app.commands.addCommand(id, { label, execute: run, describedBy, ...options })
    );
  }

  /** The row under the pointer or the focus when a context menu is open. */
  hit(kind: string): string {
    const node = this.app.contextMenuHitTest(
      element => element.classList.contains('jp-Mlops-row') && element.dataset.kind === kind
    );
    return node?.dataset.name ?? '';
  }

  nameOf(kind: string, args: Args): string {
    return text(args, 'name') || this.hit(kind);
  }

  /**
   * Ask, when `ask` is set, as the settings say; `label` is the button that goes on, which warns unless `warn` is off.
   */
  async confirmed(
    ask: boolean,
    title: string,
    body: string | React.ReactElement,
    label: string,
    warn = true
  ): Promise<boolean> {
    if (!ask) {
      return true;
    }
    const cancel = Dialog.cancelButton({ label: this.trans.__('Cancel') });
    const go = warn ? Dialog.warnButton({ label }) : Dialog.okButton({ label });
    const buttons = [cancel, go];
    const result = await showDialog({ title, body, defaultButton: warn ? 0 : 1, buttons });
    return result.button.accept;
  }

  /** Do something that may fail; the failure is told in a notification. */
  async attempt(what: string, action: () => Promise<unknown>): Promise<boolean> {
    try {
      await action();
      return true;
    } catch (reason) {
      const message = `${what}: ${errorText(toApiError(reason), this.trans)}`;
      Notification.error(message, { autoClose: 8000 });
      return false;
    }
  }
}
