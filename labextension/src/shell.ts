/** A shell beside a process of a job: a terminal of JupyterLab in which our command line runs. */
import { CommandRegistry } from '@lumino/commands';

export const SHELL_MIME = 'application/vnd.jupyter-mlops.shell+json';
export const CREATE_TERMINAL = 'terminal:create-new';

const NAME = /^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$/;
const WORKSPACE = /^[A-Za-z0-9._-]{1,64}$/;

export interface IShell {
  workspace: string;
  name: string;
  rank: number;
  askedAt: number;
}

/** What a notebook holds; null when it is no shell of ours. Nothing else than names and numbers goes on. */
export function readShell(data: unknown): IShell | null {
  if (typeof data !== 'object' || data === null) {
    return null;
  }
  const { version, workspace, name, rank, asked_at } = data as Record<string, unknown>;
  const valid =
    version === 1 &&
    typeof name === 'string' &&
    NAME.test(name) &&
    typeof workspace === 'string' &&
    WORKSPACE.test(workspace) &&
    Number.isInteger(rank) &&
    (rank as number) >= 0 &&
    (rank as number) < 1_000_000;
  return valid
    ? {
        workspace,
        name,
        rank: rank as number,
        askedAt: typeof asked_at === 'number' ? asked_at : 0
      }
    : null;
}

/** How our command line is called where nothing else is known. */
const COMMAND = 'jupyter mlops';

/** The line that opens it; `command` is how the server says that our command line is called in its terminals. */
export function shellLine(
  name: string,
  rank: number,
  workspace: string,
  command: string = COMMAND
): string {
  const where = workspace === 'default' ? '' : `JUPYTER_MLOPS_WORKSPACE=${workspace} `;
  return `${where}${command} shell ${name} --rank ${rank}`;
}

interface ITerminal {
  content: {
    session: { send(message: { type: 'stdin'; content: string[] }): void };
  };
}

/**
 * Open a terminal with it.
 *
 * @throws Error - there are no terminals here, or the names are none.
 */
export async function openShell(
  commands: CommandRegistry,
  name: string,
  rank: number,
  workspace: string,
  command: string = COMMAND
): Promise<void> {
  if (!NAME.test(name) || !WORKSPACE.test(workspace) || !Number.isInteger(rank) || rank < 0) {
    throw new Error(`${name} is no name of a job`);
  }
  const terminal = (await commands.execute(CREATE_TERMINAL)) as ITerminal | undefined;
  if (!terminal) {
    throw new Error('JupyterLab opened no terminal');
  }
  terminal.content.session.send({
    type: 'stdin',
    content: [`${shellLine(name, rank, workspace, command)}\r`]
  });
}
