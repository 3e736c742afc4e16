import { MimeModel } from '@jupyterlab/rendermime';
import { Widget } from '@lumino/widgets';
import { describe, expect, it, vi } from 'vitest';

import { OpenRenderer } from '../src/openrenderer';
import { boardFactory } from '../src/boardrenderer';
import { BOARD_MIME, readBoard, TensorboardFrame } from '../src/tensorboard';
import { drawn } from './fakes';

describe('a TensorBoard that was asked for', () => {
  const data = (more: object = {}) => ({
    version: 1,
    workspace: 'default',
    names: 'digits, ~runs',
    path: 'tensorboard/digits+~0123456789abcdef/',
    asked_at: Date.now(),
    ...more
  });
  const show = async (given: object) => {
    const execute = vi.fn();
    const view = boardFactory({ execute }).createRenderer({
      mimeType: BOARD_MIME
    } as never) as OpenRenderer<never>;
    await drawn(async () => {
      Widget.attach(view, document.body);
      await view.renderModel(new MimeModel({ data: { [BOARD_MIME]: given as never } }));
    });
    return { view, execute };
  };

  it('opens once, by itself only when it was asked for just now', async () => {
    const given = data();
    const first = await show(given);
    expect(first.execute).toHaveBeenCalledWith('jupyter-mlops:open-tensorboard', {
      name: 'digits+~0123456789abcdef',
      title: 'digits, ~runs',
      workspace: 'default'
    });
    const second = await show(given);
    expect(second.execute).not.toHaveBeenCalled();
    const old = await show(data({ asked_at: Date.now() - 60_000 }));
    expect(old.execute).not.toHaveBeenCalled();
    old.view.node.querySelector<HTMLElement>('[data-testid=mlops-board-open]')!.click();
    expect(old.execute).toHaveBeenCalledTimes(1);
    [first, second, old].forEach(({ view }) => view.dispose());
  });

  it('takes nothing else than names from a notebook', () => {
    for (const path of ['tensorboard/../x/', '//evil.example/', 'tensorboard/a b/', 'x/a/', 7]) {
      expect(readBoard(data({ path }))).toBeNull();
    }
    expect(readBoard(data({ workspace: '../x' }))).toBeNull();
    expect(readBoard(data({ version: 2 }))).toBeNull();
    expect(readBoard(null)).toBeNull();
  });

  it('is dark where the page is', () => {
    const frame = new TensorboardFrame('digits', 'default');
    frame.open('/tensorboard/digits/');
    expect(frame.url).toBe('/tensorboard/digits/');
    document.body.dataset.jpThemeLight = 'false';
    frame.open('/tensorboard/digits/');
    expect(frame.url).toBe('/tensorboard/digits/?darkMode=true');
    delete document.body.dataset.jpThemeLight;
    frame.dispose();
  });
});
