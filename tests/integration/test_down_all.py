"""``down --all`` with a cluster that answers and one that does not."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Plane, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from pod_server import PodServer

from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split


def test_jobs_on_clusters_are_stopped_and_what_cannot_be_is_named(tmp_path, capsys):
    server = PodServer().start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(tmp_path))
        plane = Plane(make_home()).start()

    def run(line: str, cell: str | None = None):
        return commands.run(parse(split(line), "cli"), Context("cli", {}, cell=cell, where=plane.place))

    try:
        plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                                   "training": {"image": "image:1", "hold": 5}})
        plane.put("computes/away", {"type": "kubernetes", "namespace": "team", "context": "no-such-context"})
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as z:
            z.writestr("score.py", "def run(raw):\n    return raw\n")
        digest = hashlib.sha256(code.getvalue()).hexdigest()
        assert plane.call("PUT", f"blobs/{digest}", code.getvalue())[0] == 201
        plane.put("endpoints/far", {"compute": "away"}, 201)
        plane.put("endpoints/far/deployments/blue", {
            "code_configuration": {"code": f"blob:{digest}", "scoring_script": "score.py"},
            "interpreter": sys.executable}, 201)
        run("train -n long --compute gpu", "import time\nprint('up', flush=True)\ntime.sleep(600)")
        wait_for(lambda: plane.get("jobs/long")["status"]["phase"] == "Running", 60)
        run("down --all --yes")
        assert plane.process.wait(30) == 0
        said = capsys.readouterr().err
        assert "has ended, with 1 job(s)\n" in said
        assert "not stopped: deployment blue of endpoint far: " in said and "no-such-context" in said, said
        wait_for(lambda: not server.objects, 30)
    finally:
        plane.stop()
        server.stop()
