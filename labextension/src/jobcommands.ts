/** The commands for jobs: open, stop, resume, delete, restore, purge. */
import { ILayoutRestorer } from '@jupyterlab/application';
import { InputDialog, MainAreaWidget, Notification, WidgetTracker } from '@jupyterlab/apputils';
import { refreshIcon, stopIcon, terminalIcon } from '@jupyterlab/ui-components';

import type { Job } from './api';
import { Args, CommandKit, describe, text } from './commandkit';
import { chartIcon } from './icons';
import { CommandIDs } from './ids';
import { createJobWidget, JobView } from './jobview';
import { CREATE_TERMINAL, openShell } from './shell';
import { isTerminal } from './snapshot';
import { createTensorboardWidget, TensorboardFrame } from './tensorboard';

/** Add the commands; tabs of jobs are restored with the page where `restorer` is given. */
export function addJobCommands(kit: CommandKit, restorer: ILayoutRestorer | null): void {
  const { app, mlops, trans } = kit;
  const { api, model } = mlops;
  const { shell } = app;
  const tabs = new WidgetTracker<MainAreaWidget<JobView>>({ namespace: 'jupyter-mlops-jobs' });
  const boards = new WidgetTracker<MainAreaWidget<TensorboardFrame>>({
    namespace: 'jupyter-mlops-tensorboards'
  });

  /** The job of a command: given, under the pointer, or asked for among those that `fits` allows. */
  const choose = async (
    args: Args,
    question: string,
    none: string,
    fits: (job: Job) => boolean = () => true
  ): Promise<string> => {
    let name = kit.nameOf('job', args);
    await kit.attempt(trans.__('The jobs cannot be listed'), async () => {
      if (name) {
        return;
      }
      const page = await api.jobs({ limit: 200 });
      const items = page.items.filter(fits).map(job => job.name);
      if (!items.length) {
        Notification.info(none, { autoClose: 4000 });
        return;
      }
      const choice = await InputDialog.getItem({ title: question, items });
      name = choice.button.accept ? (choice.value ?? '') : '';
    });
    return name;
  };
  const NAME = describe({ name: trans.__('The job; asked for when it is not given') });
  const none = trans.__('There are no jobs.');
  const workspaceOf = (args: Args) =>
    typeof args.workspace === 'string' && args.workspace ? args.workspace : api.workspaceName;
  const revive = (name: string) => {
    tabs.filter(tab => tab.content.name === name).forEach(tab => tab.content.revive());
  };

  kit.add(
    CommandIDs.openJob,
    trans.__('Open Job…'),
    async args => {
      const name = await choose(args, trans.__('Open which job?'), none);
      if (!name) {
        return;
      }
      let widget = tabs.find(one => one.content.name === name);
      if (!widget) {
        widget = createJobWidget(new JobView(name, mlops, trans, kit.execute));
        void tabs.add(widget);
      }
      if (!widget.isAttached) {
        shell.add(widget, 'main');
      }
      shell.activateById(widget.id);
    },
    { describedBy: NAME }
  );

  kit.add(
    CommandIDs.stopJob,
    trans.__('Stop Job…'),
    async args => {
      const name = await choose(
        args,
        trans.__('Stop which job?'),
        trans.__('No job is running.'),
        job => !isTerminal(job.status.phase)
      );
      if (!name) {
        return;
      }
      const go = await kit.confirmed(
        model.settings.confirmStop,
        trans.__('Stop job %1?', name),
        trans.__('Its processes are asked to end, and are killed when they do not.'),
        trans.__('Stop')
      );
      if (go) {
        const client = api.in(workspaceOf(args));
        await kit.attempt(trans.__('Job %1 was not stopped', name), () => client.stopJob(name));
        await model.jobs.refresh();
      }
    },
    { describedBy: NAME, isEnabled: kit.writable, icon: stopIcon }
  );

  kit.add(
    CommandIDs.openShell,
    trans.__('Shell in a Job…'),
    async args => {
      const name = await choose(
        args,
        trans.__('A shell in which job?'),
        trans.__('No job is running.'),
        job => job.status.phase === 'Running'
      );
      if (name) {
        await kit.attempt(trans.__('No shell was opened'), () =>
          openShell(
            app.commands,
            name,
            Number(text(args, 'rank') || '0'),
            workspaceOf(args),
            model.status?.command
          )
        );
      }
    },
    {
      describedBy: describe({
        name: trans.__('The job; asked for when it is not given'),
        rank: trans.__('The process beside which it is; the first by default')
      }),
      // Without JupyterLab's terminals there is nowhere to show it.
      isEnabled: () => kit.writable() && app.commands.hasCommand(CREATE_TERMINAL),
      icon: terminalIcon
    }
  );

  kit.add(
    CommandIDs.openTensorboard,
    trans.__('Open in TensorBoard…'),
    async args => {
      const sources = await choose(args, trans.__('TensorBoard of which job?'), none);
      if (!sources) {
        return;
      }
      const workspace = workspaceOf(args);
      let widget = boards.find(
        one => one.content.sources === sources && one.content.workspace === workspace
      );
      if (widget) {
        shell.activateById(widget.id);
        return;
      }
      const url = api.in(workspace).openTensorboard(sources.split('+'));
      const title = text(args, 'title') || sources;
      widget = createTensorboardWidget(new TensorboardFrame(sources, workspace), title, url);
      shell.add(widget, 'main');
      shell.activateById(widget.id);
      if (await kit.attempt(trans.__('TensorBoard was not opened'), () => url)) {
        void boards.add(widget);
      } else {
        widget.dispose();
      }
    },
    {
      describedBy: describe({
        name: trans.__('Jobs or runs, joined by +; a job is asked for when it is not given'),
        title: trans.__('What the tab is called')
      }),
      isEnabled: kit.writable,
      icon: chartIcon
    }
  );

  kit.add(
    CommandIDs.resumeJob,
    trans.__('Resume Job…'),
    async args => {
      const name = await choose(
        args,
        trans.__('Resume which job?'),
        trans.__('No job has failed or was canceled.'),
        job => job.status.phase === 'Failed' || job.status.phase === 'Canceled'
      );
      if (name) {
        const client = api.in(workspaceOf(args));
        await kit.attempt(trans.__('Job %1 was not resumed', name), () => client.resumeJob(name));
        revive(name);
        await model.jobs.refresh();
      }
    },
    { describedBy: NAME, isEnabled: kit.writable, icon: refreshIcon }
  );

  kit.add(
    CommandIDs.deleteJob,
    trans.__('Delete Job…'),
    async args => {
      const name = kit.nameOf('job', args);
      if (!name) {
        return;
      }
      const go = await kit.confirmed(
        model.settings.confirmDelete,
        trans.__('Delete job %1?', name),
        trans.__('It can be restored until it is purged. The MLflow run stays.'),
        trans.__('Delete')
      );
      if (go) {
        await kit.attempt(trans.__('Not deleted'), () => api.deleteJob(name));
        await model.jobs.refresh();
      }
    },
    { describedBy: NAME, isEnabled: kit.writable }
  );

  kit.add(
    CommandIDs.restoreJob,
    trans.__('Restore Job'),
    async args => {
      const name = kit.nameOf('job', args);
      if (name) {
        await kit.attempt(trans.__('Not restored'), () => api.restoreJob(name));
        await model.jobs.refresh();
      }
    },
    { describedBy: NAME, isEnabled: kit.writable }
  );

  kit.add(
    CommandIDs.purgeJob,
    trans.__('Purge Job…'),
    async args => {
      const name = kit.nameOf('job', args);
      // There is no way back: asked whatever the settings say.
      const go =
        name &&
        (await kit.confirmed(
          true,
          trans.__('Purge job %1?', name),
          trans.__(
            'The record of job %1 and its folder with logs, checkpoints and outputs are lost for good. The MLflow run stays.',
            name
          ),
          trans.__('Purge')
        ));
      if (go) {
        await kit.attempt(trans.__('Not purged'), () => api.purgeJob(name));
        await model.jobs.refresh();
      }
    },
    { describedBy: NAME, isEnabled: kit.writable }
  );

  if (restorer) {
    void restorer.restore(boards, {
      command: CommandIDs.openTensorboard,
      args: ({ content, title }) => ({
        name: content.sources,
        workspace: content.workspace,
        title: title.label.replace('TensorBoard: ', '')
      }),
      name: ({ content }) => `${content.workspace}-${content.sources}`
    });
    void restorer.restore(tabs, {
      command: CommandIDs.openJob,
      args: widget => ({ name: widget.content.name }),
      name: widget => widget.content.name
    });
  }
}
