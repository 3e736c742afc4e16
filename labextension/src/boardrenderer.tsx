/** The output of `%mlops tensorboard`. */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import React from 'react';

import { chartIcon } from './icons';
import { CommandIDs } from './ids';
import { openFactory, OpenRenderer } from './openrenderer';
import { BOARD_MIME, readBoard } from './tensorboard';

export function boardFactory(options: OpenRenderer.IOptions): IRenderMime.IRendererFactory {
  return openFactory(
    {
      mimeType: BOARD_MIME,
      read: readBoard,
      command: CommandIDs.openTensorboard,
      args: ({ sources, names, workspace }) => ({ name: sources, title: names, workspace }),
      icon: chartIcon,
      label: trans => trans.__('Open TensorBoard'),
      detail: ({ names }) => <span className="jp-Mlops-muted">{names}</span>,
      testId: 'mlops-board'
    },
    options
  );
}
