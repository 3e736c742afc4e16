"""Scoring scripts: ``init()`` once, then ``run(raw_data)`` for each request, as Azure ML has them.

``raw_data`` is the body of the request as text. What ``run`` returns is the answer, as JSON: a string is a JSON string
(as in Azure ML), bytes are a JSON document that is ready, arrays are lists.

For the script, ``AZUREML_MODEL_DIR`` and ``JUPYTER_MLOPS_MODEL_DIR`` are the model's folder when the deployment has a
model, ``AML_APP_ROOT`` and the working directory are the folder of the code; that and the script's own folder are
first on ``sys.path``.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys

from .loading import Model


def load(code, script, model):
    """The script as a :class:`Model`; ``init`` has been called.

    Args:
        code: the folder of the code.
        script: path of the script in it.
        model: the model's folder; it need not exist.

    Raises:
        Exception: whatever the script or ``init`` raise.
    """
    code, model = os.path.abspath(code), os.path.abspath(model)
    path = os.path.join(code, script)
    if not os.path.isfile(path):
        raise FileNotFoundError("there is no scoring script %s in the code" % script)
    if os.path.isdir(model):
        os.environ["AZUREML_MODEL_DIR"] = os.environ["JUPYTER_MLOPS_MODEL_DIR"] = model
    os.environ["AML_APP_ROOT"] = code
    os.chdir(code)
    for folder in (code, os.path.dirname(path)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module = _module(path)
    run, init = getattr(module, "run", None), getattr(module, "init", None)
    if not callable(run):
        raise AttributeError("the scoring script %s has no function run(raw_data)" % script)
    if init is not None:
        init()
    # Asked for again at each request: a script may replace its own run, as decorators and init do.
    return Model(lambda data, params: _answer(module.run(_text(data))), "script")


def _module(path):
    """The script as a module under its own name, so that what it defines can be pickled and imported."""
    name = os.path.splitext(os.path.basename(path))[0]
    if not name.isidentifier() or name in sys.modules or name in getattr(sys, "stdlib_module_names", ()):
        name = "scoring_script"
    loader = importlib.machinery.SourceFileLoader(name, path)  # whatever its file's suffix is
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError("%s cannot be imported" % os.path.basename(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _text(data):
    if isinstance(data, str):
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return str(data, "utf-8")
    return json.dumps(data)


def _answer(output):
    if not isinstance(output, (bytes, bytearray, memoryview)):
        return output
    try:
        return json.loads(bytes(output))
    except (ValueError, RecursionError):
        raise ValueError("run returned bytes that are no JSON document") from None
