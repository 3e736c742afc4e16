/** The commands: what the panel's buttons, the context menu, the palette and other extensions call. */
import { ILabShell, ILayoutRestorer, JupyterFrontEnd } from '@jupyterlab/application';
import { ICommandPalette, MainAreaWidget, Notification, WidgetTracker } from '@jupyterlab/apputils';
import { refreshIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { IDisposable } from '@lumino/disposable';

import { curlCall, magicCall, pythonCall } from './codegen';
import { Args, CommandKit, describe, text } from './commandkit';
import { ComparisonView, createComparisonWidget } from './comparison';
import { copyText } from './components/common';
import { addEndpointCommands } from './endpointcommands';
import { mlopsIcon } from './icons';
import { CommandIDs, PANEL_ID } from './ids';
import { addJobCommands } from './jobcommands';
import { createMlflowWidget, MlflowFrame, route } from './mlflow';
import type { IMlops } from './tokens';
import { effective } from './traffic';

export namespace Commands {
  export interface IOptions {
    app: JupyterFrontEnd;
    mlops: IMlops;
    trans: TranslationBundle;
    palette?: ICommandPalette | null;
    restorer?: ILayoutRestorer | null;
    labShell?: ILabShell | null;
  }
}

/** Add all commands; dispose the result to take them away. */
export function addCommands(options: Commands.IOptions): IDisposable {
  const { app, mlops, trans } = options;
  const { api, model } = mlops;
  const { commands, shell } = app;
  const kit = new CommandKit(app, mlops, trans);
  const { added } = kit;
  const frames = new WidgetTracker<MainAreaWidget<MlflowFrame>>({
    namespace: 'jupyter-mlops-mlflow'
  });
  const comparisons = new WidgetTracker<MainAreaWidget<ComparisonView>>({
    namespace: 'jupyter-mlops-comparisons'
  });
  addJobCommands(kit, options.restorer ?? null);
  addEndpointCommands(kit, options.restorer ?? null);

  const openMlflow = (page: string) => {
    let widget = frames.find(one => !one.isDisposed);
    if (widget) {
      widget.content.open(page);
      void frames.save(widget);
    } else {
      widget = createMlflowWidget(api, page);
      void frames.add(widget);
    }
    if (!widget.isAttached) {
      shell.add(widget, 'main');
    }
    shell.activateById(widget.id);
  };

  kit.add(
    CommandIDs.openPanel,
    trans.__('Show the MLOps Panel'),
    () => {
      options.labShell?.expandLeft();
      shell.activateById(PANEL_ID);
    },
    { describedBy: describe({}), icon: mlopsIcon }
  );

  kit.add(CommandIDs.refresh, trans.__('Refresh the MLOps Panel'), () => model.refresh(), {
    describedBy: describe({}),
    icon: refreshIcon
  });

  added.add(
    commands.addCommand(CommandIDs.openMlflow, {
      label: args => (args.isLauncher ? trans.__('MLflow') : trans.__('Open the MLflow UI')),
      caption: trans.__('Experiments, runs and models in MLflow'),
      icon: mlopsIcon,
      describedBy: describe({ page: trans.__('A page of the UI, such as /models/digits') }),
      execute: args => openMlflow(text(args, 'page') || route.experiments())
    })
  );

  kit.add(
    CommandIDs.openRun,
    trans.__('Open in MLflow'),
    async args => {
      const id = text(args, 'id') || kit.hit('run');
      const known = model.runs.items.find(run => run.run_id === id);
      let experiment = text(args, 'experiment') || known?.experiment_id || '';
      if (!id) {
        return;
      }
      const found = await kit.attempt(trans.__('The run cannot be opened'), async () => {
        experiment ||= (await api.run(id)).experiment_id;
      });
      if (found) {
        openMlflow(route.run(experiment, id));
      }
    },
    {
      describedBy: describe({
        id: trans.__('The run id'),
        experiment: trans.__('The experiment id; looked up when it is not given')
      })
    }
  );

  kit.add(
    CommandIDs.openModel,
    trans.__('Open in MLflow'),
    args => {
      const name = kit.nameOf('model', args);
      if (name) {
        openMlflow(route.model(name));
      }
    },
    { describedBy: describe({ name: trans.__('The model') }) }
  );

  kit.add(
    CommandIDs.compareRuns,
    trans.__('Compare Runs'),
    args => {
      const ids = (Array.isArray(args.ids) ? args.ids : []).filter(
        (id): id is string => typeof id === 'string'
      );
      if (ids.length < 2) {
        return;
      }
      const key = ids.join(' ');
      let widget = comparisons.find(one => one.content.key === key);
      if (!widget) {
        widget = createComparisonWidget(new ComparisonView(ids, mlops, trans, kit.execute));
        void comparisons.add(widget);
      }
      if (!widget.isAttached) {
        shell.add(widget, 'main');
      }
      shell.activateById(widget.id);
    },
    {
      describedBy: {
        args: {
          type: 'object',
          properties: {
            ids: {
              type: 'array',
              items: { type: 'string' },
              description: trans.__('The run ids, two or more')
            }
          }
        }
      },
      icon: mlopsIcon
    }
  );

  const addDelete = (
    id: string,
    label: string,
    key: 'id' | 'name',
    kind: string,
    question: (name: string) => [string, string],
    remove: (name: string) => Promise<void>,
    refresh: () => Promise<unknown>
  ) =>
    kit.add(
      id,
      label,
      async args => {
        const name = text(args, key) || kit.hit(kind);
        if (!name) {
          return;
        }
        const known = kind === 'run' ? model.runs.items.find(run => run.run_id === name)?.name : '';
        const [title, body] = question(text(args, 'name') || known || name);
        if (await kit.confirmed(model.settings.confirmDelete, title, body, trans.__('Delete'))) {
          await kit.attempt(trans.__('Not deleted'), () => remove(name));
          await refresh();
        }
      },
      {
        describedBy: describe({ [key]: trans.__('What to delete') }),
        isEnabled: kit.writable
      }
    );

  addDelete(
    CommandIDs.deleteRun,
    trans.__('Delete Run…'),
    'id',
    'run',
    name => [
      trans.__('Delete run %1?', name),
      trans.__('It goes to the trash of MLflow, from where it can be restored.')
    ],
    id => api.deleteRun(id),
    () => model.runs.refresh()
  );
  addDelete(
    CommandIDs.deleteModel,
    trans.__('Delete Model…'),
    'name',
    'model',
    name => [
      trans.__('Delete model %1?', name),
      trans.__('All its versions and aliases are removed from the registry. This cannot be undone.')
    ],
    name => api.deleteModel(name),
    () => model.models.refresh()
  );
  addDelete(
    CommandIDs.deleteEndpoint,
    trans.__('Delete Endpoint…'),
    'name',
    'endpoint',
    name => [
      trans.__('Delete endpoint %1?', name),
      trans.__('Its deployments stop, and its URL and keys are no longer valid.')
    ],
    name => api.serving.deleteEndpoint(name),
    () => model.endpoints.refresh()
  );

  const callOf = (args: Args): string => {
    const name = kit.nameOf('endpoint', args);
    const endpoint = model.endpoints.items.find(item => item.name === name);
    if (!name) {
      return '';
    }
    const shares = endpoint ? effective(endpoint) : {};
    const deployment =
      endpoint?.deployments.find(one => shares[one.name] > 0) ?? endpoint?.deployments[0];
    const signature = deployment?.status.signature;
    const url = endpoint?.status.scoring_uri || api.endpointUrl(name);
    switch (args.language) {
      case 'curl':
        return curlCall(name, url, signature);
      case 'magic':
        return magicCall(name);
      default:
        return pythonCall(name, url, signature);
    }
  };
  const LANGUAGE = {
    name: trans.__('The endpoint'),
    language: trans.__('python, curl or magic')
  };

  added.add(
    commands.addCommand(CommandIDs.copyCall, {
      label: args =>
        args.language === 'curl'
          ? trans.__('Copy a Call With curl')
          : trans.__('Copy a Call in Python'),
      describedBy: describe(LANGUAGE),
      execute: async args => {
        const code = callOf(args);
        if (code && (await copyText(code))) {
          Notification.success(
            trans.__('Copied. Put the key of the endpoint into the environment variable it names.'),
            { autoClose: 5000 }
          );
        }
      }
    })
  );

  added.add(
    commands.addCommand(CommandIDs.insertCall, {
      label: trans.__('Insert a Call Into the Notebook'),
      describedBy: describe(LANGUAGE),
      isEnabled: () => commands.hasCommand('notebook:insert-cell-below'),
      execute: async args => {
        const code = callOf({ language: 'magic', ...args });
        if (code) {
          // A new, empty cell below the active one: nothing of the user's is replaced.
          await commands.execute('notebook:insert-cell-below');
          await commands.execute('notebook:replace-selection', { text: code });
        }
      }
    })
  );

  if (options.palette) {
    const category = trans.__('MLOps');
    for (const command of [
      CommandIDs.openPanel,
      CommandIDs.openMlflow,
      CommandIDs.openJob,
      CommandIDs.stopJob,
      CommandIDs.openShell,
      CommandIDs.openTensorboard,
      CommandIDs.resumeJob,
      CommandIDs.openEndpoint,
      CommandIDs.setTraffic,
      CommandIDs.startCanary,
      CommandIDs.promoteCanary,
      CommandIDs.rollbackTraffic,
      CommandIDs.rotateKey,
      CommandIDs.createToken,
      CommandIDs.refresh
    ]) {
      added.add(options.palette.addItem({ command, category }));
    }
  }
  if (options.restorer) {
    void options.restorer.restore(comparisons, {
      command: CommandIDs.compareRuns,
      args: widget => ({ ids: [...widget.content.ids] }),
      name: widget => widget.content.key
    });
    void options.restorer.restore(frames, {
      command: CommandIDs.openMlflow,
      args: widget => ({ page: widget.content.page }),
      name: () => 'mlflow'
    });
  }
  const onModelChanged = () => {
    if (model.readonly !== readonly) {
      readonly = model.readonly;
      commands.notifyCommandChanged();
    }
  };
  let readonly = model.readonly;
  model.changed.connect(onModelChanged);
  return added;
}
