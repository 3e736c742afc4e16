"""Version skew: what the kernel has imported against what a job would import."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..core.errors import Refused

#: Distributions that are called otherwise than their module.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "PyYAML", "skimage": "scikit-image",
    "bs4": "beautifulsoup4", "dateutil": "python-dateutil", "google": "", "attr": "attrs", "umap": "umap-learn",
}
_PROBE = (
    "import json, sys\n"
    "from importlib import metadata\n"
    "found = {}\n"
    "for name in json.loads(sys.argv[1]):\n"
    "    try:\n"
    "        found[name] = metadata.version(name)\n"
    "    except Exception:\n"
    "        found[name] = ''\n"
    "print(json.dumps([list(sys.version_info[:2]), found]))\n"
)


@dataclass(frozen=True)
class Skew:
    """A package that the job would see in another version than the kernel has imported; empty: not at all."""

    package: str
    imported: str
    found: str

    def __str__(self) -> str:
        there = f"the job would import {self.found}" if self.found else "the job's Python has none"
        return f"{self.package}: the kernel has imported {self.imported}, {there}"


def imported(modules: Iterable[str]) -> dict[str, str]:
    """``{distribution: version}`` of imported top-level modules that say their version."""
    found = {}
    for name in sorted(modules):
        version = getattr(sys.modules.get(name), "__version__", None)
        package = _DISTRIBUTIONS.get(name, name)
        if package and isinstance(version, str) and name not in sys.stdlib_module_names:
            found[package] = version
    return found


def _same(a: str, b: str) -> bool:
    if "+" not in a or "+" not in b:  # a local part such as +cpu is often left out
        a, b = a.partition("+")[0], b.partition("+")[0]
    return a == b


def of_this_interpreter(packages: Mapping[str, str]) -> list[Skew]:
    """Packages that were installed anew since the kernel imported them."""
    skews = []
    for package, version in packages.items():
        try:
            there = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # run from its sources
        if not _same(version, there):
            skews.append(Skew(package, version, there))
    return skews


def of_interpreter(path: str, packages: Mapping[str, str]) -> tuple[list[int], list[Skew]]:
    """Python version of another interpreter, and packages that differ there.

    Raises:
        Refused: it does not run.
    """
    try:
        done = subprocess.run(
            [path, "-c", _PROBE, json.dumps(list(packages))], capture_output=True, text=True, timeout=30, check=True,
        )
        python, found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise Refused(f"{path} does not run: {error}", "name a Python with --interpreter") from None
    return python, [Skew(p, v, found.get(p, "")) for p, v in packages.items() if not _same(v, found.get(p, ""))]


def packed(modules: Iterable[str], payload: Any) -> dict[str, Any]:
    """What a payload was packed by, for a job elsewhere; ``payload`` as in :func:`check`, and ``uses_cloudpickle``."""
    packages = imported(modules)
    if payload.uses_cloudpickle:
        packages["cloudpickle"] = metadata.version("cloudpickle")
    return {"python": platform.python_version(), "by_value": payload.by_value, "packages": packages}


def check(path: str, modules: Iterable[str], payload: Any) -> list[str]:
    """Warnings about versions for a job under the interpreter ``path``.

    Args:
        modules: top-level modules whose objects are shipped, or that are imported again.
        payload: has ``by_value``, whether code of the notebook is shipped.

    Raises:
        Refused: it cannot work: another Python for code that is shipped, or a package that is not there.
    """
    packages = imported(modules)
    if path in ("", sys.executable):
        return [f"{skew}: restart the kernel to work with one version" for skew in of_this_interpreter(packages)]
    python, skews = of_interpreter(path, packages)
    here = list(sys.version_info[:2])
    if payload.by_value and python != here:
        theirs, ours = ".".join(map(str, python)), ".".join(map(str, here))
        raise Refused(
            f"functions or classes of the notebook (Python {ours}) cannot run under Python {theirs} of {path}",
            "move them into a module that is installed there, or into the cell",
        )
    missing = [skew for skew in skews if not skew.found]
    if missing:
        raise Refused(str(missing[0]), f"{path} -m pip install {missing[0].package}=={missing[0].imported}")
    return [str(skew) for skew in skews]
