"""The least that serves a model over HTTP: one ASGI function that parses with orjson and calls predict.

No keys, no check of the input, no metrics. ``python bare_asgi.py MODEL_FOLDER PORT``; the peer of ``serving.py``.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn


def load(folder: Path) -> Any:
    """The estimator in an MLflow model folder that was saved as pickle."""
    with open(folder / "model.pkl", "rb") as f:
        return pickle.load(f)


def main() -> None:
    """Serve until the process is ended."""
    model = load(Path(sys.argv[1]))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        rows = orjson.loads(body)["dataframe_split"]["data"]
        answer = orjson.dumps({"predictions": model.predict(np.array(rows, dtype=float)).tolist()})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="error",
                lifespan="off", access_log=False)


if __name__ == "__main__":
    main()
