"""The supervisor: one process per attempt that starts the ranks, watches them and writes ``state.json``.

    python -m jupyter_mlops.runtime.supervisor FOLDER ATTEMPT [adopt]

It needs nobody: neither control plane nor Jupyter. Only one supervises an attempt (a lock), and an attempt is started
once: as soon as a rank has signed in, a later supervisor adopts what runs instead of starting anything. Whoever starts
a supervisor passes ``{"interpreter": PATH, "env": {…}, "timeout": seconds or null}`` as JSON on its standard input; one
that adopts needs none.

Exit codes: 0 the attempt has ended; 3 another one supervises it; 4 there is nothing to adopt; 5 bad input.
"""

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time

from . import jobfolder, memory, processes, verdict

HEARTBEAT = 2.0
#: Seconds between looks: while the ranks start, while they run, while they are being ended.
_STARTING, _RUNNING, _ENDING = 0.05, 0.5, 0.1
#: Seconds that processes which outlive their rank have between SIGTERM and SIGKILL.
LEFTOVER_GRACE = 5.0
_KILL_PATIENCE = 10.0
_LOCK_PATIENCE = 2.0
#: Seconds after which logs are bounded and usage is sampled; most short jobs need neither.
_MEASURE_AFTER = 1.0
#: Bytes of a log that need no bound, the least that can be asked for.
_LITTLE = 1 << 20


