/** The commands: what the panel's buttons, the context menu, the palette and other extensions call. */
import { ILabShell, ILayoutRestorer, JupyterFrontEnd } from '@jupyterlab/application';
import {
  Dialog,
  ICommandPalette,
  InputDialog,
  MainAreaWidget,
  Notification,
  showDialog,
  WidgetTracker
} from '@jupyterlab/apputils';
import { refreshIcon, stopIcon } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { DisposableSet, IDisposable } from '@lumino/disposable';

import { curlCall, magicCall, pythonCall } from './codegen';
import { copyText } from './components/common';
import { errorText } from './components/list';
import { mlopsIcon } from './icons';
import { CommandIDs, PANEL_ID } from './ids';
import { createJobWidget, JobView } from './jobview';
import { toApiError } from './listmodel';
import { createMlflowWidget, MlflowFrame, route } from './mlflow';
import { isTerminal } from './snapshot';
import type { IMlops } from './tokens';

type Args = ReadonlyPartialJSONObject;

const STRING = { type: 'string' } as const;

/** The schema of a command's arguments. */
function describe(properties: Record<string, string>) {
  return {
    args: {
      type: 'object' as const,
      properties: Object.fromEntries(
        Object.entries(properties).map(([key, description]) => [key, { ...STRING, description }])
      )
    }
  };
}

