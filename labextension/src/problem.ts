/** Why the panel cannot show anything at all. */
import type { ApiError } from './api';
import { compatible } from './version';

export interface IProblem {
  kind: 'missing' | 'version' | 'refused' | 'unreachable';
  /** The server's version for `version`, what it said for `refused`. */
  detail: string;
}

/** What is wrong with a server that answers; null: nothing. */
export function problemOfVersion(version: string): IProblem | null {
  return compatible(version) ? null : { kind: 'version', detail: version };
}

/** What is wrong where the server's status cannot be read; null: one that is `known` is away for a while. */
export function problemOfError(error: ApiError, known: boolean): IProblem | null {
  if (error.code === 'not_installed') {
    return { kind: 'missing', detail: '' };
  }
  if (!error.transient) {
    return { kind: 'refused', detail: error.message };
  }
  return known ? null : { kind: 'unreachable', detail: error.message };
}
