"""What runs in the pods of a job, see ``docs/clusters.md``.

    python -m jupyter_mlops.runtime.berth hold BOOT WORK SECONDS [SHELF]   the sidecar: the folder is copied out of it
    python -m jupyter_mlops.runtime.berth packages BOOT WORK CACHE   before the ranks: what goes on top of the image
    python -m jupyter_mlops.runtime.berth job BOOT WORK        the main container: the attempt's supervisor and ranks

``BOOT/order.json`` says what to run: ``{"job", "attempt", "spec", "run", "env", "timeout", "nodes", "most", "address",
"key", "inputs": {"sha256", "size", "parts"}, "image", "packages", "compare", "remarks", "route"}``, ``packages``
as :mod:`.packages` has it, or null, ``compare`` as :func:`.software.compare` takes it, ``route`` as :mod:`.route` does,
or null. The parcel of inputs lies in parts beside it, or is brought by exec.

A sidecar gets SIGTERM when the main container has ended. It stays until the copy is complete, at most for SECONDS: one
cannot execute in a container that has ended, and the volume goes with the pod. Where that lies in a claim it stays, and
the sidecar takes its folder away when all of it was copied, see :mod:`.shelf`.
"""

import json
import os
import signal
import sys
import time
from importlib.util import find_spec

from . import bundle, data, jobfolder, mirror, packages, parcel, route, shelf, software
from .supervisor import Supervisor

FOLDER = "job"
PARCEL = "inputs.zip"
SOURCE = "src"
#: Left by the sidecar when it listens; seconds for which its coming is awaited.
READY, PATIENCE = ".keeper", 60.0
TERMINATION = "/dev/termination-log"
#: Names in the environment of a rank that are ours, the launcher's, or a cluster's.
_DROPPED = ("JUPYTER_MLOPS_", "KUBERNETES_", "MLFLOW_", "_MLFLOW_", "TORCHELASTIC_")
_LOOK = 0.1
#: Exit code when the cluster ended the pod: that of SIGTERM.
TOLD = 143
#: How many pods of this one's number were lost before, as the cluster counts them: disturbed ones, and all others.
LOST = ("JUPYTER_MLOPS_DISTURBED", "JUPYTER_MLOPS_FAILED")
#: Seconds for the last word of a copy that is complete: it speaks out of the folder, or over the route.
_FAREWELL = 0.5


