"""Find, start and adopt the control plane of a workspace, and get a token from it.

The URL that a kernel holds is a name, not an address: before a token is sent anywhere, the unix socket of the
workspace, whose owner is checked, is asked which port is ours. So a control plane that came back on another port is
followed, and whoever took the old port never sees a token.

Environment:
    JUPYTER_MLOPS_HOME       the workspace folder
    JUPYTER_MLOPS_WORKSPACE  its name (``default``)
    JUPYTER_MLOPS_URL        ``http://127.0.0.1:PORT/jupyter-mlops``
    JUPYTER_MLOPS_TOKEN      only where no socket reaches (another machine)
    JUPYTER_MLOPS_JOB        name of the job that this process belongs to; such a process never starts a control plane
"""

import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256

from .processes import alive, start_time

VERSION_HEADER = "Jupyter-Mlops-Version"
#: Holds the error as JSON where an answer has no body that its client sees.
ERROR_HEADER = "Jupyter-Mlops-Error"
START_TIMEOUT = 20.0
#: Seconds after which a silent holder of the lock is named instead of waited for.
SILENT_AFTER = 10.0


class LocateError(Exception):
    """No control plane can be reached or started; ``hint`` says what to do."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self):
        return "%s (%s)" % (self.message, self.hint) if self.hint else self.message


class Place:
    """Where a workspace lives: ``home`` (0700 folder), ``name``, the private folder for its sockets."""

    def __init__(self, home, name):
        self.home = os.path.abspath(home)
        self.name = name

    def __repr__(self):
        return "Place(%r, %r)" % (self.home, self.name)

    @property
    def runtime_dir(self):
        """Folder of the sockets, short enough for a socket path; made by :func:`private_dir`."""
        digest = sha256(os.fsencode(os.path.realpath(self.home))).hexdigest()[:12]
        base = os.environ.get("XDG_RUNTIME_DIR")
        if not base or len(os.fsencode(base)) > 60 or not os.path.isdir(base) or not os.access(base, os.W_OK):
            base = None
        if base is None:
            uid = os.getuid() if hasattr(os, "getuid") else 0
            base = os.path.join("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), "jupyter-mlops-%d" % uid)
            return os.path.join(base, digest)
        return os.path.join(base, "jupyter-mlops-" + digest)

    @property
    def socket_path(self):
        """Path of the control socket: the running control plane's own record first, then the computed one."""
        record = read_json(os.path.join(self.home, "control.json"))
        path = record.get("socket")
        if isinstance(path, str) and os.path.exists(path):
            return path
        return os.path.join(self.runtime_dir, "control.sock")


