"""What a model needs besides itself: installed packages in the versions of this process, and the user's own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata

from ..shipping.modules import Sources, locations

#: Modules → distributions that may bring them; the first that is installed.
_DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "sklearn": ("scikit-learn",), "xgboost": ("xgboost", "xgboost-cpu"), "PIL": ("pillow",), "yaml": ("PyYAML",),
    "cv2": ("opencv-python", "opencv-python-headless"), "skimage": ("scikit-image",), "umap": ("umap-learn",),
    "imblearn": ("imbalanced-learn",), "bs4": ("beautifulsoup4",), "dateutil": ("python-dateutil",),
    "attr": ("attrs",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "sentence_transformers": ("sentence-transformers",), "category_encoders": ("category-encoders",),
    "pytorch_lightning": ("pytorch-lightning",), "sklego": ("scikit-lego",), "google": (),
}
#: Parts of Python or of other packages that only look like packages of their own.
_NOT_PACKAGES = frozenset({"jupyter_mlops", "mlflow", "IPython", "ipykernel"})
#: Most bytes of local code that goes with a model.
MOST_CODE = 64 * 1024 * 1024


@dataclass
class Needs:
    """What a model needs to be loaded elsewhere.

    Attributes:
        packages: distribution → version here.
        code: paths of local modules and packages.
    """

    packages: dict[str, str] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)

    @property
    def requirements(self) -> list[str]:
        """The packages pinned as pip takes them; what a version says of a build, such as ``+cpu``, no index has."""
        return [f"{name}=={version.partition('+')[0]}" for name, version in self.packages.items()]


def version_of(module: str) -> tuple[str, str] | None:
    """(distribution, version) of an installed top-level module, or None."""
    candidates = _DISTRIBUTIONS.get(module, (module,))
    for name in candidates:
        try:
            return candidates[0], metadata.version(name)  # builds of one package are told by its own name
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return None


def _own(name: str) -> bool:
    """Whether a module comes with Python, with us, or is the inside of another."""
    return name in sys.stdlib_module_names or name in _NOT_PACKAGES or name.startswith("_")


def _by_files(module: str) -> tuple[str, str] | None:
    """The same by the files of all distributions; takes a second, for names that nothing else knows."""
    if module not in sys.modules or not getattr(sys.modules[module], "__file__", None):
        return None
    for name in metadata.packages_distributions().get(module, []):
        return name, metadata.version(name)
    return None


def needs(modules: Iterable[str]) -> Needs:
    """The packages and local code behind top-level modules; the standard library and what nobody installed is left out.

    Local modules bring the modules that they import.
    """
    found = Needs()
    local: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in sorted(set(modules)):
        if _own(name):
            continue
        pinned = version_of(name)
        places = [] if pinned else locations(name)
        if pinned is not None:
            found.packages[pinned[0]] = pinned[1]
        elif places:
            local[name] = places
        else:
            rest.append(name)
    if local:
        sources = Sources(MOST_CODE)
        sources.add(local)
        found.code = [place for name in sources.found for place in locations(name)]
        rest += [name for name in sources.named - set(sources.found) if not _own(name)]
    for name in rest:
        pinned = version_of(name) or _by_files(name)
        if pinned is not None:
            found.packages.setdefault(*pinned)
    found.packages = dict(sorted(found.packages.items(), key=lambda item: item[0].lower()))
    return found
