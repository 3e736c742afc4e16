/** What every section of the panel is given. */
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { WorkspaceModel } from '../model';

export interface ISectionProps {
  model: WorkspaceModel;
  trans: TranslationBundle;
  execute: (command: string, args: ReadonlyPartialJSONObject) => void;
  /** Told whether the section shows something that is too much for its usual share of the height. */
  needRoom?: (wanted: boolean) => void;
}

/** How often relative times are renewed; milliseconds. */
export const CLOCK = 10_000;
