/** The plugins. Each asks for as little as it can do with, so that what is there works also outside of JupyterLab. */
import {
  ILabShell,
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { Api } from './api';
import { boardFactory } from './boardrenderer';
import { ChartStates } from './chartstate';
import { addCommands } from './commands';
import { CommandIDs } from './ids';
import { WorkspaceModel } from './model';
import { MlopsPanel } from './panel';
import { rendererFactory } from './renderer';
import { shellFactory } from './shellrenderer';
import { readSettings } from './settings';
import { createStatusItem } from './statusbar';
import { IMlops } from './tokens';

export { IMlops } from './tokens';

const SETTINGS_ID = 'jupyter-mlops:plugin';

/** The model that all others share, with the settings. */
const tracker: JupyterFrontEndPlugin<IMlops> = {
  id: SETTINGS_ID,
  description: 'Runs, jobs, models and endpoints of this Jupyter server.',
  autoStart: true,
  provides: IMlops,
  optional: [ISettingRegistry],
  activate: (app: JupyterFrontEnd, registry: ISettingRegistry | null): IMlops => {
    const api = new Api(app.serviceManager.serverSettings);
    const model = new WorkspaceModel(api, app.serviceManager.events ?? null);
    const states = new ChartStates();
    if (registry) {
      registry
        .load(SETTINGS_ID)
        .then(settings => {
          const update = () => {
            model.settings = readSettings(settings.composite);
            states.defaults = { axis: model.settings.xAxis, smoothing: model.settings.smoothing };
          };
          settings.changed.connect(update);
          update();
        })
        .catch(() => {
          // The defaults are in force; Jupyter itself tells about a broken settings file.
        });
    }
    void app.started.then(() => model.start());
    return { api, model, states };
  }
};

const commands: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:commands',
  description: 'Commands for jobs, runs, models and endpoints, and the MLflow UI in a tab.',
  autoStart: true,
  requires: [IMlops],
  optional: [ITranslator, ICommandPalette, ILayoutRestorer, ILabShell],
  activate: (
    app: JupyterFrontEnd,
    mlops: IMlops,
    translator: ITranslator | null,
    palette: ICommandPalette | null,
    restorer: ILayoutRestorer | null,
    labShell: ILabShell | null
  ) => {
    const trans = (translator ?? nullTranslator).load('jupyter_mlops');
    addCommands({ app, mlops, trans, palette, restorer, labShell });
  }
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:panel',
  description: 'The side panel.',
  autoStart: true,
  requires: [IMlops],
  optional: [ITranslator, ILayoutRestorer],
  activate: (
    app: JupyterFrontEnd,
    mlops: IMlops,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null
  ) => {
    const widget = new MlopsPanel({
      model: mlops.model,
      execute: (command, args) => void app.commands.execute(command, args),
      translator
    });
    app.shell.add(widget, 'left', { rank: 600, type: 'MLOps' });
    restorer?.add(widget, widget.id);
  }
};

const renderer: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:renderer',
  description: 'The live output of jobs in notebooks.',
  autoStart: true,
  requires: [IMlops, IRenderMimeRegistry],
  optional: [ITranslator],
  activate: (
    app: JupyterFrontEnd,
    mlops: IMlops,
    rendermime: IRenderMimeRegistry,
    translator: ITranslator | null
  ) => {
    const api = new Api(app.serviceManager.serverSettings);
    rendermime.addFactory(
      rendererFactory({
        api: workspace => api.in(workspace),
        changes: mlops.model.changes,
        isReadonly: () => mlops.model.readonly,
        states: mlops.states,
        execute: (command, args) => void app.commands.execute(command, args),
        translator
      })
    );
    const execute = (command: string, args: ReadonlyPartialJSONObject) => {
      if (app.commands.isEnabled(command, args)) {
        void app.commands.execute(command, args);
      }
    };
    rendermime.addFactory(shellFactory({ execute, translator }));
    rendermime.addFactory(boardFactory({ execute, translator }));
  }
};

const statusItem: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:statusbar',
  description: 'Running jobs in the status bar.',
  autoStart: true,
  requires: [IMlops, IStatusBar],
  optional: [ITranslator],
  activate: (
    app: JupyterFrontEnd,
    mlops: IMlops,
    statusBar: IStatusBar,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('jupyter_mlops');
    const item = createStatusItem(mlops.model, trans, () => {
      void app.commands.execute(CommandIDs.openPanel);
    });
    statusBar.registerStatusItem(statusItem.id, { item, align: 'left', rank: 600 });
  }
};

const launcher: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:launcher',
  description: 'A card for the MLflow UI in the launcher.',
  autoStart: true,
  requires: [ILauncher],
  optional: [ITranslator],
  activate: (app: JupyterFrontEnd, launch: ILauncher, translator: ITranslator | null) => {
    // The category is JupyterLab's, so its translation is too.
    const trans = (translator ?? nullTranslator).load('jupyterlab');
    launch.add({
      command: CommandIDs.openMlflow,
      args: { isLauncher: true },
      category: trans.__('Other'),
      rank: 600
    });
  }
};

const plugins: JupyterFrontEndPlugin<unknown>[] = [
  tracker,
  commands,
  panel,
  renderer,
  statusItem,
  launcher
];

export default plugins;