def read_json(path):
    """The JSON object in a file, or ``{}``."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}


def place(home=None, name=None):
    """The workspace that arguments and environment name."""
    name = name or os.environ.get("JUPYTER_MLOPS_WORKSPACE") or "default"
    home = home or os.environ.get("JUPYTER_MLOPS_HOME")
    if not home:
        data = os.environ.get("JUPYTER_DATA_DIR")
        if not data:
            try:
                from jupyter_core.paths import jupyter_data_dir

                data = jupyter_data_dir()
            except ImportError:
                data = os.path.join(os.path.expanduser("~"), ".local", "share", "jupyter")
        home = os.path.join(data, "mlops", name)
    return Place(home, name)


def private_dir(path):
    """Make ``path`` a folder that only this user can enter, and check that it is.

    Raises:
        LocateError: when somebody else owns it, or it is a link.
    """
    parent = os.path.dirname(path)
    # In a world-writable parent (/tmp) the folder above ours must be ours as well.
    for p in (parent, path) if os.path.basename(parent).startswith("jupyter-mlops-") else (path,):
        os.makedirs(p, mode=0o700, exist_ok=True)
        info = os.lstat(p)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise LocateError("%s is not a folder of this user" % p,
                              "remove it, or set XDG_RUNTIME_DIR to a private folder")
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.chmod(p, 0o700)
    return path


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; ``timeout``: seconds for each step."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _OwnConnection(UnixConnection):
    def connect(self):
        if os.stat(self._path).st_uid != os.getuid():
            raise LocateError("the socket %s belongs to somebody else" % self._path)
        super().connect()


def ask(where, method, path, body=None, timeout=5.0):
    """One JSON request over the control socket.

    Returns:
        (status, object); ``(0, {})`` when nobody answers.
    """
    connection = _OwnConnection(where.socket_path, timeout)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        try:
            return response.status, json.loads(text or b"{}")
        except ValueError:
            return response.status, {}
    except LocateError:
        raise
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()


def info(where, timeout=2.0):
    """What the running control plane says of itself (``pid port version workspace url``), or None."""
    status, body = ask(where, "GET", "/local/info", timeout=timeout)
    return body if status == 200 else None


def reserved_port(where):
    """The port that this workspace keeps; chosen and written on first use, before any control plane runs."""
    path = os.path.join(where.home, "port")
    for _ in range(2):
        port = _kept_port(path)
        if port:
            return port
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        try:
            os.makedirs(where.home, mode=0o700, exist_ok=True)
            temporary = "%s.%d.%d" % (path, os.getpid(), threading.get_ident())
            with open(temporary, "w", encoding="ascii") as f:
                f.write(str(port))
            try:
                os.link(temporary, path)  # never replaces: the first writer wins
            finally:
                os.unlink(temporary)
        except FileExistsError:
            if not _kept_port(path):
                os.unlink(path)  # left empty by a crash of the machine, say
            continue
        except OSError:
            return port
        return port
    return port


def _kept_port(path):
    """The port in a file; 0 when there is none that can be one."""
    try:
        with open(path, encoding="ascii") as f:
            port = int(f.read(16))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def url_for(port):
    """The base URL of our routes on loopback."""
    return "http://127.0.0.1:%d/jupyter-mlops" % port


def base_url(where=None):
    """The URL by which this workspace is called here, whether or not a control plane runs."""
    return os.environ.get("JUPYTER_MLOPS_URL") or url_for(reserved_port(where or place()))


def is_ours(uri, where=None):
    """Whether a tracking URI names this workspace (by the URL of the environment, its kept port or its running one)."""
    match = re.match(r"^(https?://[^/?#]+(?:/[^?#]*?)?/jupyter-mlops)/mlflow/?$", uri or "")
    if not match:
        return False
    named = os.environ.get("JUPYTER_MLOPS_URL")
    if named and match.group(1) == named.rstrip("/"):
        return True
    where = where or place()
    known = {str(read_json(os.path.join(where.home, "control.json")).get("url"))}
    port = _kept_port(os.path.join(where.home, "port"))
    if port:
        known.add(url_for(port))
    return match.group(1) in known


def may_start():
    """Whether this process may start a control plane: a POSIX host, not in a job, no remote URL, package complete."""
    if os.name != "posix" or os.environ.get("JUPYTER_MLOPS_JOB") or os.environ.get("JUPYTER_MLOPS_TOKEN"):
        return False
    from importlib.util import find_spec

    try:
        return find_spec("jupyter_mlops.control") is not None
    except ImportError:
        return False


def lock_holder(where):
    """Who holds the lock: ``{"pid", "host", "started"}`` or ``{}``."""
    return read_json(os.path.join(where.home, "control.lock"))


def start(where):
    """Start a control plane in its own session, without waiting; a second one ends by itself at the lock.

    Raises:
        LocateError: the workspace folder cannot be written.
    """
    try:
        return _start(where)
    except OSError as error:
        raise LocateError("the workspace folder %s cannot be used: %s" % (where.home, error),
                          "make room or change its permissions, or set JUPYTER_MLOPS_HOME to another folder")


def _start(where):
    os.makedirs(where.home, mode=0o700, exist_ok=True)
    logs = os.path.join(where.home, "logs")
    os.makedirs(logs, mode=0o700, exist_ok=True)
    log_path = os.path.join(logs, "control.log")
    try:
        if os.path.getsize(log_path) > 10_000_000:
            os.replace(log_path, log_path + ".1")
    except OSError:
        pass
    foreign = ("MLFLOW_", "_MLFLOW_", "JUPYTER_MLOPS_", "PYDEVD_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    # A user's own proxy, artifact or TLS settings for MLflow clients must not reach our server.
    with open(log_path, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyter_mlops.control", "--home", where.home, "--workspace", where.name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env, cwd=where.home,
        )


def ensure(where=None, may=None, timeout=START_TIMEOUT):
    """The answer of :func:`info`, starting a control plane first when nobody answers and we may.

    Raises:
        LocateError: it cannot be reached or started; says who holds the lock, if somebody does.
    """
    where = where or place()
    answer = info(where)
    if answer:
        return answer
    if not (may_start() if may is None else may):
        raise LocateError("the control plane of workspace %r does not answer" % where.name,
                          "start it with: jupyter mlops status")
    holder = lock_holder(where)
    host = holder.get("host")
    if host and host != socket.gethostname() and os.path.exists(os.path.join(where.home, "control.json")):
        raise LocateError("workspace %r is in use on host %s" % (where.name, host),
                          "set JUPYTER_MLOPS_URL and JUPYTER_MLOPS_TOKEN, or run `jupyter mlops down` there")
    child = start(where)
    begun = time.monotonic()
    pause = 0.02
    while time.monotonic() - begun < timeout:
        answer = info(where, timeout=1.0)
        if answer:
            threading.Thread(target=child.wait, daemon=True).start()  # reap it, should it end while we live
            return answer
        code = child.poll()
        waited = time.monotonic() - begun
        if code is not None and code != 3:  # 3: somebody else holds the lock and will answer soon
            raise LocateError("the control plane ended with code %s at its start%s" % (code, _last_error(where)),
                              "its log: %s" % os.path.join(where.home, "logs", "control.log"))
        if code == 3:
            if waited > SILENT_AFTER:
                break
            holder = lock_holder(where)
            if not alive(holder.get("pid") or 0, holder.get("started")):
                child = start(where)  # the holder was about to end, and has
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    holder = lock_holder(where)
    if alive(holder.get("pid") or 0, holder.get("started")):
        raise LocateError("the control plane (pid %s) holds the workspace but is silent" % holder.get("pid"),
                          "end it with: jupyter mlops down --force")
    raise LocateError("the control plane did not answer within %d s" % timeout,
                      "its log: %s" % os.path.join(where.home, "logs", "control.log"))


def _last_error(where):
    """What the control plane logged last, when that was an error of its own; with a colon before it."""
    try:
        with open(os.path.join(where.home, "logs", "control.log"), "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 2000))
            last = f.read().decode("utf-8", "replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return ""
    return ": " + last.partition(": ")[2][:500] if " ERROR " in last else ""


class Session:
    """An address and a token: ``url`` is the base of our routes, ``api`` of REST, ``tracking_uri`` MLflow's."""

    def __init__(self, url, token, workspace, pid=None):
        self.url = url.rstrip("/")
        self.token = token
        self.workspace = workspace
        self.pid = pid
        self._started = start_time(pid) if pid else ""

    def live(self):
        """Whether the control plane that gave the token still runs, as far as can be seen from here.

        When it does not, its port may be somebody else's by now: ask before each use of the token.
        """
        return not self._started or alive(self.pid, self._started)

    @property
    def tracking_uri(self):
        return self.url + "/mlflow"

    @property
    def api(self):
        return "%s/api/v1/workspaces/%s" % (self.url, self.workspace)


