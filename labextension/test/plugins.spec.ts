import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { MimeModel, RenderMimeRegistry } from '@jupyterlab/rendermime';
import { ServerConnection } from '@jupyterlab/services';
import { CommandRegistry } from '@lumino/commands';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import plugins, { IMlops } from '../src/index';
import { CommandIDs, PANEL_ID } from '../src/ids';
import { JOB_MIME } from '../src/snapshot';
import schema from '../schema/plugin.json';

const byId = new Map(plugins.map(plugin => [plugin.id, plugin]));

describe('the plugins', () => {
  let app: JupyterFrontEnd;
  let added: Widget[];

  beforeEach(() => {
    added = [];
    const fetch = async () => new Response('<html>', { status: 404 });
    app = {
      commands: new CommandRegistry(),
      shell: { add: (widget: Widget) => added.push(widget), activateById: vi.fn() },
      serviceManager: {
        serverSettings: ServerConnection.makeSettings({ fetch: fetch as typeof globalThis.fetch }),
        events: { stream: new Signal({}) }
      },
      contextMenuHitTest: () => undefined,
      started: Promise.resolve()
    } as unknown as JupyterFrontEnd;
  });

  afterEach(() => {
    added.forEach(widget => widget.dispose());
  });

  const activate = async (id: string, ...services: unknown[]) => {
    const plugin = byId.get(`jupyter-mlops:${id}`) as JupyterFrontEndPlugin<unknown>;
    const nulls = (plugin.optional ?? []).map(() => null);
    const given = [...services];
    return plugin.activate(app, ...given, ...nulls.slice(0));
  };

  it('all describe themselves', () => {
    for (const plugin of plugins) {
      expect(plugin.id).toMatch(/^jupyter-mlops:/);
      expect(plugin.description).toBeTruthy();
    }
  });

  it('work without any optional service', async () => {
    const mlops = (await activate('plugin')) as IMlops;
    await activate('commands', mlops);
    await activate('panel', mlops);
    const rendermime = new RenderMimeRegistry();
    await activate('renderer', mlops, rendermime);
    expect(added.map(widget => widget.id)).toEqual([PANEL_ID]);
    for (const id of Object.values(CommandIDs)) {
      expect(app.commands.hasCommand(id)).toBe(true);
    }
    // Also in a notebook that is not trusted our form is preferred to HTML.
    const data = { [JOB_MIME]: {}, 'text/html': '', 'text/plain': '' };
    expect(rendermime.preferredMimeType(data, 'ensure')).toBe(JOB_MIME);
    const output = rendermime.createRenderer(JOB_MIME);
    await output.renderModel(new MimeModel({ data: { [JOB_MIME]: { version: 9 } } }));
    output.dispose();
    mlops.model.dispose();
  });

  it('use what is there', async () => {
    const mlops = (await activate('plugin')) as IMlops;
    const registerStatusItem = vi.fn();
    await activate('statusbar', mlops, { registerStatusItem });
    expect(registerStatusItem).toHaveBeenCalledOnce();
    const launcher = { add: vi.fn() };
    await activate('launcher', launcher);
    expect(launcher.add).toHaveBeenCalledOnce();
    mlops.model.dispose();
  });

  it('have commands for every entry of the context menu', async () => {
    const mlops = (await activate('plugin')) as IMlops;
    await activate('commands', mlops);
    for (const { command } of schema['jupyter.lab.menus'].context) {
      expect(app.commands.hasCommand(command)).toBe(true);
      expect(await app.commands.describedBy(command)).toBeTruthy();
    }
    mlops.model.status = {
      version: '0.1.0',
      workspace: 'default',
      state: 'up',
      message: '',
      readonly: true
    };
    for (const id of [CommandIDs.stopJob, CommandIDs.deleteRun, CommandIDs.deleteEndpoint]) {
      expect(app.commands.isEnabled(id)).toBe(false);
    }
    expect(app.commands.isEnabled(CommandIDs.openMlflow)).toBe(true);
    mlops.model.dispose();
  });
});
