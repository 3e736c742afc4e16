import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

/** The panel and its commands. */
const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-mlops:plugin',
  description: 'Runs, jobs, models and endpoints in JupyterLab.',
  autoStart: true,
  activate: (app: JupyterFrontEnd) => undefined
};

export default plugin;
