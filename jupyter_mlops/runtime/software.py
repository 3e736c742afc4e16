"""What an interpreter has: its version and its packages, and whether that fits what a notebook has sent.

Packages are read off the names of their ``.dist-info`` folders: of hundreds in a few milliseconds, without an import.
"""

import os
import re
import sys

#: Told one by one where an image is described; all others are counted.
NOTED = ("torch", "cloudpickle", "mlflow", "mlflow-skinny", "numpy", "pandas", "scikit-learn", "tensorflow", "jax")


def normal(name):
    """A package's name as it is compared: ``Scikit_Learn`` → ``scikit-learn``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(folders=None):
    """``{name: version}`` of what is installed in folders, those of this interpreter by default; the first wins."""
    found = {}  # type: dict[str, str]
    for folder in sys.path if folders is None else folders:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            stem, kind = os.path.splitext(name)
            if kind == ".dist-info" or kind == ".egg-info":
                title, dash, version = stem.partition("-")
                if dash:
                    # Of an egg the version of Python follows.
                    found.setdefault(normal(title), version.partition("-")[0])
    return found


def facts():
    """``{"python": "3.11.7", "packages": {…}, "pip": bool, "conda": bool, "mpirun": bool}`` of the image around us."""
    from importlib.util import find_spec

    from . import conda, mpi

    return {"python": "%d.%d.%d" % sys.version_info[:3], "packages": packages(), "pip": find_spec("pip") is not None,
            "conda": conda.tool() is not None,
            "mpirun": mpi.find(sys.executable, os.environ.get("PATH", os.defpath)) is not None}


def minor(version):
    """``3.11`` of ``3.11.7``."""
    return ".".join(version.partition("+")[0].split(".")[:2])


#: The oldest Python in which our runtime runs.
OLDEST = (3, 9)


def compare(packed, there, image, wants="", added=(), conda=()):
    """Whether what a notebook has packed can be used by an image.

    Args:
        packed: ``{"python", "by_value", "packages"}`` of the kernel, or None when nothing was packed.
        there: see :func:`facts`.
        image: its name, for the words.
        wants: the version of Python that a conda file names, as ``3.11``.
        added: names of packages that will be installed.
        conda: names of packages of conda that are asked for: then all runs in an environment of its own, and of the
            image only the tool counts that makes it. With ``site`` in ``there``, that is what such an environment has.

    Returns:
        (why it cannot work, or an empty text; one line for each difference that may matter)
    """
    theirs = minor(str(there.get("python") or ""))
    if conda:
        return _compare_conda(packed, there, image, wants, added, conda)
    if wants and theirs and wants != theirs:
        return ("the conda file asks for Python %s, and the image %s has Python %s: use an image with Python %s" % (
            wants, image, theirs, wants), [])
    if not packed or not theirs:
        return "", []
    ours = minor(str(packed.get("python") or ""))
    if packed.get("by_value") and ours and ours != theirs:
        return ("functions or classes of the notebook are of Python %s and do not run under Python %s of the image %s: "
                "use an image with Python %s, or a kernel with Python %s" % (ours, theirs, image, ours, theirs), [])
    return "", _remarks(packed, there, added, "image", "--pip %s==%s installs it")


def unmade(packed, wants):
    """Why an environment of conda with a version of Python would not do, whatever image makes it; or an empty text."""
    if wants and tuple(int(part) for part in wants.split(".")) < OLDEST:
        return "the conda file asks for Python %s, and jobs need %d.%d or newer" % (wants, *OLDEST)
    ours = minor(str((packed or {}).get("python") or ""))
    if wants and ours and ours != wants and (packed or {}).get("by_value"):
        return ("functions or classes of the notebook are of Python %s and do not run under Python %s of the conda "
                "file: write python=%s in it, or use a kernel with Python %s" % (ours, wants, ours, wants))
    return ""


def _compare_conda(packed, there, image, wants, added, conda):
    error = unmade(packed, minor(str(there.get("python"))) if "site" in there else wants)
    if not error and there.get("conda") is False:
        shown = ", ".join(conda[:5]) + (" and %d more" % len(conda[5:]) if conda[5:] else "")
        error = ("the image %s has neither micromamba, mamba nor conda, which make the environment of the conda file: "
                 "use an image that has one, or name the packages (%s) in the file's pip section" % (image, shown))
    if error or not packed or "site" not in there:
        return error, []
    cure = "name it in the conda file, or %s==%s in its pip section"
    return "", _remarks(packed, there, (), "conda environment", cure)


def _remarks(packed, there, added, where, cure):
    ours, theirs = minor(str(packed.get("python") or "")), minor(str(there.get("python") or ""))
    remarks = []
    if ours and ours != theirs:
        remarks.append("Python is %s here and %s in the %s" % (ours, theirs, where))
    installed = there.get("packages") or {}
    taken = {normal(name) for name in added}
    for name, version in sorted((packed.get("packages") or {}).items()):
        name = normal(name)
        found = installed.get(name)
        if name in taken:
            continue
        if found is None:
            if name != "cloudpickle":  # ours goes along then
                remarks.append(("%s is %s here and not in the %s: " + cure) % (
                    name, version, where, name, version.partition("+")[0]))
        elif minor(found) != minor(version):
            remarks.append("%s is %s here and %s in the %s" % (name, version, found, where))
    return remarks
