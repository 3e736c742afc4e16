/** Identifiers that files share. */

export const NAMESPACE = 'jupyter-mlops';
export const PANEL_ID = 'jupyter-mlops-panel';

export namespace CommandIDs {
  export const openPanel = 'jupyter-mlops:open-panel';
  export const openMlflow = 'jupyter-mlops:open-mlflow';
  export const openRun = 'jupyter-mlops:open-run';
  export const openModel = 'jupyter-mlops:open-model';
  export const openJob = 'jupyter-mlops:open-job';
  export const stopJob = 'jupyter-mlops:stop-job';
  export const openShell = 'jupyter-mlops:open-shell';
  export const openTensorboard = 'jupyter-mlops:open-tensorboard';
  export const resumeJob = 'jupyter-mlops:resume-job';
  export const restoreJob = 'jupyter-mlops:restore-job';
  export const purgeJob = 'jupyter-mlops:purge-job';
  export const compareRuns = 'jupyter-mlops:compare-runs';
  export const deleteJob = 'jupyter-mlops:delete-job';
  export const deleteRun = 'jupyter-mlops:delete-run';
  export const deleteModel = 'jupyter-mlops:delete-model';
  export const deleteEndpoint = 'jupyter-mlops:delete-endpoint';
  export const openEndpoint = 'jupyter-mlops:open-endpoint';
  export const setTraffic = 'jupyter-mlops:set-traffic';
  export const startCanary = 'jupyter-mlops:start-canary';
  export const promoteCanary = 'jupyter-mlops:promote-canary';
  export const rollbackTraffic = 'jupyter-mlops:roll-back-traffic';
  export const rotateKey = 'jupyter-mlops:rotate-key';
  export const createToken = 'jupyter-mlops:create-token';
  export const deleteDeployment = 'jupyter-mlops:delete-deployment';
  export const copyCall = 'jupyter-mlops:copy-call';
  export const insertCall = 'jupyter-mlops:insert-call';
  export const refresh = 'jupyter-mlops:refresh';
}