function text(args: Args, key: string): string {
  const value = args[key];
  return typeof value === 'string' ? value : '';
}

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
  const added = new DisposableSet();
  const jobs = new WidgetTracker<MainAreaWidget<JobView>>({ namespace: 'jupyter-mlops-jobs' });
  const frames = new WidgetTracker<MainAreaWidget<MlflowFrame>>({
    namespace: 'jupyter-mlops-mlflow'
  });
  const execute = (command: string, args: Args) => {
    void commands.execute(command, args);
  };

  /** The row under the pointer or the focus when a context menu is open. */
  const hit = (kind: string): string => {
    const node = app.contextMenuHitTest(
      element => element.classList.contains('jp-Mlops-row') && element.dataset.kind === kind
    );
    return node?.dataset.name ?? '';
  };
  const nameOf = (kind: string, args: Args) => text(args, 'name') || hit(kind);
  const writable = () => !model.readonly;

  /** Ask, when the settings say so; `label` is the button that goes on. */
  const confirmed = async (ask: boolean, title: string, body: string, label: string) => {
    if (!ask) {
      return true;
    }
    const result = await showDialog({
      title,
      body,
      defaultButton: 0,
      buttons: [Dialog.cancelButton({ label: trans.__('Cancel') }), Dialog.warnButton({ label })]
    });
    return result.button.accept;
  };

  /** Do something that may fail; the failure is told in a notification. */
  const attempt = async (what: string, action: () => Promise<unknown>): Promise<boolean> => {
    try {
      await action();
      return true;
    } catch (reason) {
      Notification.error(`${what}: ${errorText(toApiError(reason), trans)}`, { autoClose: 8000 });
      return false;
    }
  };

  const chooseJob = async (title: string, running: boolean): Promise<string> => {
    const page = await api.jobs({ limit: 50 });
    const names = page.items
      .filter(job => !running || !isTerminal(job.status.phase))
      .map(job => job.name);
    if (!names.length) {
      Notification.info(running ? trans.__('No job is running.') : trans.__('There are no jobs.'), {
        autoClose: 4000
      });
      return '';
    }
    const choice = await InputDialog.getItem({ title, items: names });
    return choice.button.accept ? (choice.value ?? '') : '';
  };

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

  const add = (
    id: string,
    label: string,
    run: (args: Args) => unknown,
    { describedBy, ...more }: Omit<CommandRegistry.ICommandOptions, 'execute' | 'label'>
  ) => {
    added.add(commands.addCommand(id, { label, execute: run, describedBy, ...more }));
  };

  add(
    CommandIDs.openPanel,
    trans.__('Show the MLOps Panel'),
    () => {
      options.labShell?.expandLeft();
      shell.activateById(PANEL_ID);
    },
    { describedBy: describe({}), icon: mlopsIcon }
  );

  add(CommandIDs.refresh, trans.__('Refresh the MLOps Panel'), () => model.refresh(), {
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

  add(
    CommandIDs.openRun,
    trans.__('Open in MLflow'),
    async args => {
      const id = text(args, 'id') || hit('run');
      const known = model.runs.items.find(run => run.run_id === id);
      let experiment = text(args, 'experiment') || known?.experiment_id || '';
      if (!id) {
        return;
      }
      const found = await attempt(trans.__('The run cannot be opened'), async () => {
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

  add(
    CommandIDs.openModel,
    trans.__('Open in MLflow'),
    args => {
      const name = nameOf('model', args);
      if (name) {
        openMlflow(route.model(name));
      }
    },
    { describedBy: describe({ name: trans.__('The model') }) }
  );

  add(
    CommandIDs.openJob,
    trans.__('Open Job…'),
    async args => {
      let name = nameOf('job', args);
      await attempt(trans.__('The jobs cannot be listed'), async () => {
        name ||= await chooseJob(trans.__('Open which job?'), false);
      });
      if (!name) {
        return;
      }
      let widget = jobs.find(one => one.content.name === name);
      if (!widget) {
        widget = createJobWidget(new JobView(name, mlops, trans, execute));
        void jobs.add(widget);
      }
      if (!widget.isAttached) {
        shell.add(widget, 'main');
      }
      shell.activateById(widget.id);
    },
    { describedBy: describe({ name: trans.__('The job; asked for when it is not given') }) }
  );

  add(
    CommandIDs.stopJob,
    trans.__('Stop Job…'),
    async args => {
      let name = nameOf('job', args);
      await attempt(trans.__('The jobs cannot be listed'), async () => {
        name ||= await chooseJob(trans.__('Stop which job?'), true);
      });
      if (!name) {
        return;
      }
      const go = await confirmed(
        model.settings.confirmStop,
        trans.__('Stop job %1?', name),
        trans.__('Its processes are asked to end, and are killed when they do not.'),
        trans.__('Stop')
      );
      if (go) {
        await attempt(trans.__('Job %1 was not stopped', name), () => api.stopJob(name));
        await model.jobs.refresh();
      }
    },
    {
      describedBy: describe({ name: trans.__('The job; asked for when it is not given') }),
      isEnabled: writable,
      icon: stopIcon
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
    add(
      id,
      label,
      async args => {
        const name = text(args, key) || hit(kind);
        if (!name) {
          return;
        }
        const known = kind === 'run' ? model.runs.items.find(run => run.run_id === name)?.name : '';
        const [title, body] = question(text(args, 'name') || known || name);
        if (await confirmed(model.settings.confirmDelete, title, body, trans.__('Delete'))) {
          await attempt(trans.__('Not deleted'), () => remove(name));
          await refresh();
        }
      },
      {
        describedBy: describe({ [key]: trans.__('What to delete') }),
        isEnabled: writable
      }
    );

  addDelete(
    CommandIDs.deleteJob,
    trans.__('Delete Job…'),
    'name',
    'job',
    name => [
      trans.__('Delete job %1?', name),
      trans.__('Its folder with logs and outputs is removed. The MLflow run stays.')
    ],
    name => api.deleteJob(name),
    () => model.jobs.refresh()
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
    name => api.deleteEndpoint(name),
    () => model.endpoints.refresh()
  );

  const callOf = (args: Args): string => {
    const name = nameOf('endpoint', args);
    const endpoint = model.endpoints.items.find(item => item.name === name);
    if (!name) {
      return '';
    }
    const serving = Object.keys(endpoint?.spec.traffic ?? {});
    const deployment =
      endpoint?.deployments.find(one => serving.includes(one.name)) ?? endpoint?.deployments[0];
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
      CommandIDs.refresh
    ]) {
      added.add(options.palette.addItem({ command, category }));
    }
  }
  if (options.restorer) {
    void options.restorer.restore(jobs, {
      command: CommandIDs.openJob,
      args: widget => ({ name: widget.content.name }),
      name: widget => widget.content.name
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
