/** What jsdom lacks and Lumino or JupyterLab reads at import time. */
const page = globalThis as unknown as Record<string, unknown>;

page.DragEvent ??= class extends MouseEvent {
  dataTransfer = null;
};
page.ResizeObserver ??= class {
  observe() {}
  unobserve() {}
  disconnect() {}
};
page.matchMedia ??= () => ({ matches: false, addEventListener() {}, removeEventListener() {} });
page.requestIdleCallback ??= (callback: (deadline: unknown) => void) =>
  setTimeout(() => callback({ didTimeout: false, timeRemaining: () => 1 }), 0);
page.cancelIdleCallback ??= (handle: number) => clearTimeout(handle);
(document as unknown as Record<string, unknown>).queryCommandSupported ??= () => false;

/** Drawing leaves nothing to look at here: every call is taken, every size is 10. */
const nothing = () =>
  new Proxy({} as Record<string | symbol, unknown>, {
    get: (target, key) => target[key] ?? (() => ({ width: 10 }))
  });
page.Path2D ??= class {
  constructor() {
    return nothing();
  }
};
HTMLCanvasElement.prototype.getContext = nothing as never;

export {};
