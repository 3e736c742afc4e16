/** What every part of an endpoint's tab is given. */
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { LiveEndpoint } from '../liveendpoint';

export interface IEndpointProps {
  live: LiveEndpoint;
  trans: TranslationBundle;
  readonly: boolean;
  /** Run a command; true when it did what it should. */
  run: (command: string, args: ReadonlyPartialJSONObject) => Promise<boolean>;
}
