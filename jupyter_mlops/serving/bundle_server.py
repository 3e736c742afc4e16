"""What ``serve.py`` of a bundle does: the gateway and scorers of any endpoint, kept alive by one small process.

There is no control plane: the gateway heals and scales scorers by itself, and this process starts the gateway again
when that dies, adds up its counters (tally.py), and has captured requests collected each hour where pyarrow is there.
All of it is below ``state/``, laid out as a workspace is:

    record.json  serve.lock  gateway.json  gateway-stats.json  logs/
    endpoints/<e>/endpoint.json  endpoints/<e>/capture/
    endpoints/<e>/<d>/model/ code/ of the bundle     run.json  model.json  instances/

Killed with SIGKILL, it leaves gateway and scorers serving; started again, it takes the scorers over.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import MlopsError, Refused
from ..runtime import locate
from ..runtime.parcel import sha256
from ..runtime.processes import alive
from . import manifest
from .children import end, open_log
from .environment import gateway_env
from .instances import MAX_INSTANCES
from .listen import Certificate
from .places import Places, read_json, write_json
from .scorers import Scorers
from .tally import NAME as RECORD
from .tally import Tally

#: Seconds: between looks, between readings of the counters, between collections, until what failed is tried again.
LOOK, COUNT, COLLECT, RETRY = 0.2, 1.0, 3600.0, 60.0
#: Seconds for a gateway to come up, and to answer what is under way at the end.
START, DRAIN = 30.0, 20.0
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


class Bundle:
    """A bundle and the state of one place where it serves.

    Raises:
        Refused: the folder is no bundle.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.state = state
        self.about = manifest.read(folder)
        self.endpoint = str(self.about["endpoint"])
        self.deployment = str(self.about["deployment"])
        self.places = Places(state, locate.Place(str(state), "bundle").runtime_dir)

    def ask(self, method: str, path: str, timeout: float = 5.0) -> tuple[int, Any]:
        """(status, JSON) of the gateway's own socket; status 0 when none answers."""
        connection = locate.UnixConnection(str(self.places.admin_socket), timeout)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def lay_out(self, instances: int | None = None) -> None:
        """Make the state what gateway and scorers expect; what they have written before stays.

        Raises:
            Refused: a variable is missing that the model wants, or the folder cannot be written.
        """
        run = read_json(self.folder / "run.json")
        missing = [name for name in run.get("needed") or [] if name not in os.environ]
        if missing:
            raise Refused(f"the model wants {', '.join(missing)} in the environment, which the bundle does not hold",
                          f"export {missing[0]}=… first")
        config = read_json(self.folder / "endpoint.json")
        settings = config["deployments"][self.deployment]
        scale = settings.get("scale_settings") or {}
        count = int(run.get("count") or 1)
        if instances is not None:
            count = settings["instance_count"] = instances
            settings["scale_settings"] = {**scale, "type": "default"}
        place = self.places.deployment(self.endpoint, self.deployment)
        about = read_json(self.folder / "model.json")
        env = {**(run.get("env") or {}), **{name: os.environ[name] for name in run.get("needed") or []}}
        digest = hashlib.sha256(json.dumps([self.about["id"], about, sys.executable, sorted(env.items())]).encode())
        order = {"schema": 1, "interpreter": sys.executable, "env": env, "digest": digest.hexdigest(),
                 "probes": run.get("probes") or {}, "count": count}
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("model", "code"):
            self._bring(name, place / name)
        if read_json(place / "model.json") != about:
            write_json(place / "model.json", about)
        if read_json(place / "run.json").get("count") != count:
            (place / "scale.json").unlink(missing_ok=True)
        write_json(place / "run.json", order)
        write_json(self.places.config(self.endpoint), config)
        locate.private_dir(str(self.places.runtime))

    def _bring(self, name: str, target: Path) -> None:
        """Have a folder of the bundle in the state: the same files where the file system can, else copies.

        Not a link to the folder: loaders look where a path leads, and refuse what is outside of theirs.
        """
        files = [file for file in self.about["files"] if file.startswith(f"{name}/")]
        if all(self._same(file, target / file[len(name) + 1:]) for file in files) and len(files) == sum(
                1 for _ in manifest.files_of(target)):
            return
        new = target.with_name(f".{name}-new")
        shutil.rmtree(new, ignore_errors=True)
        for file in files:
            to = new / file[len(name) + 1:]
            to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.link(self.folder / file, to)
            except OSError:  # another file system, or one without
                shutil.copyfile(self.folder / file, to)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)

    def _same(self, file: str, there: Path) -> bool:
        """Whether a file in the state is that of the bundle."""
        try:
            if os.path.samefile(self.folder / file, there):
                return True
            return bool(sha256(there) == self.about["files"][file]["sha256"])
        except OSError:
            return False


