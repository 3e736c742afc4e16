/** What every part of an endpoint's tab is given. */
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { useEffect } from 'react';

import type { ApiError } from '../api';
import type { LiveEndpoint, Part } from '../liveendpoint';

export interface IEndpointProps {
  live: LiveEndpoint;
  trans: TranslationBundle;
  readonly: boolean;
  /** Run a command; true when it did what it should. */
  run: (command: string, args: ReadonlyPartialJSONObject) => Promise<boolean>;
}

/** Have a part read as long as the component is shown; why it could not be, if so. */
export function usePart(live: LiveEndpoint, part: Part): ApiError | undefined {
  useEffect(() => {
    live.show(part, true);
    return () => live.show(part, false);
  }, [live, part]);
  return live.partErrors.get(part);
}