class Supervisor:
    """Drives one attempt from its start, or from wherever it is found, to its end."""

    def __init__(self, folder, number):
        self.job = jobfolder.JobFolder(folder)
        self.attempt = self.job.attempt(number)
        self.spec = self.job.spec()
        self.size = self.ranks_of(self.spec)
        self.join(0, 1, "")
        self.boot = processes.boot_id()
        self.me = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": self.boot}
        self.child = None  # type: int | None # pid of the process that this supervisor started: rank 0, or the agent
        self.codes = {}  # pid → exit code of what was our child
        self.peaks = {}  # pid → the most memory in bytes that it, or one of its children, had
        self.phase = "starting"
        self.reason = ""
        self.started_at = None
        self.stopping = False
        self.stop_reason = ""  # why the ranks are being ended
        self.cause = ""  # the same in one word, where it matters: "timeout"
        self.timeout = None  # seconds that the ranks may run
        self.begun = processes.clock()  # when they began
        self.kills = None  # how many processes the kernel had killed for lack of memory by then
        self.meters = None  # what bounds logs and samples usage
        self.signal = 0
        self.kill_at = None  # type: float | None # when SIGKILL follows SIGTERM; None while nothing is being ended
        self.termed = {}  # pid → start time of who got SIGTERM
        self.agent_terms = False  # the agent sends SIGTERM as long as it lives
        self.restarted = False
        self.provision = None  # what sees to the job's named inputs
        self.written = (None, 0.0)  # type: tuple[dict | None, float] # the last state and when it was written
        self.lock = -1

    @staticmethod
    def ranks_of(spec):
        """How many ranks a spec wants on each machine."""
        distribution = spec.get("distribution") or {}
        return max(int(distribution.get("process_count_per_instance") or 1), 1)

    def join(self, node, nodes, address, least=0, key=""):
        """Be one of several machines that run the attempt together; before anything else.

        Args:
            node: number of this one, from 0.
            nodes: how many there are, each with ``size`` ranks.
            address: host names, with ``%d`` for the number, and the port at which machine 0 brings all together.
            least: with how many of them the ranks begin; 0: with all, and none may go.
            key: what they know each other by, where one gives orders to the others.
        """
        self.key = key
        self.node, self.nodes, self.address, self.least = node, nodes, address, least
        self.world = self.size * nodes
        self.ranks = [verdict.Rank(node * self.size + index) for index in range(self.size)]

    # -- life

    def acquire(self):
        """Take the attempt's lock. Ranks that are starting hold it for a moment, so be patient."""
        jobfolder.private_folder(self.attempt.path)
        fd = os.open(self.attempt.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.lock = fd
                return True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > until:
                    os.close(fd)
                    return False
            time.sleep(0.02)

    def run(self, order):
        """Supervise to the end. ``order``: what to start with, None to adopt only. Returns the exit code."""
        state = self.attempt.state()
        if state.get("phase") in jobfolder.TERMINAL:
            return 0
        self._listen()
        if self.attempt.started():
            self.started_at = state.get("started_at")
            self.restarted = self._other_boot(state)
            self._recall(state)
            if state.get("phase") == "stopping":
                self._stop(self.job.stop_wish(self.attempt.number), state.get("reason") or "stopped",
                           state.get("cause") or "")
        elif order is None:
            return 4
        elif self.job.stop_wish(self.attempt.number) is not None:
            self._end("canceled", "stopped before it started")
            return 0
        else:
            try:
                self._remember(order)
                if not self._provide(order):
                    return 0
                self._start(order)
            except OSError as error:
                self._end("failed", "cannot start %s: %s" % (order["interpreter"], error.strerror or error))
                return 0
            self._write()  # not before the ranks are on their way
        processes.adopt_orphans()
        while not self._look():
            self._wait()
        if self.provision is not None:
            self.provision.release()
        return 0

    def _listen(self):
        self.wake, out = os.pipe()
        for fd in (self.wake, out):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # the stop file is there
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        self.signal = number

    def _wait(self):
        """Sleep until a child ends, a signal comes or it is time to look again."""
        pause = _ENDING if self.kill_at is not None else _STARTING if self.phase == "starting" else _RUNNING
        if self.timeout is not None and not self.stopping:
            pause = max(min(pause, self.begun + self.timeout - processes.clock()), 0.0)
        try:
            if select.select([self.wake], [], [], pause)[0]:
                os.read(self.wake, 512)
        except OSError:
            pass

    def _other_boot(self, state):
        """Whether the machine was restarted since the attempt signed in."""
        boots = {state.get("boot_id")} | {self.attempt.signed_in(who).get("boot_id") for who in self._all()}
        return any(boot and boot != self.boot for boot in boots)

    def _all(self):
        return ["agent", *(rank.index for rank in self.ranks)] if self.world > 1 else [0]

    # -- limits

    def _remember(self, order):
        """Keep what a supervisor that adopts must know; before any rank is started."""
        self.timeout = order.get("timeout")
        self.begun = processes.clock()
        self.kills = memory.kills()
        limits = {"timeout": self.timeout, "clock": self.begun, "kills": self.kills}
        jobfolder.write_json(self.attempt.limits_path, limits, durable=False)

    def _recall(self, state):
        limits = jobfolder.read_json(self.attempt.limits_path)
        self.timeout, self.kills = limits.get("timeout"), limits.get("kills")
        if self.restarted:  # the clock has begun anew
            self.begun = processes.clock()
            self.timeout = None
        else:
            self.begun = limits.get("clock", self.begun)

    def _seconds(self, ended):
        """How long the ranks ran until they ended at ``ended``, seconds since the epoch."""
        ran = processes.clock() - self.begun
        if self.started_at and (self.child is None or self.restarted):
            # Nobody may have watched for long: then the calendar knows better.
            ran = ended - self.started_at if self.restarted else min(ran, ended - self.started_at)
        return round(max(ran, 0.0), 3)

    def _measure(self, last=False):
        """Bound the logs, and note what the ranks use; of a short job only what is too much at its end."""
        if self.meters is None:
            if last and all(self.attempt.log_size(rank.index) <= _LITTLE for rank in self.ranks):
                return
            if not last and processes.clock() - self.begun < _MEASURE_AFTER:
                return
            from . import logfile, usage

            limit = (self.spec.get("limits") or {}).get("log_bytes") or 1 << 30
            logs = [self.attempt.log_path(rank.index) for rank in self.ranks]
            self.meters = logfile.Bound(logs, limit, self._say), usage.Usage(self.attempt.usage_path, self.size)
        self.meters[0].look(now=last)
        self.meters[1].sample({rank.index: rank.pid for rank in self.ranks if rank.running})

    # -- start

    def _provide(self, order):
        """Have the job's named inputs brought here first; False when the attempt has ended over it."""
        if not self.spec.get("inputs") and not self.spec.get("outputs"):
            return True
        from . import data, provision

        provided = provision.Provision(self.job, self.attempt, self.spec, order,
                                       self.attempt.log_path(self.ranks[0].index))
        try:
            provided.begin()
            while provided.child is not None and provided.child not in self.codes:
                self.reason = provided.told()
                self._write()
                self._wait()
                self._reap()
                self._check_stop()
                if self.stopping:
                    provided.kill()
                    provided.release()
                    phase = "failed" if self.cause == "timeout" else "canceled"
                    self._end(phase, self.stop_reason if self.cause else "stopped before it started")
                    return False
            order["env"] = dict(order["env"], **provided.ended(self.codes.get(provided.child)))
        except data.DataError as error:
            provided.release()
            self._end("failed", str(error))
            return False
        self.reason = ""
        self.provision = provided
        return True

    def _prepare(self, order):
        """Make what the ranks find in the job folder; returns their environment."""
        cell = self.spec.get("cell")
        if cell is not None:
            jobfolder.private_folder(os.path.dirname(self.job.cell_path))
            jobfolder.write_file(self.job.cell_path, str(cell.get("source", "")).encode("utf-8", "replace"), False)
        jobfolder.private_folder(self.job.outputs)
        os.chdir(self.attempt.path)
        return dict(order["env"], **{jobfolder.MARKER: self.job.path})

    def _start(self, order):
        env = self._prepare(order)
        what, number, log = "launch", "0", self.attempt.log_path(0)
        if self.world > 1:
            what, number, log = "agent", str(self.size), self.attempt.agent_log
        if self.nodes > 1:
            count = "%d:%d" % (self.least, self.nodes) if self.least else str(self.nodes)
            env[jobfolder.NODES] = "/".join([str(self.node), count, self.address])
            if self.key:
                env[jobfolder.NODES_KEY] = self.key
        arguments = [order["interpreter"], "-u", "-m", "jupyter_mlops.runtime." + what, self.job.path,
                     str(self.attempt.number), number, str(self.lock)]
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.set_inheritable(self.lock, True)
        try:
            self.child = os.posix_spawn(
                order["interpreter"], arguments, env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM], setsigmask=[],
            )
        finally:
            os.set_inheritable(self.lock, False)

    # -- look

    def _look(self):
        """One round: see what is so, act, write it down. Returns whether the attempt has ended."""
        self._reap()
        up = self._observe()
        if self.phase == "starting" and any(rank.pid for rank in self.ranks):
            self.phase = "running"
        if up:
            self._check_stop()
            self._check_failure()
            if self.kill_at is not None:
                self._press()
            self._measure()
            self._write()
            return False
        if self._leftovers():
            self._write()
            return False
        self._finish()
        return True

    def _reap(self):
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.codes[pid] = os.waitstatus_to_exitcode(status)
            self.peaks[pid] = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _observe(self):
        """Look at ranks and agent; returns whether one of them runs."""
        now = time.time()
        agent = self._agent_runs()
        up = agent
        for rank in self.ranks:
            if self.least and rank.pid is not None and not rank.running:
                entry = self.attempt.signed_in(rank.index)
                if entry and entry["pid"] != rank.pid:  # others went or came, and it began again
                    rank.forget()
            if rank.pid is None:
                entry = self.attempt.signed_in(rank.index)
                if not entry:
                    continue
                rank.pid, rank.started = entry["pid"], str(entry.get("start_time") or "")
                rank.running = True
                rank.seen = entry.get("time") or now
                if self.started_at is None:
                    self.started_at = entry.get("time")
            if not rank.running:
                continue
            rank.running = not self.restarted and rank.pid not in self.codes and processes.alive(rank.pid, rank.started)
            if rank.running:
                rank.seen, up = now, True
        for rank in self.ranks:
            if not rank.running and rank.exit_time is None and (rank.pid or not agent):
                self._read_exit(rank)
        return up

    def _agent_runs(self):
        """Whether the process lives that must end before ranks that never signed in count as ended."""
        if self.restarted:
            return False
        if self.child is not None:
            return self.child not in self.codes
        if self.world == 1:
            return False
        entry = self.attempt.signed_in("agent")
        return processes.alive(entry.get("pid"), entry.get("start_time"))

    def _read_exit(self, rank):
        told = self.codes.get(rank.pid) if rank.pid else None
        if told is None and self.world == 1:
            told = self.codes.get(self.child)
        verdict.read_exit(self.attempt, rank, self.world, told)

    # -- act

    def _check_stop(self):
        if self.stopping:
            return
        grace = self.job.stop_wish(self.attempt.number)
        if grace is not None:
            self._stop(grace, "stopped")
        elif not os.path.isdir(self.attempt.path):
            self._stop(None, jobfolder.DELETED)  # nobody could see it, or stop it, any more
        elif self.signal and self._failing():
            # Others are ended because of it, and so are we: it stays the reason.
            self.kill_at = min(self.kill_at or float("inf"), time.monotonic() + self._grace())
            self.agent_terms, self.signal = False, 0
        elif self.signal:
            self._stop(None, "stopped: the supervisor got signal %d" % self.signal)
        elif self.timeout is not None and processes.clock() - self.begun >= self.timeout:
            total = (self.spec.get("limits") or {}).get("timeout") or self.timeout
            self._stop(None, "ran longer than limits.timeout (%g s)" % total, "timeout")

    def _failing(self):
        """Whether the ranks were failing by themselves before anybody told them to end."""
        for rank in self.ranks:
            if rank.pid is None or rank.running:
                continue
            if verdict.own_failure(rank.exit_code, rank.error) or (
                    not self.least and rank.exit_code == -signal.SIGKILL):
                return True
        mpi = (self.spec.get("distribution") or {}).get("type") == "mpi"
        return mpi and not verdict.mpirun_said(self.attempt.agent_log).endswith(verdict.UNSAID)

    def _stop(self, grace, reason, cause=""):
        self.stopping = True
        self.stop_reason = reason
        self.cause = cause
        self.phase = "stopping"
        self.agent_terms = False
        self.kill_at = time.monotonic() + (self._grace() if grace is None else grace)

    def _grace(self):
        try:
            return float((self.spec.get("limits") or {}).get("grace", 10.0))
        except (TypeError, ValueError):
            return 10.0

    def _check_failure(self):
        """When a rank fails, the others only wait for it in vain.

        The agent sends them SIGTERM, but its patience is longer than ours; without an agent we do both.
        """
        if self.world == 1 or self.kill_at is not None:
            return
        agent = self._agent_runs()
        if self.least and agent:
            self._check_own_failure()
            return
        harmless = (0, None) if agent else (0,)  # None: ended without a word, which only the agent can judge
        if any(rank.pid and not rank.running and rank.exit_code not in harmless for rank in self.ranks):
            self.kill_at = time.monotonic() + self._grace()
            self.agent_terms = agent

    def _check_own_failure(self):
        """In an elastic attempt the agent begins again when others went; what failed by itself ends all."""
        for rank in self.ranks:
            if not rank.running and rank.exit_code is not None:
                killed = self.kills is not None and (memory.kills() or 0) > self.kills
                if verdict.own_failure(rank.exit_code, rank.error) or (killed and rank.exit_code == -signal.SIGKILL):
                    self.kill_at = time.monotonic() + self._grace()
                    self.agent_terms = False

    def _family(self):
        living = [rank.pid for rank in self.ranks if rank.running]
        roots = [os.getpid(), *living]
        if self.world > 1 and self.child is None and self._agent_runs():
            roots.append(self.attempt.signed_in("agent")["pid"])
        return processes.family(roots, set(living), self.job.marker)

    def _press(self):
        """SIGTERM to whom it was not sent yet; SIGKILL to all once the grace is over. Returns who is left."""
        family = self._family()
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            for pid, started in family.items():
                processes.send(pid, started, signal.SIGKILL)
        elif not (self.agent_terms and self._agent_runs()):
            for pid, started in family.items():
                if self.termed.get(pid) != started:
                    self.termed[pid] = started
                    processes.send(pid, started, signal.SIGTERM)
                    processes.send(pid, started, signal.SIGCONT)
        return family

    def _leftovers(self):
        """End what outlives the ranks; returns whether something is left that is worth waiting for."""
        now = time.monotonic()
        if self.kill_at is None:
            self.kill_at = now + min(self._grace(), LEFTOVER_GRACE)
        family = self._press()
        if family and now > self.kill_at + _KILL_PATIENCE:
            self._say("these processes cannot be ended: %s" % sorted(family))
            return False
        self._reap()
        return bool(family)

    # -- write

    def _write(self):
        """Write the state when it changed, or as a heartbeat."""
        state = {
            "phase": self.phase, "world_size": self.world, "started_at": self.started_at, "ended_at": None,
            "exit_code": None, "failed_rank": None, "reason": self.reason or self.stop_reason, "cause": self.cause,
            "ranks": [rank.public() for rank in self.ranks if rank.pid or rank.exit_code is not None],
        }
        state.update(self.me)
        old, at = self.written
        changed = state != old
        if not changed and time.monotonic() - at < HEARTBEAT:
            return
        try:
            self.attempt.write_state(dict(state, heartbeat=time.time()), durable=changed)
            self.written = (state, time.monotonic())
        except OSError as error:
            self._say("state not written: %s" % error)

    def _finish(self):
        """Draw the conclusion of how the ranks ended, and write it."""
        self._measure(last=True)  # nobody looks again
        self.attempt.sweep()
        for rank in self.ranks:
            self._read_exit(rank)
        codes = [rank.exit_code for rank in self.ranks]
        times = [rank.exit_time for rank in self.ranks if rank.exit_time]
        ended = max(times) if times and self.child is None else time.time()
        unfinished = any(code != 0 for code in codes)
        if self.stopping and self.cause == "timeout":
            self._end("failed", self.stop_reason, ended, codes[0])
        elif self.stopping or (unfinished and self.restarted and self.job.stop_wish(self.attempt.number) is not None):
            self.cause = "deleted" if self.stop_reason == jobfolder.DELETED else ""
            self._end("canceled", self.stop_reason or "stopped", ended, codes[0])
        elif not unfinished:
            self._end("completed", "", ended, 0)
        elif self.restarted:
            self.cause = "reboot"
            self._end("failed", "the machine restarted", ended)
        else:
            rank = verdict.culprit(self.ranks)
            rank.peak = max(self.peaks.get(rank.pid, 0), self.meters[1].peak(rank.index) if self.meters else 0)
            killed = self.kills is not None and (memory.kills() or 0) > self.kills
            self.cause = "memory" if killed else ""
            reason = verdict.explain(self.attempt, rank, self.world, killed)
            if rank.pid is None and self.world > 1:
                self._show_agent_log()
            self._end("failed", reason, ended, rank.exit_code, rank.index if rank.pid else None, rank.traceback)

    def _show_agent_log(self):
        try:
            verdict.show_agent_log(self.attempt, self.ranks[0].index)
        except OSError as error:
            self._say(str(error))

    def _end(self, phase, reason, ended=None, code=None, failed=None, traceback=()):
        """Write the terminal state; tries until it is written, because nobody else can."""
        self.phase, self.reason = phase, reason
        ended = ended or time.time()
        state = {
            "phase": phase, "world_size": self.world, "started_at": self.started_at, "ended_at": ended,
            "seconds": self._seconds(ended) if self.started_at else 0.0, "exit_code": code, "failed_rank": failed,
            "reason": reason, "cause": self.cause, "traceback": list(traceback),
            "ranks": [rank.public() for rank in self.ranks if rank.pid or rank.exit_code is not None],
            "heartbeat": time.time(),
        }
        state.update(self.me)
        while True:
            try:
                self.attempt.write_state(state)
                return
            except OSError as error:
                if not os.path.isdir(self.attempt.path):
                    return  # the job was deleted
                self._say("the end could not be written: %s" % error)
                time.sleep(1.0)

    def _say(self, text):
        try:
            sys.stderr.write("%s %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text))
            sys.stderr.flush()
        except OSError:
            pass


def _read_order():
    """What the starter passed on standard input, or None when it is not whole."""
    chunks = []
    while True:
        chunk = os.read(0, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    try:
        order = json.loads(b"".join(chunks))
        return order if order["interpreter"] and isinstance(order["env"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def main(arguments):
    """Run as ``FOLDER ATTEMPT [adopt]``; returns the exit code."""
    folder, number = arguments[0], arguments[1]
    order = None
    if arguments[2:] != ["adopt"]:
        order = _read_order()
        if order is None:
            return 5
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    supervisor = Supervisor(folder, number)
    if not supervisor.acquire():
        return 3
    return supervisor.run(order)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
