"""Completion of ``%mlops`` lines: verbs, options, and names from a cache that is filled in the background."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from ..core.errors import MlopsError
from ..runtime import locate
from . import parser

#: Seconds after which names are asked for again.
FRESH = 10.0
_LINE = re.compile(r"^\s*(?:[\w.,\s\[\]]+=\s*)?%{1,2}mlops(?:\s+(.*))?$", re.DOTALL)
#: A name at the end of an expression that is no attribute.
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*$")


class Names:
    """Names of experiments, models, endpoints, deployments, jobs and runs as last heard; asking never blocks."""

    def __init__(self, where: locate.Place, variables: Mapping[str, Any] | None = None) -> None:
        self._where = where
        self._variables = {} if variables is None else variables
        self._known: dict[str, list[str]] = {}
        self._asked = 0.0
        self._busy = threading.Lock()

    def get(self, kind: str) -> list[str]:
        """What is known of a kind now; asks anew in the background when that is old."""
        if kind == "variable":
            return sorted(n for n in list(self._variables) if not n.startswith("_"))
        if kind == "model variable":
            from ..client.flavour import detect

            return [n for n in self.get("variable") if detect(self._variables.get(n)) is not None]
        if time.monotonic() - self._asked > FRESH or not self._asked:
            self.refresh()
        return self._known.get(kind, [])

    def put(self, kind: str, names: list[str]) -> None:
        """Set what is known."""
        self._known[kind] = names

    def refresh(self) -> None:
        """Ask in the background."""
        if self._busy.acquire(blocking=False):
            self._asked = time.monotonic()
            threading.Thread(target=self._fill, name="jupyter-mlops-names", daemon=True).start()

    def _fill(self) -> None:
        try:
            from ..client.aio import AsyncClient
            from ..client.transport import shared_loop

            shared_loop().run(self._ask(AsyncClient(self._where, may_start=False)), timeout=30)
        except Exception:  # completion is a convenience: it never complains
            pass
        finally:
            self._busy.release()

    async def _ask(self, client: Any) -> None:
        async with client:
            self.put("compute", [c["name"] for c in await client.list_computes()])
            jobs = await client.list_jobs(100)
            self.put("job", [j["name"] for j in jobs])
            self.put("running job", [j["name"] for j in jobs if not j["status"].get("ended_at")])
            endpoints = [e["name"] for e in await client.list_endpoints(100)]
            self.put("endpoint", endpoints)
            behind = []
            for name in endpoints[:20]:
                behind += [f"{name}/{d['name']}" for d in await client.list_deployments(name)]
            self.put("deployment", behind)
            try:
                self.put("experiment", [e["name"] for e in await client.list_experiments(200)])
                models = await client.list_models(100)
                self.put("model", [m["name"] for m in models])
                self.put("version", [
                    *(f"{m['name']}@{a}" for m in models for a in m.get("aliases") or {}),
                    *(f"{m['name']}/{m['latest_version']}" for m in models if m.get("latest_version")),
                ])
                self.put("run", [r["name"] for r in await client.list_runs(limit=50) if r.get("name")])
            except MlopsError:
                pass  # MLflow is still starting


def _scripts() -> list[str]:
    try:
        return sorted(e.name for e in os.scandir() if e.name.endswith(".py") and e.is_file())[:200]
    except OSError:
        return []


#: What a positional argument names: (verb, its place) → kind.
_POSITIONAL: dict[tuple[str, str], str] = {
    ("runs", "run"): "run", ("compare", "runs"): "run",
    ("register", "run"): "run or best", ("register", "name"): "model",
    ("batch", "endpoint"): "endpoint",
    ("models", "name"): "model", ("deploy", "model"): "deployable", ("invoke", "endpoint"): "endpoint",
    ("traffic", "endpoint"): "endpoint", ("endpoints", "name"): "endpoint", ("endpoint", "what"): "data or truth",
    ("endpoint", "name"): "endpoint", ("endpoint", "values"): "variable", ("jobs", "name"): "job",
    ("logs", "name"): "job",
    ("attach", "name"): "job", ("resume", "name"): "job", ("purge", "name"): "job",
    ("stop", "name"): "running job", ("train", "script"): "script", ("help", "verb_name"): "verb",
    ("config", "key"): "setting", ("compute", "name"): "compute",
}
_OPTION: dict[str, str] = {"experiment": "experiment", "run": "run", "endpoint": "endpoint", "use": "variable"}


def complete(before: str, names: Callable[[str], list[str]]) -> tuple[str, list[str]] | None:
    """Candidates for the end of a line.

    Args:
        before: what stands behind ``%mlops`` up to the cursor.
        names: gives the known names of a kind.

    Returns:
        the fragment that they replace and the candidates, or None when this is Python's to complete.
    """
    words, fragment = _words(before)
    if not words:
        return fragment, [v for v in parser.VERBS if v.startswith(fragment)]
    verb, given = words[0], words[1:]
    if verb not in parser.VERBS or "--" in given:
        return None
    tree = parser.verb_parser(verb)
    options = {o: action for action in tree._actions for o in action.option_strings}
    previous = given[-1] if given else ""
    waiting = options.get(previous)
    if verb == "deploy" and (previous == "--sample" or fragment.startswith("--sample=")):
        word = _IDENTIFIER.search(fragment)  # the end of an expression
        return None if word is None else (word.group(), [n for n in names("variable") if n.startswith(word.group())])
    if verb == "apply" and not fragment.startswith("-"):
        return None  # files: IPython completes paths
    endpoint = next((w for w in given if not w.startswith("-")), "")
    if waiting is not None and waiting.dest == "deployment":
        return fragment, [b for b in _behind(endpoint, names) if b.startswith(fragment)]
    if verb == "traffic" and (previous == "--mirror" or (endpoint and not fragment.startswith("-"))):
        taken = {w.partition("=")[0] for w in given}
        return fragment, [f"{b}=" for b in _behind(endpoint, names) if b not in taken and f"{b}=".startswith(fragment)]
    if waiting is not None and waiting.nargs != 0:
        found = _of_option(verb, waiting, names)
        return None if found is None else (fragment, [f for f in found if f.startswith(fragment)])
    if fragment.startswith("-"):
        option, equals, rest = fragment.partition("=")
        if equals and option in options:
            found = _of_option(verb, options[option], names) or []
            return rest, [f for f in found if f.startswith(rest)]
        return fragment, [o for o in options if o.startswith(fragment) and (o.startswith("--") or fragment == "-")]
    place = _place(tree, options, given)
    if verb == "invoke" and place != "endpoint":
        word = _IDENTIFIER.search(before)  # the end of an expression
        return None if word is None else (word.group(), [n for n in names("variable") if n.startswith(word.group())])
    if verb in ("delete", "restore"):
        kinds = ["job", "run", "endpoint", "deployment", "model"][:2 if verb == "restore" else None]
        positional = [w for w in given if not w.startswith("-")]
        candidates = names(positional[0]) if positional and positional[0] in kinds else kinds
    elif place is None:
        candidates = []
    else:
        candidates = _of_kind(_POSITIONAL.get((verb, place), ""), names)
    return fragment, [c for c in candidates if c.startswith(fragment)]


def _behind(endpoint: str, names: Callable[[str], list[str]]) -> list[str]:
    """Names of an endpoint's deployments."""
    return [n.partition("/")[2] for n in names("deployment") if n.startswith(endpoint + "/")]


