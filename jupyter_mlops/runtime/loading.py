"""From a model folder to ``predict``, in the interpreter that the model needs.

:func:`load` takes the shortest way that gives the answers of ``mlflow.pyfunc``: scikit-learn, torch, XGBoost, LightGBM
and ONNX models are loaded by their own libraries (:mod:`flavours`, :mod:`estimators`), which halves start time and
memory; everything else, and whatever fails on the short way, is loaded by MLflow.
"""

import contextlib
import os
import sys

from .answers import cause

#: Column types whose values are numbers; as in ``serving.signature.CODES``.
NUMBERS = ("integer", "long", "float", "double")
#: Distributions whose name is not that of their module.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "PyYAML", "dateutil": "python-dateutil",
}


class Model:
    """What was loaded.

    Attributes:
        predict: ``predict(data, params) -> output``; data is a DataFrame, an array that may be written into, a dict of
            arrays or a list. It is called on one thread.
        loader: how it was loaded: sklearn, torch, xgboost, lightgbm, onnx, pyfunc or script.
        wants: ``array`` when a C-contiguous array of two dimensions, one column for each of the signature's, in place
            of a DataFrame gives the same answers (no pandas is needed then); else ``frame``. A model that wants arrays
            takes DataFrames, too.
        columns: for ``array``: names of the columns in the order that is expected; None when they have no names.
        batch_safe: rows do not influence each other, so that rows of several requests may be predicted at once.
        packages: name → version of the packages that this process has imported.
    """

    def __init__(self, predict, loader, wants="frame", columns=None, batch_safe=False):
        self.predict = predict
        self.loader = loader
        self.wants = wants
        self.columns = columns
        self.batch_safe = batch_safe
        self.packages = {}


def load(folder, about):
    """The model in an MLflow model folder, or the scoring script beside it.

    Args:
        folder: path of the model folder; of a deployment that has a script only, it need not exist.
        about: what ``serving.store`` found: ``{"signature", "native", "script"}``. native says how the model is loaded
            without MLflow, or is None; script is ``{"file"}`` in the folder ``code`` beside the model, or absent.

    Raises:
        Exception: whatever the libraries, the model or the script raise.
    """
    if about.get("script"):
        from . import script

        model = script.load(os.path.join(os.path.dirname(folder), "code"), about["script"]["file"], folder)
        return _finished(model)
    native = about.get("native") or {}
    model = None
    with no_needless_torch():
        if native and os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true").lower() != "false":
            try:
                model = _native(folder, native, about.get("signature") or {})
            except Exception as error:
                # MLflow's own loader has the last word, and its error is the one that users can look up.
                print("loading without MLflow failed (%s), with it now" % cause(error, None), flush=True)
        if model is None:
            model = _pyfunc(folder)
    return _finished(model)


def _finished(model):
    _limit_torch()
    model.packages = packages(list(sys.modules))
    return model


def _native(folder, native, signature):
    kind = native["kind"]
    if kind == "sklearn":
        from . import estimators

        return estimators.load(folder, native, signature)
    from . import flavours

    return getattr(flavours, "load_" + kind)(folder, native, signature)


def _pyfunc(folder):
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(folder, suppress_warnings=True)
    return Model(lambda data, params: model.predict(data, params=params or None), "pyfunc")


def _limit_torch():
    """As many threads as there are cores for us; torch itself looks at the whole machine."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        with contextlib.suppress(Exception):
            torch.set_num_threads(threads())


def threads():
    """Cores that the model may use."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        return os.cpu_count() or 1


def number_columns(signature):
    """(whether the input is columns of numbers only, all of them required; their names, or None without names)."""
    inputs = signature.get("inputs") or []
    if not inputs or not all(c.get("type") in NUMBERS and c.get("required", True) for c in inputs):
        return False, None
    names = [c.get("name") for c in inputs]
    return True, None if None in names else [str(n) for n in names]


def tensor_rows(signature):
    """Whether any number of rows fits every input: columns always, tensors when their first dimension is -1."""
    for item in signature.get("inputs") or []:
        if item.get("type") == "tensor" and (item.get("tensor-spec") or {}).get("shape", [0])[:1] != [-1]:
            return False
    return True


def packages(modules):
    """Name → version of the distributions that these modules belong to, the standard library left out."""
    from importlib import metadata

    known = getattr(sys, "stdlib_module_names", ())
    found = {}
    for name in sorted({m.partition(".")[0] for m in modules}):
        module = sys.modules.get(name)
        if name in known or name.startswith("_") or module is None or name == "jupyter_mlops":
            continue
        version = vars(module).get("__version__")
        if not isinstance(version, str):
            continue  # looking each of hundreds of modules up costs too much, and these do not tell their version
        distribution = _DISTRIBUTIONS.get(name, name)
        with contextlib.suppress(Exception):
            version = metadata.version(distribution)
        found[distribution] = version
    return found


def no_needless_torch():
    """For a ``with`` statement, in which ``sklearn.utils.all_estimators`` does not import torch, CuPy and dask.

    skops calls that function when it is imported. It walks all of scikit-learn's modules, among them adapters to these
    libraries, and skips those whose import fails. Torch costs a second and 200 MB, for nothing. The adapters
    can be imported again once the model is loaded.
    """
    def needless(name):
        head, _, last = name.rpartition(".")
        adapter = head == "sklearn.externals.array_api_compat" and last in ("torch", "cupy", "dask")
        return adapter and last not in sys.modules

    return Refusal(needless)


class Refusal:
    """Lets imports of the modules for which ``unwanted(name)`` is true fail, as if these were not there.

    For libraries that import others where they find them. In a ``with`` statement, or from :meth:`begin` on.
    """

    def __init__(self, unwanted):
        self.unwanted = unwanted

    def begin(self):
        """Refuse from now on."""
        sys.meta_path.insert(0, self)

    def __enter__(self):
        self.begin()

    def __exit__(self, *_):
        sys.meta_path.remove(self)

    def find_spec(self, name, path=None, target=None):
        """The import system's question."""
        if self.unwanted(name):
            raise ModuleNotFoundError("%s is not imported here" % name, name=name)
        return None
