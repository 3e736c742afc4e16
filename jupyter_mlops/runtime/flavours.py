"""torch, XGBoost, LightGBM and ONNX models without MLflow: loaded by their libraries, answering as ``mlflow.pyfunc``.

Each loader takes ``native``, what ``serving.store`` found in the MLmodel file, and the signature, and raises whatever
goes wrong: :mod:`loading` then leaves the model to MLflow. Where MLflow refuses an output (several tensors, more than
two dimensions beside columns), these give it as nested lists.
"""

import contextlib
import inspect
import os
import re
import warnings

from .loading import Model, number_columns, tensor_rows, threads

#: Said by estimators that were fitted on a DataFrame and get an array; the order of columns is checked here once.
_NO_NAMES = "X does not have valid feature names"


def records(columns):
    """What a DataFrame of these columns (name → list of values) is in an answer: one dictionary for each row."""
    names = list(columns)
    return [dict(zip(names, row)) for row in zip(*columns.values())]


def matrix(data):
    """The numbers of a DataFrame or array, as an array."""
    return data.to_numpy() if hasattr(data, "to_numpy") else data


def device(config=None):
    """Where a model computes: what the deployment or the model asks for, else a GPU when there is one."""
    import torch

    wanted = os.environ.get("JUPYTER_MLOPS_DEVICE") or os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE") or config
    return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))


# -- torch --------------------------------------------------------------------


def load_torch(folder, native, signature):
    """A torch module, its weights mapped from the file, so that all instances of a deployment share them."""
    import numpy as np
    import torch

    where = device(native.get("device"))
    path = os.path.join(folder, native["data"], native["file"])
    if native["file"].endswith(".pt2"):
        exported = torch.export.load(path)
        module = exported.module()
        # The weights of an exported program stay where they were exported.
        where = next((p.device for p in module.parameters()), torch.device("cpu"))
        stacks = bool(exported.range_constraints) and tensor_rows(signature)
    else:
        module = _torch_load(torch, path, where)
        if any(kind.__module__.startswith("pytorch_forecasting") for kind in type(module).__mro__):
            raise ValueError("forecasting models take DataFrames")
        module.eval()
        module.to(where)
        stacks = tensor_rows(signature)
    numbers, names = number_columns(signature)

    def tensor(value):
        # torch has no read-only tensors; pandas gives read-only arrays.
        return torch.from_numpy(np.require(value, requirements="W")).to(where)

    def predict(data, params):
        params = params or {}
        if "device" in params:
            raise ValueError("the device is chosen by JUPYTER_MLOPS_DEVICE of the deployment, not by a parameter")
        table = numbers or hasattr(data, "to_numpy")
        with torch.inference_mode():
            if isinstance(data, dict):
                output = module(**{name: tensor(value) for name, value in data.items()}, **params)
            elif table:
                values = data.to_numpy(dtype=np.float32) if hasattr(data, "to_numpy") else data.astype(np.float32)
                output = module(tensor(values), **params)
            else:
                output = module(tensor(np.asarray(data)), **params)
            plain = _off_device(output, torch)
        if not table or not isinstance(plain, np.ndarray) or plain.ndim not in (1, 2):
            return plain
        plain = plain.reshape(len(plain), -1)
        return records({str(i): plain[:, i].tolist() for i in range(plain.shape[1])})

    return Model(predict, "torch", "array" if numbers else "frame", names, stacks)


def _torch_load(torch, path, where):
    """As ``torch.load``, with the file mapped where its format and this torch allow that."""
    options = {"map_location": where, "weights_only": False}
    try:
        return torch.load(path, mmap=True, **options)
    except (RuntimeError, TypeError, ValueError):  # the format before torch 1.6, or a torch before 2.1
        options.pop("weights_only")
        with contextlib.suppress(TypeError):
            return torch.load(path, weights_only=False, **options)
        return torch.load(path, **options)


def _off_device(value, torch):
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {str(k): _off_device(v, torch) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_off_device(v, torch) for v in value]
    return value


# -- XGBoost and LightGBM -----------------------------------------------------


