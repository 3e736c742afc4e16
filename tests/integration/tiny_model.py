"""A model folder made by hand, whose scorer is up in a tenth of a second: for tests of processes, not of models."""

from __future__ import annotations

import pickle
from pathlib import Path

#: Answers with the pid of its process, after as many seconds as the first number says; negative: it kills itself.
SOURCE = '''
import os, signal, time

if os.environ.get("HANG") and not os.path.exists(os.environ["HANG"]):
    time.sleep(600)
if os.environ.get("BROKEN") and os.path.exists(os.environ["BROKEN"]):
    print("the weights are not there", flush=True)
    os._exit(5)  # raised, MLflow would be imported to try once more

class Tiny:
    def predict(self, data):
        first = float(data.reshape(-1)[0])
        if first < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(first)
        return [os.getpid()] * len(data)

model = Tiny()
'''

MLMODEL = '''
artifact_path: model
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, predict_fn: predict, python_version: 3.11.0}
  sklearn: {pickled_model: model.pkl, serialization_format: pickle, sklearn_version: 1.0.0}
model_uuid: 0123456789abcdef
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 1]}}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
'''


class _Source:
    def __reduce__(self):
        return eval, (f"(lambda n: (exec({SOURCE!r}, n), n['model'])[1])({{}})",)


def save(folder: Path) -> Path:
    """Write the model folder; its path."""
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "model.pkl").write_bytes(pickle.dumps(_Source()))
    return folder