def hold(boot, work, seconds, kept=""):
    """Stay until SIGTERM, then until the copy is complete or ``seconds`` are over.

    ``kept``: where the attempt's folders lie in a claim, which is left without this one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    folder = jobfolder.private_folder(os.path.join(work, FOLDER))
    drained = os.path.join(folder, mirror.DRAINED)
    jobfolder.write_file(os.path.join(work, READY), b"", durable=False)
    caller = _call(boot, work)  # in a thread, which the signals that are blocked here do not reach either
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
    until = time.monotonic() + seconds
    jobfolder.write_file(os.path.join(folder, mirror.ENDING), b"")
    while not os.path.exists(drained) and time.monotonic() < until:
        time.sleep(_LOOK)
    if caller is not None:
        caller.idle.wait(_FAREWELL)
    if kept and os.path.exists(drained):
        time.sleep(_FAREWELL)
        shelf.clear(os.path.join(kept, os.environ.get("JOB_COMPLETION_INDEX") or "0"))
    return 0


def _call(boot, work):
    """Call the control plane, where there is a route to it."""
    try:
        order, _, attempt = _order(boot, work)
    except (OSError, ValueError, KeyError):
        return None  # the ranks' container tells
    if not order.get("route"):
        return None
    caller = route.Caller(order["route"], order["job"], attempt, _node(order))
    caller.start()
    return caller


def job(boot, work):
    """Run the attempt to its end; 0 when it completed."""
    try:
        return _job(boot, work)
    finally:
        _await_keeper(work)


def install(boot, work, cache):
    """Install the packages that the attempt asks for; 0 when they are there."""
    try:
        order, folder, attempt = _order(boot, work)
        why = _unfit(order, attempt)
        if why:
            return _last_words(why)
        first = _node(order) * Supervisor.ranks_of(order["spec"])
        why = packages.install(boot, work, cache, order["packages"], folder, attempt, first, order.get("compare"))
        return _last_words(why) if why else 0
    finally:
        _await_keeper(work)


def _await_keeper(work):
    """Its SIGTERM comes when this process ends, and would be lost on one that does not listen yet."""
    until = time.monotonic() + PATIENCE
    while not os.path.exists(os.path.join(work, READY)) and time.monotonic() < until:
        time.sleep(_LOOK)


def _order(boot, work):
    with open(os.path.join(boot, "order.json"), encoding="utf-8") as f:
        order = json.load(f)
    folder = jobfolder.JobFolder(jobfolder.private_folder(os.path.join(work, FOLDER)))
    return order, folder, folder.attempt(order["attempt"])


def _differs(order, attempt):
    """Tell what the image holds, and why the job cannot run in it; before anything is unpickled, and once."""
    path = os.path.join(attempt.path, "image.json")
    if os.path.exists(path):
        return ""
    there = software.facts()
    image = order.get("image") or ""
    jobfolder.private_folder(attempt.path)
    jobfolder.write_json(path, dict(there, image=image), durable=False)
    why, remarks = software.compare(there=there, image=image, **(order.get("compare") or {"packed": None}))
    if why:
        attempt.write_state({"phase": "failed", "cause": "versions", "reason": why, "ended_at": time.time(),
                             "ranks": []})
    elif remarks and order.get("remarks") and _node(order) == 0:
        with open(attempt.log_path(0), "a", encoding="utf-8", opener=_private) as f:
            f.writelines("jupyter-mlops: %s\n" % line for line in remarks)
    return why


def _private(path, flags):
    return os.open(path, flags, 0o600)


def _unfit(order, attempt):
    """Why an attempt cannot be begun in this container; empty when it can."""
    if attempt.started():
        return "the container was started again after its ranks had begun"
    return _differs(order, attempt)


def _job(boot, work):
    stopped = []
    signal.signal(signal.SIGTERM, lambda n, f: stopped.append(n))
    order, folder, attempt = _order(boot, work)
    why = _unfit(order, attempt)
    if why:
        return _last_words(why)
    try:
        extra = packages.chosen(work)
    except packages.PackagesError as error:
        return _last_words(str(error))  # a further attempt installs them again
    try:
        _inputs(boot, work, folder, order.get("inputs") or {}, stopped)
        _code(work, folder, order["spec"])
    except (parcel.ParcelError, OSError) as error:
        reason = "the inputs could not be unpacked: %s" % error
        jobfolder.private_folder(attempt.path)
        attempt.write_state({"phase": "failed", "reason": reason, "ended_at": time.time(), "ranks": []})
        return _last_words(reason)
    for name in ("spec", "run"):
        jobfolder.write_json(os.path.join(folder.path, name + ".json"), order[name])
    supervisor = Supervisor(folder.path, attempt.number)
    least, most = int(order.get("nodes") or 1), int(order.get("most") or 0)
    supervisor.join(_node(order), most or least, order.get("address") or "", least if most else 0,
                    order.get("key") or "")
    if not supervisor.acquire():
        return _last_words("another supervisor is at work")
    if stopped:
        folder.ask_stop(attempt.number, 0)
    interpreter = extra.python if extra is not None else sys.executable
    made = extra.complete() if extra is not None and extra.inner else None  # it sees nothing of the image
    env = environment(order, interpreter, made and made.get("variables"))
    env.update(places(work))
    if "cloudpickle" not in (made.get("packages") or {}) if made else find_spec("cloudpickle") is None:
        bundle.prepend(env, os.path.join(boot, "cloudpickle.zip"))
    supervisor.run({"interpreter": interpreter, "env": env, "timeout": order.get("timeout")})
    state = attempt.state()
    if state.get("phase") == "completed":
        return 0
    _last_words(state.get("reason") or "it ended without a word")
    # Whoever looks at the pod sees whether the ranks failed, or the cluster ended them.
    return TOLD if supervisor.signal and folder.stop_wish(attempt.number) is None else 1


def _node(order):
    """The number of this machine. A pod of an elastic attempt that takes the place of a lost one has its own."""
    most = int(order.get("most") or 0)
    index = int(os.environ.get("JOB_COMPLETION_INDEX") or 0)
    return index + most * sum(int(os.environ.get(name) or 0) for name in LOST)


def places(work):
    """Where claims are mounted, and the cache of inputs: a volume of the operator's, else it goes with the pod."""
    root = os.path.dirname(work)
    cache = os.path.join(root, "cache")
    return {data.CLAIMS: os.path.join(root, "claims"),
            data.CACHE: cache if os.path.isdir(cache) else os.path.join(work, "cache")}