_lock = threading.Lock()
_sessions = {}  # type: dict


def connect(where=None, may=None, role=None, fresh=False):
    """A session for this process, kept until :func:`forget`; asks the socket, and starts a control plane if it may.

    Args:
        role: ``owner`` (default) or ``reader``; inside a job the token is always the job's own.
        fresh: ask again, because the kept one failed.

    Raises:
        LocateError: nobody can be reached.
    """
    url, token = os.environ.get("JUPYTER_MLOPS_URL"), os.environ.get("JUPYTER_MLOPS_TOKEN")
    where = where or place()
    if url and token:
        return Session(url, token, where.name)
    key = (os.getpid(), where.home, where.name, role)  # the pid: a forked child is another holder
    with _lock:
        kept = _sessions.get(key)
        if kept is not None and not fresh and kept.live():
            return kept
        answer = ensure(where, may)
        if kept is not None and kept.pid == answer["pid"] and kept.url == answer["url"] and _accepted(kept):
            return kept
        request = {"pid": os.getpid(), "role": role or "owner"}
        if os.environ.get("JUPYTER_MLOPS_JOB"):
            request["job"] = os.environ["JUPYTER_MLOPS_JOB"]
        status, body = ask(where, "POST", "/local/token", request)
        if status != 201:
            raise LocateError("the control plane gave no token: %s" % (body.get("message") or "no answer"))
        session = Session(body["url"], body["token"], where.name, answer["pid"])
        _sessions[key] = session
        return session


def _accepted(session):
    parts = session.url.split("//", 1)[1].split("/", 1)
    connection = http.client.HTTPConnection(parts[0], timeout=5)
    try:
        connection.request("GET", "/%s/api/v1/whoami" % parts[1], headers={"Authorization": "Bearer " + session.token})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def forget():
    """Drop kept sessions, so that the next :func:`connect` asks again."""
    with _lock:
        _sessions.clear()
