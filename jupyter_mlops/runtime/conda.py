"""An environment of conda for a job, made in a pod by the tool that its image has; see ``docs/clusters.md``.

micromamba, mamba and conda are called in the one way that all of them know. An environment of conda cannot be moved:
it is made where it stays, and counts when its entry of the cache (:mod:`.packagecache`) has been marked as whole.

Credentials of channels lie in files that only this container sees, see :mod:`.packages`.
"""

import glob
import json
import os
import re
import shutil
import subprocess

#: In the order in which they are taken; further ones may be named by the image's environment.
TOOLS = ("micromamba", "mamba", "conda")
_NAMED = ("MAMBA_EXE", "CONDA_EXE")
#: The operator's files, where there are any; see ``training.conda.secret``.
FILES = "conda"
#: Folders within an entry of the cache: what stays, and what is only needed while it is made.
PREFIX, BESIDE = "env", ("pkgs", "root", "home")
#: Of the image's environment: what would lead the tool elsewhere.
_MISLEADING = frozenset({
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CONDA_ENVS_PATH",
    "CONDA_ENVS_DIRS", "CONDA_PKGS_DIRS", "CONDA_CHANNELS", "CONDA_CREATE_DEFAULT_PACKAGES", "CONDA_DRY_RUN",
    "CONDA_OFFLINE", "CONDA_SUBDIR", "CONDA_JSON", "MAMBA_JSON", "MAMBA_DRY_RUN", "MAMBA_OFFLINE", "MAMBA_PLATFORM",
    "MAMBA_TARGET_PREFIX", "MAMBA_ALWAYS_SOFTLINK", "CONDA_ALWAYS_SOFTLINK"})
#: Of what activation sets: what belongs to the shell that ran it, or is given to ranks in another way.
_SHELL = frozenset({"PATH", "PWD", "OLDPWD", "SHLVL", "_", "HOME", "TMPDIR", "PS1", "CONDA_PREFIX",
                    "CONDA_DEFAULT_ENV", "CONDA_SHLVL"})
#: Prints the environment that activation leaves, and what this interpreter is.
_PROBE = ("import json, os, sys; print(json.dumps({'python': '%d.%d.%d' % sys.version_info[:3],"
          " 'env': dict(os.environ), 'site': [p for p in sys.path if p.endswith('site-packages')]}))")
_ACTIVATE = ('for f in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do if [ -e "$f" ]; then . "$f" >&2; fi; done; '
             'exec "$JUPYTER_MLOPS_PYTHON" -c "$JUPYTER_MLOPS_PROBE"')


class CondaError(Exception):
    """An environment that cannot be used; says why in one line."""


def tool(env=None):
    """Path of the image's micromamba, mamba or conda; None where there is none."""
    env = os.environ if env is None else env
    for name in TOOLS:
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        if found:
            return found
    for name in _NAMED:
        path = env.get(name)
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def identity(order):
    """What of an order an environment is found again by."""
    return [sorted(order["specs"]), order.get("channels") or [], order.get("alias") or "", order.get("cuda") or ""]


def arguments(program, order, prefix, listed):
    """The call that makes an environment.

    Args:
        program: see :func:`tool`.
        order: ``{"specs", "channels", "alias", "cuda"}``; without channels the tool's own settings name them.
        listed: a file with the specs.
    """
    channels = [word for name in order.get("channels") or () for word in ("--channel", name)]
    # No other settings may add channels: neither the image's, nor those that a tool was built with.
    return [program, "create", "--yes", "--prefix", prefix, *(["--override-channels"] if channels else []), *channels,
            "--file", listed]


