import { MimeModel } from '@jupyterlab/rendermime';
import { CommandRegistry } from '@lumino/commands';
import { Widget } from '@lumino/widgets';
import { describe, expect, it, vi } from 'vitest';

import { CREATE_TERMINAL, openShell, readShell, SHELL_MIME } from '../src/shell';
import { OpenRenderer } from '../src/openrenderer';
import { shellFactory } from '../src/shellrenderer';
import { drawn } from './fakes';

describe('a shell that was asked for', () => {
  const data = (more: object = {}) => ({
    version: 1,
    workspace: 'default',
    name: 'digits',
    rank: 1,
    asked_at: Date.now(),
    ...more
  });
  const show = async (given: object) => {
    const execute = vi.fn();
    const view = shellFactory({ execute }).createRenderer({
      mimeType: SHELL_MIME
    } as never) as OpenRenderer<never>;
    await drawn(async () => {
      Widget.attach(view, document.body);
      await view.renderModel(new MimeModel({ data: { [SHELL_MIME]: given as never } }));
    });
    return { view, execute };
  };

  it('opens once, by itself only when it was asked for just now', async () => {
    const given = data();
    const first = await show(given);
    expect(first.execute).toHaveBeenCalledWith('jupyter-mlops:open-shell', {
      name: 'digits',
      rank: '1',
      workspace: 'default'
    });
    expect(first.view.node.textContent).toContain('jupyter mlops shell digits --rank 1');
    const second = await show(given);
    expect(second.execute).not.toHaveBeenCalled();
    const old = await show(data({ asked_at: Date.now() - 60_000 }));
    expect(old.execute).not.toHaveBeenCalled();
    old.view.node.querySelector<HTMLElement>('[data-testid=mlops-shell-open]')!.click();
    expect(old.execute).toHaveBeenCalledTimes(1);
    [first, second, old].forEach(({ view }) => view.dispose());
  });

  it('passes on names and numbers only', async () => {
    expect(readShell(data({ name: 'a; rm -rf /' }))).toBeNull();
    expect(readShell(data({ workspace: '$(x)' }))).toBeNull();
    expect(readShell(data({ rank: '1 && x' }))).toBeNull();
    expect(readShell(data({ version: 2 }))).toBeNull();
    const commands = new CommandRegistry();
    const send = vi.fn();
    commands.addCommand(CREATE_TERMINAL, { execute: () => ({ content: { session: { send } } }) });
    await expect(openShell(commands, 'a b', 0, 'default')).rejects.toThrow('no name');
    await openShell(commands, 'digits', 1, 'lab');
    expect(send).toHaveBeenCalledWith({
      type: 'stdin',
      content: ['JUPYTER_MLOPS_WORKSPACE=lab jupyter mlops shell digits --rank 1\r']
    });
    // A login shell may have forgotten where the server's programs are.
    await openShell(commands, 'digits', 0, 'default', '/opt/env/bin/jupyter-mlops');
    expect(send).toHaveBeenLastCalledWith({
      type: 'stdin',
      content: ['/opt/env/bin/jupyter-mlops shell digits --rank 0\r']
    });
  });
});