def load_xgboost(folder, native, signature):
    import xgboost

    module, _, name = native["class"].rpartition(".")
    if module.partition(".")[0] != "xgboost":
        raise ValueError("%s is not a class of XGBoost" % native["class"])
    import importlib

    model = getattr(importlib.import_module(module), name)()
    model.load_model(os.path.join(folder, native["data"]))
    booster = model if isinstance(model, xgboost.Booster) else model.get_booster()
    numbers, names = number_columns(signature)
    types = booster.feature_types or []
    arrays = numbers and "c" not in types and _same(booster.feature_names, names)
    if isinstance(model, xgboost.Booster):
        in_place = arrays and _kind_of_booster(booster) in ("gbtree", "dart")

        def predict(data, params):
            if in_place and not params:
                return booster.inplace_predict(matrix(data), validate_features=False)
            if arrays and not hasattr(data, "to_numpy"):
                frame = xgboost.DMatrix(data, feature_names=booster.feature_names)
            else:
                frame = xgboost.DMatrix(data)
            return booster.predict(frame, validate_features=True, **_known(booster.predict, params))

    else:

        def predict(data, params):
            extra = _known(model.predict, params)
            if arrays:
                return model.predict(matrix(data), validate_features=False, **extra)
            return model.predict(data, validate_features=True, **extra)

    return Model(predict, "xgboost", "array" if arrays else "frame", names if arrays else None, True)


def _kind_of_booster(booster):
    import json

    return json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]


def _same(known, names):
    """Whether the columns of the signature are those that the model was fitted on, in its order."""
    unnamed = not known or all(re.match(r"Column_\d+$", str(n)) for n in known)  # what LightGBM calls those of arrays
    return unnamed or names is None or [str(n) for n in known] == names


def _known(function, params):
    """Those params that a function takes; the others are ignored, as MLflow does."""
    if not params:
        return {}
    taken = inspect.signature(function).parameters
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in taken.values()):
        return params
    return {k: v for k, v in params.items() if k in taken}


def load_lightgbm(folder, native, signature):
    import lightgbm

    path = os.path.join(folder, native["data"])
    if native["class"] == "lightgbm.basic.Booster":
        model = booster = lightgbm.Booster(model_file=path)
    else:
        from . import estimators

        model = estimators.unpickle(path, native)
        booster = model.booster_
        warnings.filterwarnings("ignore", message=_NO_NAMES)
    numbers, names = number_columns(signature)
    # A booster remembers the categories of a DataFrame's columns, and wants to see them again.
    arrays = numbers and not booster.pandas_categorical and _same(booster.feature_name(), names)

    def predict(data, params):
        return model.predict(matrix(data) if arrays else data)

    return Model(predict, "lightgbm", "array" if arrays else "frame", names if arrays else None, True)


# -- ONNX ---------------------------------------------------------------------

_NUMPY = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64", "tensor(bool)": "bool",
}


def load_onnx(folder, native, signature):
    """An ONNX Runtime session.

    A model made by ``client/onnx.py`` says in its metadata in which form it answers (``native["answer"]``: ``array`` or
    ``records``), as the model that it was made from did, and which values that one refused (``native["refuses"]``).
    """
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(folder, native["data"]), sess_options=_session_options(onnxruntime, native.get("options") or {}),
        providers=_providers(onnxruntime, native.get("providers")))
    inputs, outputs = session.get_inputs(), [o.name for o in session.get_outputs()]
    numbers, names = number_columns(signature)
    columns = any(c.get("type") != "tensor" for c in signature.get("inputs") or [])
    form = native.get("answer")
    refuse = _refusal(native.get("refuses") or (), np)

    def feed(data):
        if isinstance(data, dict):
            return {i.name: _fitting(data[i.name], i, np) for i in inputs if i.name in data}
        if len(inputs) == 1:
            return {inputs[0].name: _fitting(matrix(data), inputs[0], np)}
        if not hasattr(data, "to_numpy"):
            raise TypeError("the model has %d inputs, and got one array" % len(inputs))
        return {i.name: _fitting(data[i.name].to_numpy(), i, np) for i in inputs}

    def predict(data, params):
        feeds = feed(data)
        if refuse:
            for value in feeds.values():
                refuse(value)
        if form:
            feeds = {name: _whole(value, np) for name, value in feeds.items()}
        given = session.run(outputs[:1] if form else outputs, feeds)
        if form == "records":
            flat = given[0].reshape(len(given[0]), -1)
            return records({str(i): flat[:, i].tolist() for i in range(flat.shape[1])})
        if form:
            return given[0]
        if columns and not isinstance(data, dict):
            return records({name: _column(value, len(data), np) for name, value in zip(outputs, given)})
        return dict(zip(outputs, given))

    dynamic = all(o.type.startswith("seq") or (o.shape and not isinstance(o.shape[0], int))
                  for o in inputs + session.get_outputs())
    arrays = numbers and len(inputs) == 1
    return Model(predict, "onnx", "array" if arrays else "frame", names if arrays else None,
                 bool(dynamic and tensor_rows(signature)))