def _words(before: str) -> tuple[list[str], str]:
    """Whole words and the fragment at the end."""
    try:
        words = shlex.split(before)
    except ValueError:
        words = before.split()
    if not before or before[-1].isspace():
        return words, ""
    return words[:-1], before.split()[-1]


def _place(tree: argparse.ArgumentParser, options: dict[str, argparse.Action], given: list[str]) -> str | None:
    """Name of the positional argument that comes next."""
    positional = [a for a in tree._actions if not a.option_strings]
    count, skip = 0, False
    for word in given:
        if skip:
            skip = False
        elif word in options:
            skip = options[word].nargs != 0
        elif not word.startswith("-"):
            count += 1
    if count < len(positional):
        return positional[count].dest
    return positional[-1].dest if positional and positional[-1].nargs == "*" else None


def _of_option(verb: str, action: argparse.Action, names: Callable[[str], list[str]]) -> list[str] | None:
    if action.choices:
        return [str(c) for c in action.choices]
    if action.dest == "artifact":
        return None if verb == "log" else []  # files: IPython completes paths
    if action.dest == "compute":
        return names("compute") or ["local"]
    return _of_kind(_OPTION.get(action.dest, ""), names)


def _of_kind(kind: str, names: Callable[[str], list[str]]) -> list[str]:
    if kind == "verb":
        return list(parser.VERBS)
    if kind == "script":
        return _scripts()
    if kind == "setting":
        from .settings import KEYS

        return list(KEYS)
    if kind == "data or truth":
        return ["data", "truth"]
    if kind == "deployable":
        return [*names("model variable"), *names("version")]
    if kind == "run or best":
        return ["best", *names("run")]
    return names(kind) if kind else []


def make_matcher(names: Names) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """The matcher to add to IPython's ``custom_matchers``."""

    @context_matcher(identifier="jupyter_mlops")  # type: ignore[misc]
    def mlops_matcher(context: CompletionContext) -> SimpleMatcherResult:
        match = _LINE.match(context.text_until_cursor)
        if match is None or match.group(1) is None:
            return {"completions": []}
        found = complete(match.group(1), names.get)
        if found is None:
            return {"completions": []}
        fragment, candidates = found
        return {
            "completions": [SimpleCompletion(text=c, type="param") for c in candidates],
            "matched_fragment": fragment,
            "suppress": bool(candidates),
        }

    return mlops_matcher
