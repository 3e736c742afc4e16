"""A workspace folder in which scorers and a gateway run as below a control plane: what the benches of serving share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jupyter_mlops.serving.local import LocalServing


class Workspace:
    """``home`` and ``runtime``, and the driver ``serving`` of them; :meth:`close` ends and removes everything."""

    def __init__(self):
        self.home, self.runtime = (Path(tempfile.mkdtemp(prefix=f"mlops-{name}-")) for name in ("serving", "run"))
        self.serving = LocalServing(self.home, self.runtime)

    def close(self):
        self.serving.stop_all()
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.runtime, ignore_errors=True)