def environment(order, interpreter, activated=None):
    """The environment of the ranks: the image's, what the spec asks for, what the control plane gives.

    ``activated``: what an environment of conda sets for those who run in it.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(_DROPPED) and k != "JOB_COMPLETION_INDEX"}
    if activated is not None:
        env.update(activated)
    env.update(MPLBACKEND="Agg", PYTHONUNBUFFERED="1", MLFLOW_DISABLE_TELEMETRY="true")
    env.update((order["spec"].get("environment_variables") or {}))
    env.update(order.get("env") or {})
    here = os.path.dirname(interpreter)
    places = dict.fromkeys([here, os.path.dirname(sys.executable), *env.get("PATH", os.defpath).split(os.pathsep)])
    env["PATH"] = os.pathsep.join(places)
    if activated is not None:
        env.pop("VIRTUAL_ENV", None)
        env["CONDA_PREFIX"] = env["CONDA_DEFAULT_ENV"] = os.path.dirname(here)
    elif interpreter != sys.executable:
        env["VIRTUAL_ENV"] = os.path.dirname(here)
    return env


def _inputs(boot, work, folder, about, stopped):
    """Put what the job needs into its folder."""
    if not about:
        return
    path = os.path.join(work, PARCEL)
    if about.get("parts"):
        parcel.join(os.path.join(os.path.dirname(boot), "parts"), int(about["parts"]), path, about["sha256"])
    while not os.path.exists(path):
        if stopped:
            return
        time.sleep(_LOOK)
    new = os.path.join(work, "unpacked")
    parcel.unpack(path, new)
    for name in os.listdir(new):
        os.replace(os.path.join(new, name), os.path.join(folder.path, name))
    os.unlink(path)


def _code(work, folder, spec):
    """Lay out the folder that came with a script, and let the script run in it; ``outputs/`` there are the job's."""
    archive = os.path.join(folder.inputs, "code.zip")
    if not os.path.exists(archive):
        return
    place = os.path.join(work, SOURCE)
    parcel.unpack(archive, place)
    outputs = os.path.join(place, "outputs")
    if not os.path.lexists(outputs):
        os.symlink(jobfolder.private_folder(folder.outputs), outputs)
    spec["cwd"] = place


def _last_words(text):
    print("jupyter-mlops: " + text, file=sys.stderr, flush=True)
    try:
        with open(TERMINATION, "r+", encoding="utf-8") as f:  # it is there before us, in a container
            f.write(text[:3000])
    except OSError:
        pass
    return 1


def main(arguments):
    """See the module."""
    if arguments[0] == "hold":
        return hold(arguments[1], arguments[2], float(arguments[3]), *arguments[4:])
    if arguments[0] == "packages":
        return install(arguments[1], arguments[2], arguments[3])
    return job(arguments[1], arguments[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
