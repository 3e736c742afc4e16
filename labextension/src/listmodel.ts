/** One list of the panel: its items, and whether they are there, are old, or could not be had. */
import { ISignal, Signal } from '@lumino/signaling';

import { ApiError, IPage, IPageQuery } from './api';

export type ListState = 'loading' | 'ready' | 'error';

/** The largest page that the server gives. */
const MAX_PAGE = 200;

export class ListModel<T> {
  /**
   * @param fetch - asks for one page
   * @param pageSize - items at first, and more at each `loadMore`
   */
  constructor(
    private readonly _fetch: (query: IPageQuery) => Promise<IPage<T>>,
    private _pageSize = 50
  ) {
    this._wanted = _pageSize;
  }

  state: ListState = 'loading';
  items: readonly T[] = [];
  error: ApiError | null = null;
  hasMore = false;
  loadingMore = false;

  /** Whether the items shown are from before the last failed refresh. */
  get stale(): boolean {
    return this.state === 'ready' && this.error !== null;
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  set pageSize(value: number) {
    this._wanted = Math.max(value, this._wanted - this._pageSize + value);
    this._pageSize = value;
  }

  /**
   * Read all pages that are shown. The reply of an earlier call that comes after a later one's is dropped.
   *
   * Never rejects; returns the error, if any.
   */
  async refresh(): Promise<ApiError | null> {
    const ticket = ++this._ticket;
    const items: T[] = [];
    let token: string | undefined;
    let error: ApiError | null = null;
    try {
      do {
        const limit = Math.min(MAX_PAGE, this._wanted - items.length);
        const page = await this._fetch({ limit, page_token: token });
        if (ticket !== this._ticket) {
          return null;
        }
        items.push(...page.items);
        token = page.next_token || undefined;
      } while (token && items.length < this._wanted);
    } catch (reason) {
      error = toApiError(reason);
    }
    if (ticket !== this._ticket) {
      return null;
    }
    this.error = error;
    if (error) {
      this.state = this.state === 'ready' ? 'ready' : 'error';
    } else {
      this.state = 'ready';
      this.items = items;
      this.hasMore = !!token;
    }
    this.loadingMore = false;
    this._changed.emit();
    return error;
  }

  /** Show the loading state and read again: what "Retry" and another filter do. */
  async reload(): Promise<void> {
    this.state = 'loading';
    this.items = [];
    this.error = null;
    this._wanted = this._pageSize;
    this._changed.emit();
    await this.refresh();
  }

  async loadMore(): Promise<void> {
    this._wanted += this._pageSize;
    this.loadingMore = true;
    this._changed.emit();
    await this.refresh();
  }

  dispose(): void {
    this._ticket = -1;
    Signal.clearData(this);
  }

  private readonly _changed = new Signal<this, void>(this);
  private _wanted: number;
  private _ticket = 0;
}

export function toApiError(reason: unknown): ApiError {
  return reason instanceof ApiError
    ? reason
    : new ApiError(reason instanceof Error ? reason.message : String(reason), 'error', 0);
}