def environment(program, order, path, files):
    """The environment in which the tool is called.

    Args:
        program: see :func:`tool`.
        path: the entry of the cache; all that the tool writes is in it.
        files: folder of the operator's files; it need not be there.
    """
    env = {k: v for k, v in os.environ.items() if k not in _MISLEADING and not k.startswith("JUPYTER_MLOPS_")}
    pkgs, root, home = (os.path.join(path, name) for name in BESIDE)
    env.update(
        CONDA_PKGS_DIRS=pkgs, HOME=home, XDG_CACHE_HOME=os.path.join(home, ".cache"), CONDA_REGISTER_ENVS="false",
        CONDA_NOTIFY_OUTDATED_CONDA="false", CONDA_NUMBER_CHANNEL_NOTICES="0", CONDA_ALWAYS_YES="true",
        MAMBA_NO_BANNER="1", PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1")
    if os.path.basename(program) == "micromamba":  # the others know theirs by where they lie, and their settings in it
        env["MAMBA_ROOT_PREFIX"] = root
    if order.get("alias"):
        env["CONDA_CHANNEL_ALIAS"] = env["MAMBA_CHANNEL_ALIAS"] = order["alias"]
    if order.get("cuda"):
        env["CONDA_OVERRIDE_CUDA"] = order["cuda"]
    for names, file in ((("CONDARC", "MAMBARC"), "condarc"),
                        (("CONDA_SSL_VERIFY", "MAMBA_SSL_VERIFY", "REQUESTS_CA_BUNDLE"), "ca.crt")):
        where = os.path.join(files, file)
        if os.path.exists(where):
            env.update(dict.fromkeys(names, where))
    return env


def prepare(path, specs):
    """Lay out an entry of the cache for the tool; gives the file with the specs."""
    for name in BESIDE:
        os.makedirs(os.path.join(path, name))
    listed = os.path.join(path, "specs.txt")
    with open(listed, "w", encoding="utf-8") as f:
        f.write("".join(line + "\n" for line in specs))
    return listed


def clear(path):
    """Remove what was only needed while an environment was made: of files in both it has links of its own."""
    for name in BESIDE:
        shutil.rmtree(os.path.join(path, name), ignore_errors=True)


def activated(prefix, seconds=60.0):
    """What the environment is for those who run in it.

    Packages may bring scripts that set variables (``etc/conda/activate.d``); they are run once, here.

    Returns:
        ``{"python": "3.11.7", "variables": {…}, "site": [folder of packages]}``

    Raises:
        CondaError: its Python does not start.
    """
    before = {k: v for k, v in os.environ.items() if k not in _MISLEADING and not k.startswith("JUPYTER_MLOPS_")}
    before.update(CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV=prefix, CONDA_SHLVL="1", PYTHONNOUSERSITE="1")
    before["PATH"] = os.path.join(prefix, "bin") + os.pathsep + before.get("PATH", os.defpath)
    for file in sorted(glob.glob(os.path.join(prefix, "etc", "conda", "env_vars.d", "*.json"))):
        before.update(_texts(_json(file)))
    before.update(_texts(_json(os.path.join(prefix, "conda-meta", "state")).get("env_vars")))
    program = shutil.which("bash", path=before["PATH"]) or "/bin/sh"
    said = ""
    try:
        ours = {"JUPYTER_MLOPS_PROBE": _PROBE, "JUPYTER_MLOPS_PYTHON": os.path.join(prefix, "bin", "python")}
        done = subprocess.run([program, "-c", _ACTIVATE], env=dict(before, **ours), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds, check=False)
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        told = json.loads(done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        raise CondaError("its Python did not answer within %g s" % seconds)
    except (OSError, ValueError):
        raise CondaError("its Python does not start%s" % (": " + said[:300] if said else ""))
    after = told["env"]
    changed = {k: v for k, v in after.items() if v != os.environ.get(k) and k not in _SHELL
               and not k.startswith(("JUPYTER_MLOPS_", "PYTHON")) and isinstance(v, str)}
    return {"python": told["python"], "variables": changed, "site": told["site"]}


def _json(path):
    try:
        with open(path, encoding="utf-8") as f:
            found = json.load(f)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(found):
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


# -- what the tools say ----------------------------------------------------------------------------------------------

#: A line → what goes on after it: conda ends the line of a step when the step is done.
_STEPS = (
    (r"^\S+/(?:noarch|linux-\S+)\s", "reading the channels"),
    (r"Collecting package metadata.*done", "solving"),
    (r"Solving environment.*done|^Transaction", "downloading"),
    (r"Downloading and Extracting.*done|(?:Preparing|Verifying) transaction|^Linking ", "linking"),
)


def progress(line):
    """What goes on, by a line of a tool; empty when it says nothing of it."""
    for pattern, words in _STEPS:
        if re.search(pattern, line):
            return words
    return ""


#: What the tools say → what it means; ``%s`` is what was matched.
_CAUSES = (
    (r"No space left on device", "there is no room left for them"),
    (r"CERTIFICATE_VERIFY_FAILED|SSL (?:peer )?certificate|SSLError|CondaSSLError",
     "the certificate of a channel is not trusted; training.conda.secret may hold its ca.crt"),
    (r"HTTP (?:401|403)|(?:status|error|code)[^\n]{0,20}\b(?:401|403)\b",
     "a channel wants other credentials: training.conda.secret may hold them in a condarc"),
    (r"(?:HTTP|code|status:?) 404[^\n]*?((?:https?|file)://\S+?)/(?:noarch|linux-)", "there is no channel %s"),
    (r"UnavailableInvalidChannel[^\n]*[\s\S]*?channel (\S+)", "there is no channel %s"),
    (r"nothing provides requested ([^\n]+)", "the channels have no %s"),
    (r"[└├]─ ([^\n]+?)(?: =\* \*)?(?:, which)? does not exist", "the channels have no %s"),
    (r"nothing provides ([^\n]+?) needed by ([^\n]+)", "the channels have no %s"),
    (r"PackagesNotFound\w*Error[^\n]*\n(?:[^\n]*\n)*?\s*- ([^\n]+)", "the channels have no %s"),
    (r"HTTP 000|Connection refused|[Cc]ould not resolve host|Could not connect|Failed to connect|ConnectionError|"
     r"Operation timed out|Timeout was reached|Name or service not known|Temporary failure in name resolution|"
     r"Download error", "a channel does not answer"),
    (r"Could not solve for environment specs|LibMambaUnsatisfiableError|UnsatisfiableError|ResolutionImpossible",
     "they do not go together; the log says which"),
)


def explain(lines, code):
    """Why a tool failed, in one line, from the end of what it said."""
    text = "\n".join(lines)
    for pattern, words in _CAUSES:
        match = re.search(pattern, text)
        if match:
            found = " ".join((match.group(1) if "%s" in words else "").split()).rstrip(".,;")
            return "the conda environment could not be made: " + (words % found if "%s" in words else words)[:1000]
    errors = [i for i in lines if re.match(r"\s*(?:critical|error)\b|\w*Error:", i)] or [i for i in lines if i.strip()]
    why = errors[-1].strip()[:500] if errors else "it ended with code %d" % code
    return "the conda environment could not be made: " + why


def secrets(folder):
    """Passwords in the operator's condarc, which nobody may read in a log."""
    try:
        with open(os.path.join(folder, "condarc"), encoding="utf-8") as f:
            text = f.read()
    except (OSError, ValueError):
        return []
    found = {user.partition(":")[2] or user for user in re.findall(r"://([^/@\s]+)@", text)}
    found.update(re.findall(r"/t/([A-Za-z0-9_.~%-]+)", text))
    found.update(re.findall(r"(?im)^[\s-]*[\w-]*(?:password|passwd|token|secret)\s*:\s*[\"']?([^\s\"'#]+)", text))
    return sorted((word for word in found if len(word) > 2), key=len, reverse=True)


def blot(line):
    """A line without the tokens that addresses of channels may hold."""
    return re.sub(r"(/t/)[A-Za-z0-9_.~%-]+", r"\1***", line)