class Stop:
    """A wish to stop that a signal handler may set at any moment: it might interrupt who holds the lock of an Event."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wished = False

    def set(self) -> None:
        """Wish it."""
        self._wished = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def is_set(self) -> bool:
        """Whether it was wished."""
        return self._wished

    def wait(self, seconds: float) -> bool:
        """Whether it was wished, at the latest after so many seconds."""
        if not self._wished:
            select.select([self._read], [], [], seconds)
        return self._wished


class Server:
    """Serves a bundle until it is told to stop; there is one at a time for each state folder."""

    def __init__(self, bundle: Bundle, options: argparse.Namespace) -> None:
        self.bundle = bundle
        self.options = options
        self.tally = Tally(bundle.state / RECORD, str(bundle.about["id"]))
        self._stop = Stop()
        self._gateway: subprocess.Popen[bytes] | None = None
        self._collector: subprocess.Popen[bytes] | None = None
        self._up_since = 0.0
        self._deaths = 0
        self._hopeless_since = 0.0

    # -- the gateway -------------------------------------------------------------------------------------------------

    def _arguments(self) -> list[str]:
        o, places = self.options, self.bundle.places
        command = [sys.executable, "-m", "jupyter_mlops.serving.gateway_process", "--home", str(places.home),
                   "--runtime-dir", str(places.runtime)]
        if o.certfile:
            return [*command, "--address", o.address, "--port", str(o.port), "--certfile", o.certfile,
                    "--keyfile", o.keyfile or o.certfile]
        if _loopback(o.address):
            return [*command, "--local-port", str(o.port)]
        return [*command, "--address", o.address, "--port", str(o.port), "--plain"]

    def _start_gateway(self) -> None:
        places = self.bundle.places
        places.gateway_json.unlink(missing_ok=True)
        with open_log(places.logs / "gateway.log") as log:
            self._gateway = subprocess.Popen(self._arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             cwd=places.home, start_new_session=True, env=gateway_env())
        self._up_since = time.monotonic()

    def _await_gateway(self) -> str:
        """The address that it listens at.

        Raises:
            Refused: it does not come up; says what its log says.
        """
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and not self._stop.is_set():
            self._reap()
            info = read_json(self.bundle.places.gateway_json)
            if self.bundle.ask("GET", "/admin/info")[0] == 200 and info.get("url"):
                outside = self.options.certfile or not _loopback(self.options.address)
                return str(info["public_url"] if outside else info["url"])
            if self._gateway is None:
                break
            time.sleep(0.03)
        if self._stop.is_set():
            return ""
        lines = (self.bundle.places.logs / "gateway.log").read_text(errors="replace").strip().splitlines()
        raise Refused(f"the gateway does not come up: {lines[-1] if lines else 'it says nothing'}",
                      f"its log is {self.bundle.places.logs / 'gateway.log'}")

    def _reap(self) -> None:
        """Take note of every child that has ended, also of those that came to us because we are a container's first."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for name in ("_gateway", "_collector"):
                child = getattr(self, name)
                if child is not None and child.pid == pid:
                    child.returncode = os.waitstatus_to_exitcode(status)
                    setattr(self, name, None)

    # -- life --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve; returns the exit code.

        Raises:
            Refused: another one serves from this state folder, or the gateway cannot listen.
        """
        bundle, places = self.bundle, self.bundle.places
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop.set())
        with open(bundle.state / "serve.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refused(f"this bundle serves already, from {bundle.state}",
                              "end that one, or give another --state") from None
            places.logs.mkdir(mode=0o700, exist_ok=True)
            self._take_over()
            bundle.lay_out(self.options.instances)
            self.tally.save()
            self._start_gateway()
            try:
                url = self._await_gateway()
                if url:
                    _say(f"{bundle.endpoint}: {url}/endpoints/{bundle.endpoint}/invocations")
                self._serve()
            finally:
                self._end()
        return 0

    def _take_over(self) -> None:
        """End the gateway that an earlier one of us left; its scorers are gone on with."""
        info = read_json(self.bundle.places.gateway_json)
        if alive(info.get("pid") or 0, info.get("start_time")):
            self._count()
            end(int(info["pid"]), DRAIN)
        self._count_last()

    def _serve(self) -> None:
        told, count_at, collect_at, trouble_at = False, 0.0, time.monotonic() + 60.0, time.monotonic() + 5.0
        while not self._stop.wait(LOOK):
            self._reap()
            now = time.monotonic()
            if self._gateway is None:
                self._deaths = 0 if now - self._up_since > 60.0 else self._deaths + 1
                _say("the gateway ended; it is started again")
                if self._stop.wait(_PAUSES[min(self._deaths, len(_PAUSES) - 1)]):
                    return
                self._count_last()
                self._start_gateway()
                continue
            if now >= count_at:
                self._count()
                count_at = time.monotonic() + COUNT
                if not told and self.bundle.ask("GET", f"/endpoints/{self.bundle.endpoint}/health")[0] == 200:
                    _say("ready")
                    told = True
            if now >= trouble_at:
                self._encourage()
                trouble_at = time.monotonic() + 5.0
            if now >= collect_at:
                self._collect()
                collect_at = time.monotonic() + COLLECT

    def _end(self) -> None:
        """Answer what is under way, then end everything."""
        _say("stopping")
        info = read_json(self.bundle.places.gateway_json)
        self._count()
        if self._gateway is not None:
            end(self._gateway.pid, DRAIN)
            self._reap()
        elif alive(info.get("pid") or 0, info.get("start_time")):
            end(int(info["pid"]), DRAIN)
        self._count_last()
        group = Scorers(self.bundle.places).group(self.bundle.endpoint, self.bundle.deployment)
        with contextlib.suppress(MlopsError):
            group.stop()
        shutil.rmtree(self.bundle.places.runtime, ignore_errors=True)

    # -- counters, failures, capture ---------------------------------------------------------------------------------

    def _count(self) -> None:
        status, stats = self.bundle.ask("GET", "/admin/stats")
        if status == 200 and isinstance(stats, dict):
            self._add(stats)

    def _count_last(self) -> None:
        """Take up what a gateway wrote at its end."""
        stats = read_json(self.bundle.places.home / "gateway-stats.json")
        if stats and stats.get("started_at") == self.tally.data["last"].get("started_at"):
            self._add(stats)

    def _add(self, stats: dict[str, Any]) -> None:
        if self.tally.add(stats, self.bundle.endpoint):
            try:
                self.tally.save()
            except OSError as error:
                _say(f"the counters cannot be written: {error.strerror}")

    def _encourage(self) -> None:
        """Nobody is here who would start again by hand what the gateway has given up: try it anew once a minute."""
        scorers = Scorers(self.bundle.places)
        group = scorers.group(self.bundle.endpoint, self.bundle.deployment)
        seen = group.look(ping=False)
        if not seen or not all(s.phase == "failed" for s in seen):
            self._hopeless_since = 0.0
            return
        now = time.monotonic()
        if not self._hopeless_since:
            self._hopeless_since = now
            lines = group.tail(seen[0].number)
            _say(f"the model does not serve: {seen[0].reason}; it is tried again in a minute"
                 + "".join(f"\n  {line}" for line in lines[-5:]))
        elif now - self._hopeless_since > RETRY:
            self._hopeless_since = 0.0
            group.stop()  # which forgets how often it failed; the gateway starts it

    def _collect(self) -> None:
        """Segments become Parquet, where pyarrow is there; else they stay as they are, bounded, until home."""
        from importlib.util import find_spec

        folder = self.bundle.places.endpoint(self.bundle.endpoint) / "capture"
        if self._collector is not None or not folder.is_dir() or find_spec("pyarrow") is None:
            return
        with open(os.open(self.bundle.places.logs / "collector.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                  "wb") as log:
            self._collector = subprocess.Popen(
                [sys.executable, "-m", "jupyter_mlops.serving.collector", "--folder", str(folder), "collect"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=gateway_env())


def _loopback(address: str) -> bool:
    return address in ("127.0.0.1", "localhost")


def _say(text: str) -> None:
    print(text, flush=True)


def main(folder: str, arguments: list[str] | None = None) -> int:
    """The command line of ``serve.py``."""
    p = argparse.ArgumentParser(prog="serve.py", description="Serves this bundle; needs no network.")
    p.add_argument("--port", type=int, default=8080, help="port to listen at (default 8080)")
    p.add_argument("--address", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    p.add_argument("--certfile", default="", metavar="PEM", help="certificate: TLS, needed where others can call")
    p.add_argument("--keyfile", default="", metavar="PEM", help="its key (default: in the same file)")
    p.add_argument("--plain", action="store_true", help="listen at another address without TLS: in a container's "
                   "network, or behind something that has TLS")
    p.add_argument("--instances", type=int, metavar="N", help="processes of the model (default: as it was exported)")
    p.add_argument("--state", default="", metavar="DIR", help="where capture, counters and logs are kept "
                   "(default: state, beside this file)")
    p.add_argument("--verify", action="store_true", help="tell whether a file has changed, and end")
    p.add_argument("--health", action="store_true", help="exit code 0 when it serves, 1 when not")
    p.add_argument("--record", metavar="ZIP", help="write what was captured and counted so far, and end")
    p.add_argument("--access-log", action="store_true", help="with --record: the newest lines of the access log, too")
    p.add_argument("--version", action="version", version=__version__)
    options = p.parse_args(arguments)
    os.umask(0o077)
    try:
        return _main(Path(folder).absolute(), options)
    except MlopsError as error:
        print(f"serve.py: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr, flush=True)
        for line in (error.detail or [])[1:10] if isinstance(error.detail, list) else []:
            print(f"  {line}", file=sys.stderr, flush=True)
    except locate.LocateError as failure:
        print(f"serve.py: {failure}", file=sys.stderr, flush=True)
    except OSError as failure:
        print(f"serve.py: {failure}", file=sys.stderr, flush=True)
    return 1


def _main(folder: Path, options: argparse.Namespace) -> int:
    state = Path(options.state).absolute() if options.state else folder / manifest.STATE
    bundle = Bundle(folder, state)
    if options.health:
        return 0 if bundle.ask("GET", f"/endpoints/{bundle.endpoint}/health")[0] == 200 else 1
    if options.verify:
        manifest.verify(folder)
        _say(f"{bundle.endpoint}: {len(bundle.about['files'])} files are as they were made; the manifest's SHA-256 is "
             f"{sha256(folder / manifest.NAME)}")
        return 0
    if options.record:
        from .record import pack

        told = pack(bundle, Path(options.record), options.access_log)
        _say(f"{options.record}: {told['requests']} requests, {told['files']} files of captured data")
        return 0
    if options.instances is not None and not 1 <= options.instances <= MAX_INSTANCES:
        raise Refused(f"--instances is from 1 to {MAX_INSTANCES}")
    if not 1 <= options.port <= 65535:
        raise Refused("--port is from 1 to 65535")
    if not options.certfile and not _loopback(options.address) and not options.plain:
        raise Refused(f"{options.address} can be reached by others, and keys would pass in clear text",
                      "give --certfile and --keyfile, or --plain where nobody can listen")
    if options.certfile:
        options.certfile, options.keyfile = (str(Path(f).absolute()) if f else ""
                                             for f in (options.certfile, options.keyfile))
        Certificate(options.certfile, options.keyfile)
    manifest.verify(folder)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Server(bundle, options).run()
