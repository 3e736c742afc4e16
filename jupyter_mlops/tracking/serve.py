"""The MLflow child's own process: one lean uvicorn with MLflow's app on a unix socket.

Started by :mod:`jupyter_mlops.tracking.child` as ``python -m jupyter_mlops.tracking.serve SOCKET DATABASE``. Ends with
SIGTERM, and by itself when its standard input closes, which is when its control plane is gone.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading

#: Optional to what MLflow's server imports and unused by it; without them the process is 50 MB smaller.
UNUSED = ("pyarrow", "scipy")


def watch_parent() -> None:
    """End this process when the control plane's end of standard input closes."""
    try:
        while os.read(0, 512):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(path: str, database: str) -> int:
    """Serve on the unix socket at ``path`` until told to stop; ``database``: its file, see :mod:`.database`."""
    os.umask(0o077)
    gc.disable()  # of what the imports make nothing is garbage: looking for it took a sixth of the start
    threading.Thread(target=watch_parent, daemon=True).start()
    # Python's own answer until uvicorn sets its own: an end during the imports is silent too.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    import uvicorn  # MLflow looks whether it is imported
    from mlflow.server import fastapi_app, handlers

    from . import database as file

    file.prepare(database)
    # Opens the database before anybody is answered.
    handlers._get_tracking_store()
    handlers._get_model_registry_store()
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(
        fastapi_app.app, log_level="warning", access_log=False, lifespan="on", ws="none",
        timeout_keep_alive=75, timeout_graceful_shutdown=5, backlog=512,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
