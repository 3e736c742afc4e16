/** How far the jobs are that run, as they or their runs tell it. */
import type { IApi, IProgress, Job } from './api';
import { isTerminal } from './snapshot';

/** Running jobs whose progress is asked for. */
const MAX_JOBS = 10;

export class JobProgress {
  constructor(private readonly _api: Pick<IApi, 'run'>) {}

  /** That of a job by its name, where it is known. */
  get(name: string): IProgress | undefined {
    return this._known.get(name);
  }

  /** Read that of the first of some jobs that run; that of all others is forgotten. */
  async read(jobs: readonly Job[]): Promise<void> {
    const running = jobs
      .filter(
        ({ status }) => !isTerminal(status.phase) && status.phase !== 'Queued' && status.run_id
      )
      .slice(0, MAX_JOBS);
    const found = await Promise.all(running.map(job => this._ask(job)));
    this._known.clear();
    found.forEach((progress, i) => {
      if (progress) {
        this._known.set(running[i].name, progress);
      }
    });
  }

  private async _ask({ name, status }: Job): Promise<IProgress | null> {
    return (
      status.progress ??
      this._api.run(status.run_id).then(
        run => run.progress,
        () => this._known.get(name) ?? null
      )
    );
  }

  private readonly _known = new Map<string, IProgress>();
}