def _refusal(words, np):
    """A check that raises for what the model's original raised for; ONNX Runtime computes on, whatever comes."""
    if not set(words) & {"nan", "inf", "null"}:
        return None

    def check(value):
        kind = value.dtype.kind
        if kind == "f":
            if not np.isfinite(value).all():
                if "nan" in words and np.isnan(value).any():
                    raise ValueError("Input contains NaN.")
                if "inf" in words and np.isinf(value).any():
                    raise ValueError("Input contains infinity.")
        elif kind == "O" and "null" in words and any(not isinstance(v, str) for v in value.flat):
            raise ValueError("Input contains a missing text.")

    return check


def _whole(value, np):
    """With a text that nobody has in place of missing ones, which the session would not take."""
    if value.dtype.kind != "O" or all(isinstance(v, str) for v in value.flat):
        return value
    return np.array([v if isinstance(v, str) else "\u2042missing" for v in value.flat], object).reshape(value.shape)


def _session_options(onnxruntime, wanted):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = wanted.get("intra_op_num_threads") or threads()
    if wanted.get("inter_op_num_threads"):
        options.inter_op_num_threads = wanted["inter_op_num_threads"]
    if str(wanted.get("execution_mode")).upper() == "PARALLEL":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if wanted.get("graph_optimization_level"):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel(wanted["graph_optimization_level"])
    # Threads that wait by spinning take the cores of the gateway and of other instances.
    extra = {"session.intra_op.allow_spinning": "0", **(wanted.get("extra_session_config") or {})}
    for key, value in extra.items():
        options.add_session_config_entry(key, str(value))
    return options


def _providers(onnxruntime, wanted):
    """Those of the model's providers that this build has, the CPU last."""
    if os.environ.get("JUPYTER_MLOPS_DEVICE", "").startswith("cpu"):
        return ["CPUExecutionProvider"]
    wanted = [wanted] if isinstance(wanted, str) else wanted or ["CUDAExecutionProvider"]
    have = onnxruntime.get_available_providers()
    found = [tuple(p) if isinstance(p, list) else p for p in wanted]
    found = [p for p in found if (p[0] if isinstance(p, tuple) else p) in have]
    return found if "CPUExecutionProvider" in found else [*found, "CPUExecutionProvider"]


def _fitting(value, wanted, np):
    """An array in the type of the session's input; a column becomes a matrix of one column where that is asked for."""
    dtype = _NUMPY.get(wanted.type)
    if dtype and value.dtype != dtype and value.dtype.kind in "fiub" and np.can_cast(value.dtype, dtype, "same_kind"):
        value = value.astype(dtype)
    elif wanted.type == "tensor(string)":
        value = value.astype(object)
    if value.ndim == 1 and len(wanted.shape or ()) == 2 and wanted.shape[1] == 1:
        value = value.reshape(-1, 1)
    return value


def _column(value, rows, np):
    """One output as a column: flattened, as MLflow does, where that gives a value for each row, else lists."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{str(k): v for k, v in item.items()} for item in value]
    value = np.asarray(value)
    return (value.reshape(-1) if value.size == rows or value.ndim < 2 else value).tolist()
