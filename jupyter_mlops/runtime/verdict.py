"""How ranks ended: which evidence counts, who failed first, and the one line that says so."""

import re
import signal

from . import jobfolder, memory

#: What ranks say when it was another one that went: torch.distributed's errors, gloo's, NCCL's and those of sockets.
_PEER = re.compile(r"Dist(Backend|Network|Store)Error|Rendezvous\w*Error|NCCL|[Gg]loo|[Bb]roken pipe|Socket Timeout|"
                   r"[Cc]onnection (closed|reset|refused|aborted)|[Cc]losed by (the )?(remote )?peer|ended by mpirun",
                   re.ASCII)
#: What mpirun says of a rank that was killed: Open MPI, and MPICH.
_KILLED = re.compile(r"process rank (\d+) .{0,300}?on\s+signal\s+(\d+ \([^)\n]{1,40}\)|\d+)", re.S)
_TERMINATED = re.compile(r"RUNNING AT (\S+)\n=\s+(?:EXIT CODE|KILLED BY SIGNAL): (\d+)")
#: How the reason of a rank begins that mpirun has ended, and how it ends when mpirun does not say why.
ENDED, UNSAID = "ended by mpirun", "another rank failed, or its machine went"


class Rank:
    """What is known of one rank. ``seen`` is when it was last seen running."""

    def __init__(self, index):
        self.index = index
        self.forget()

    def forget(self):
        """Nothing is known of it."""
        self.pid = None
        self.started = ""
        self.running = False
        self.seen = 0.0
        self.exit_code = None
        self.error = ""
        self.traceback = []
        self.exit_time = None
        self.peak = 0  # bytes of memory, as far as they were seen

    def public(self):
        """The rank's entry in ``state.json``."""
        return {"rank": self.index, "pid": self.pid, "start_time": self.started,
                "exit_code": None if self.running else self.exit_code}


def read_exit(attempt, rank, size, told):
    """Fill in how a rank ended.

    Args:
        size: number of ranks.
        told: the exit code that the kernel gave to the supervisor, or None.
    """
    entry = jobfolder.read_json(attempt.exit_path(rank.index))
    own = entry.get("code") if isinstance(entry.get("code"), int) else None
    if told is None and size > 1:
        agent = jobfolder.read_json(attempt.exit_path("agent"))
        told = ((agent.get("failures") or {}).get(str(rank.index)) or {}).get("code")
        if told is None and agent.get("code") == 0:
            told = 0
    # A crash after the rank's own last word counts; else its own word says more (signals of a shell command).
    rank.exit_code = told if told is not None and (told < 0 or not own) else own
    if own is not None:
        rank.error = str(entry.get("error") or "")
        lines = entry.get("traceback")
        rank.traceback = [str(line) for line in lines][-100:] if isinstance(lines, list) else []
        rank.exit_time = entry.get("time")


def peer_went(text):
    """Whether an error says that another rank, or the way to it, is gone."""
    return bool(_PEER.search(text or ""))


def own_failure(code, error):
    """Whether a rank of an elastic attempt failed by itself, rather than because another one went or came."""
    if code in (None, 0, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGABRT):
        return False  # NCCL aborts a process whose peers are gone
    return not peer_went(error)


class NotStarted(Exception):
    """Why ranks did not start, in one line."""


def mpirun_said(path):
    """Why mpirun has ended the ranks, as far as its log says."""
    said = jobfolder.read_log(path, -8000, 8000)[0].decode("utf-8", "replace")
    why = UNSAID
    if (found := _KILLED.search(said)) is not None:
        why = "rank %s was killed by signal %s" % found.groups()
    elif (found := _TERMINATED.search(said)) is not None:
        why = "a rank on %s ended with %s" % found.groups()
    return ENDED + ": " + why


def culprit(ranks):
    """The rank that failed first; one that was only told to end (SIGTERM) comes last."""

    def order(rank):
        return (rank.exit_code == -signal.SIGTERM, rank.exit_time or rank.seen or float("inf"), rank.index)

    return min((rank for rank in ranks if rank.exit_code != 0), key=order)


def explain(attempt, rank, size, killed=False):
    """One line: which rank ended how, and why.

    Args:
        killed: whether the kernel has killed for lack of memory while the ranks ran.
    """
    code = rank.exit_code
    who = "rank %d " % rank.index if size > 1 else ""
    lack = "; meanwhile the kernel killed a process for lack of memory" if killed else ""
    if rank.pid is None and size > 1:
        agent = jobfolder.read_json(attempt.exit_path("agent"))
        text = agent.get("error") or last_line(attempt.agent_log)
        return "the ranks did not start" + (": %s" % text if text else "")
    if rank.error.startswith(ENDED):  # by SIGKILL, perhaps, which says nothing
        return "%swas %s%s" % (who, rank.error, lack)
    if code is None:
        return "%sended without a word while no supervisor watched: exit unknown" % who
    if code < 0:
        try:
            name = " (%s)" % signal.Signals(-code).name
        except ValueError:
            name = ""
        was = who and who + "was "
        if code == -signal.SIGKILL and killed:
            used = " used %s" % memory.of(rank.peak, memory.limit()) if rank.peak else " had too little"
            return "%skilled by the kernel for lack of memory (out of memory): rank %d%s" % (was, rank.index, used)
        seen = ", memory %s" % memory.of(rank.peak, memory.limit()) if code == -signal.SIGKILL and rank.peak else ""
        return "%skilled by signal %d%s%s" % (was, -code, name, seen)
    text = rank.error or ("" if rank.pid else last_line(attempt.log_path(0)))
    return "%sended with exit code %d%s%s" % (who, code, ": %s" % text if text else "", lack)


def show_agent_log(attempt, rank=0):
    """Nobody reads the agent's log, so show its end in the first rank's when there is nothing else to see."""
    data, _, _, size = jobfolder.read_log(attempt.agent_log, -8000, 8000)
    if size and not jobfolder.read_log(attempt.log_path(rank), 0, 1)[3]:
        jobfolder.write_file(attempt.log_path(rank), data, False)


def last_line(path):
    """The last line of a log that is not blank."""
    data = jobfolder.read_log(path, -4000, 4000)[0]
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
