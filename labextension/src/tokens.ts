/** What this package offers to other extensions. */
import { Token } from '@lumino/coreutils';

import type { IApi } from './api';
import type { ChartStates } from './chartstate';
import type { WorkspaceModel } from './model';

export interface IMlops {
  /** The REST client, for this page's Jupyter server. */
  readonly api: IApi;
  /** Server state, lists and changes. */
  readonly model: WorkspaceModel;
  /** How the charts of each output are looked at. */
  readonly states: ChartStates;
}

export const IMlops = new Token<IMlops>(
  'jupyter-mlops:IMlops',
  'Runs, jobs, models and endpoints of this Jupyter server.'
);
