/** The output of `%mlops shell`. */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { terminalIcon } from '@jupyterlab/ui-components';
import React from 'react';

import { CommandIDs } from './ids';
import { openFactory, OpenRenderer } from './openrenderer';
import { readShell, SHELL_MIME, shellLine } from './shell';

export function shellFactory(options: OpenRenderer.IOptions): IRenderMime.IRendererFactory {
  return openFactory(
    {
      mimeType: SHELL_MIME,
      read: readShell,
      command: CommandIDs.openShell,
      args: ({ name, rank, workspace }) => ({ name, rank: String(rank), workspace }),
      icon: terminalIcon,
      label: trans => trans.__('Open a shell'),
      detail: ({ name, rank, workspace }) => <code>{shellLine(name, rank, workspace)}</code>,
      testId: 'mlops-shell'
    },
    options
  );
}
