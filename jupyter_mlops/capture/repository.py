"""Git facts of a folder, within bounds of time and size; without git, or outside a repository, that is what is told."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import redact

#: Bytes of a diff that are kept, and names that are listed.
MOST_DIFF = 1_000_000
MOST_NAMES = 200
#: Seconds for all calls of git about one folder.
PATIENCE = 4.0
#: Files whose changes are never recorded: notebooks hold outputs, and the cells that ran are recorded by themselves;
#: the others hold secrets.
LEFT_OUT = (
    "*.ipynb", ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd",
    "*credentials*", "*secret*", "*kubeconfig*", "*.tfstate", "*.tfvars", "*service-account*", "*service_account*",
)


class GitError(Exception):
    """Git is missing, refused, or took too long; the message is one line."""


@dataclass
class Facts:
    """What git knows of a folder; ``message`` says why something is missing."""

    root: str = ""
    commit: str = ""
    branch: str = ""
    remote: str = ""
    dirty: bool | None = None
    changed: list[str] = field(default_factory=list)
    untracked: list[str] = field(default_factory=list)
    diff: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the diff."""
        row = dict(self.__dict__)
        row.pop("diff")
        row["diff_bytes"] = len(self.diff.encode())
        return row


def git(folder: str, arguments: list[str], until: float, most: int = 4_000_000) -> tuple[bytes, bool]:
    """Output of a git command in a folder, and whether it was cut at ``most`` bytes; ``until`` is of monotonic time.

    Raises:
        GitError
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_PAGER": "cat"}
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-C", folder, *arguments]
    if until <= time.monotonic():
        raise GitError("git takes too long here")
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            start_new_session=True,  # an interrupt of the cell is not meant for it
        )
    except OSError as error:
        raise GitError("git is not installed" if isinstance(error, FileNotFoundError) else f"git: {error}") from None
    # With the filters and whatever else it has started: they hold its streams open.
    late = threading.Timer(max(0.0, until - time.monotonic()), _end, [process])
    late.daemon = True
    late.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        data = process.stdout.read(most + 1)
        if len(data) > most:
            return data[:most], True
        complaint = process.stderr.read(2000).decode("utf-8", "replace").strip()
        if process.wait() == -9:
            raise GitError("git takes too long here")
        if process.returncode:
            raise GitError(complaint.splitlines()[0] if complaint else f"git ended with {process.returncode}")
        return data, False
    finally:
        late.cancel()
        _end(process)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return  # its number may be somebody else's by now
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()


def facts(folder: str, patience: float = PATIENCE, found_secrets: set[str] | None = None) -> Facts:
    """Commit, branch, remote, changes and diff of the repository that a folder is in; never raises.

    The diff is as git gives it; of the rest the secrets are gone, and in ``found_secrets``.
    """
    found = Facts()
    until = time.monotonic() + patience

    def ask(*arguments: str) -> str:
        return git(folder, list(arguments), until)[0].decode("utf-8", "replace").strip()

    try:
        found.root = ask("rev-parse", "--show-toplevel")
    except GitError as error:
        text = str(error)
        found.message = "not in a git repository" if "not a git repository" in text else redact.clean(text)
        return found
    try:
        try:
            # `HEAD` alone before the first commit.
            found.commit, found.branch = [*ask("rev-parse", "HEAD", "--abbrev-ref", "HEAD").split("\n"), ""][:2]
        except GitError:
            found.message = "the repository has no commit"
        try:
            found.remote = redact.clean(ask("config", "--get", "remote.origin.url"), found_secrets)
        except GitError:
            pass  # there is none
        found.branch = "" if found.branch == "HEAD" else redact.clean(found.branch)
        _changes(found, until)
    except GitError as error:
        found.message = redact.clean(str(error))
    return found


def _changes(found: Facts, until: float) -> None:
    data, cut = git(found.root, ["status", "--porcelain=v1", "-z", "--untracked-files=normal"], until)
    entries = data.decode("utf-8", "replace").split("\0")
    while entries:
        entry = entries.pop(0)
        if len(entry) < 4:
            continue
        (found.untracked if entry.startswith("??") else found.changed).append(entry[3:])
        if entry[0] in "RC":
            entries = entries[1:]  # the name it had before
    found.dirty = bool(found.changed or found.untracked)
    for names in (found.changed, found.untracked):
        if len(names) > MOST_NAMES or cut:
            more = len(names) - MOST_NAMES
            names[MOST_NAMES:] = [f"… {max(more, 0)} more"]
        names[:] = [redact.clean(n) for n in names]
    if found.commit and found.changed:
        exclude = [f":(exclude,icase,glob)**/{name}" for name in LEFT_OUT]
        data, cut = git(
            found.root,
            ["diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "--", ".",
             *exclude],
            until, MOST_DIFF,
        )
        found.diff = data.decode("utf-8", "replace")
        if cut:
            found.diff = found.diff[: found.diff.rfind("\n") + 1]
            found.message = f"the diff is cut at {MOST_DIFF} bytes"


def tracked(root: str, paths: list[str], patience: float = 2.0) -> tuple[set[str], set[str]]:
    """Of some files (absolute paths) beneath a repository's root: those that it knows, and those changed since HEAD.

    Raises:
        GitError
    """
    until = time.monotonic() + patience
    known, _ = git(root, ["ls-files", "-z", "--", *paths], until)
    names = {os.path.join(root, n) for n in known.decode("utf-8", "replace").split("\0") if n}
    changed, _ = git(root, ["diff", "HEAD", "--name-only", "-z", "--no-ext-diff", "--", *paths], until)
    return names, {os.path.join(root, n) for n in changed.decode("utf-8", "replace").split("\0") if n}


def root_of(path: str) -> str:
    """The folder with ``.git`` at or above a path, or empty; asks no process."""
    here = Path(path)
    for folder in (here, *here.parents):
        if (folder / ".git").exists():
            return str(folder)
    return ""


def head(folder: str) -> tuple[str, str]:
    """(commit, branch) as the files in ``.git`` say it, quickly; empty where they do not."""
    root = root_of(folder)
    if not root:
        return "", ""
    try:
        place = Path(root, ".git")
        if place.is_file():
            place = Path(root, place.read_text(encoding="utf-8").partition("gitdir:")[2].strip())
        common = place / "commondir"
        shared = (place / common.read_text(encoding="utf-8").strip()) if common.is_file() else place
        text = (place / "HEAD").read_text(encoding="utf-8").strip()
        if not text.startswith("ref:"):
            return (text, "") if len(text) >= 40 else ("", "")
        ref = text[4:].strip()
        branch = ref.removeprefix("refs/heads/")
        if (shared / ref).is_file():
            return (shared / ref).read_text(encoding="utf-8").strip(), branch
        for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(" " + ref):
                return line.split(" ")[0], branch
        return "", branch
    except (OSError, ValueError):
        return "", ""
