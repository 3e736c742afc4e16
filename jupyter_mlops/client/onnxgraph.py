"""Converting to ONNX, and what is put around the converted graph: casts of its input, the form of its answer."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The outputs of a converted classifier, by the function that answers.
_OUTPUT = {"predict": 0, "predict_proba": 1}
ROWS = "rows"


class Unconvertible(Exception):
    """There is no ONNX form of the model; the message is the reason, for people."""


def candidates(model: Any, sample: Any, expected: Any, method: str, torch: bool) -> Iterator[Any]:
    """Converted models, the most exact first; the reason in place of one that failed."""
    if torch:
        yield _finished(_from_torch(model, sample), sample, expected, "matrix", {})
        return
    if method not in _OUTPUT:
        raise Unconvertible(f"{method} cannot be had of an ONNX model")
    for form in _forms(sample):
        for double in (True, False):
            try:
                proto, names = _from_sklearn(model, sample, method, form, double)
                yield _finished(proto, sample, expected, form, names)
            except Unconvertible as error:
                yield str(error)
            except Exception as error:
                yield f"it cannot be converted ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """The first line of a message, cut to what a reader takes in."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= 160 else text[:160] + "…"


def _forms(sample: Any) -> list[str]:
    """How the input is given to the converter: as one matrix, as columns cut from one, or as columns."""
    if not hasattr(sample, "columns"):
        return ["matrix"]
    if all(t.kind in "fiu" for t in sample.dtypes):
        return ["matrix", "cut"]
    return ["columns"]


def _from_torch(model: Any, sample: Any) -> Any:
    import numpy as np
    import onnx
    import torch

    array = sample.to_numpy(dtype=np.float32) if hasattr(sample, "columns") else np.ascontiguousarray(sample)
    # Two rows at least: of a single one the exporter takes the 1 for a constant.
    array = np.concatenate([array[:1], array[:1], array[:1]])
    with tempfile.TemporaryDirectory(prefix="mlops-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", torch.jit.TracerWarning)
                torch.onnx.export(
                    model, (torch.from_numpy(array),), path, input_names=["input"], output_names=["answer"],
                    dynamic_axes={"input": {0: ROWS}, "answer": {0: ROWS}}, opset_version=17, dynamo=False)
        except Exception as error:
            raise Unconvertible(f"torch cannot export it ({first_line(error)})") from error
        if any(issubclass(w.category, torch.jit.TracerWarning) for w in told):
            # Tracing follows one branch of an if: rows that take the other would be answered wrongly.
            raise Unconvertible("its forward() decides by values or shapes, which is lost in ONNX")
        return onnx.load(path)


def _from_sklearn(model: Any, sample: Any, method: str, form: str, double: bool) -> tuple[Any, dict[str, str]]:
    """The converted model, and what its inputs are called (name of a column → name in the graph)."""
    from skl2onnx import to_onnx
    from skl2onnx.common import data_types as types
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
    from sklearn.base import is_classifier

    number = types.DoubleTensorType if double else types.FloatTensorType
    if form == "matrix":
        width = sample.shape[1] if sample.ndim == 2 else 0
        if not width:
            raise Unconvertible("only tables of two dimensions are converted")
        initial = [("input", number([None, width]))]
    else:
        initial = []
        for name, kind in sample.dtypes.items():
            if kind.kind == "f":
                found = number([None, 1])
            elif kind.kind in "iu":
                found = types.Int64TensorType([None, 1])
            elif kind.kind == "b":
                found = types.BooleanTensorType([None, 1])
            elif _is_text(sample[name]):
                found = types.StringTensorType([None, 1])
            else:
                raise Unconvertible(f"column {name!r} is neither numbers nor text")
            initial.append((str(name), found))
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    proto = to_onnx(model, initial_types=initial, options=options)
    names = [i.name for i in proto.graph.input]  # of which the converter replaces what is no identifier
    if len(names) != len(initial):
        raise Unconvertible("its ONNX form leaves inputs out")
    outputs = [o.name for o in proto.graph.output]
    if _OUTPUT[method] >= len(outputs):
        raise Unconvertible(f"its ONNX form has no {method}")
    proto = select_model_inputs_outputs(proto, outputs=[outputs[_OUTPUT[method]]])
    return proto, dict(zip((name for name, _ in initial), names, strict=True))


def _is_text(column: Any) -> bool:
    return all(isinstance(v, str) for v in column)


def _finished(proto: Any, sample: Any, expected: Any, form: str, names: dict[str, str]) -> Any:
    """The graph with inputs as the signature has them and one output, ``predictions``, shaped and typed as expected."""
    import onnx
    from onnx import TensorProto, helper

    graph = proto.graph
    before: list[Any] = []
    inputs: list[Any] = []
    inner = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    renamed: dict[str, str] = {}

    def constant(name: str, values: list[int]) -> None:
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))

    def lead(name: str, kind: int, into: str) -> None:
        """Have the graph's input ``into`` read ``name``, which is of the type ``kind``."""
        if into in inner and kind != inner[into]:
            before.append(helper.make_node("Cast", [name], [name + "|cast"], to=inner[into]))
            name += "|cast"
        renamed[into] = name

    if form == "columns":
        constant("one|", [1])
        for column in sample.columns:
            name, kind = str(column), _element(sample[column].dtype)
            if names[name] in inner:  # else the model drops it
                inputs.append(helper.make_tensor_value_info(name, kind, [ROWS]))
                before.append(helper.make_node("Unsqueeze", [name, "one|"], [name + "|matrix"]))
                lead(name + "|matrix", kind, names[name])
    else:
        frame = hasattr(sample, "columns")
        kind = _element(_common(sample) if frame else sample.dtype)
        inputs.append(helper.make_tensor_value_info("table", kind, [ROWS, *sample.shape[1:]]))
        if form == "matrix":
            lead("table", kind, "input")
        else:
            cut = [f"{c}|cut" for c in sample.columns]
            constant("ones|", [1] * len(cut))
            before.append(helper.make_node("Split", ["table", "ones|"], cut, axis=1))
            for column, part in zip(sample.columns, cut, strict=True):
                lead(part, kind, names[str(column)])
    if graph.output[0].name in renamed:
        raise Unconvertible("it hands its input through")
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    nodes = [*before, *graph.node]
    output = graph.output[0]
    last = output.name
    shape: list[Any] = [ROWS, *expected.shape[1:]]
    constant("shape|", [-1, *expected.shape[1:]])
    nodes.append(helper.make_node("Reshape", [last, "shape|"], [last + "|shaped"]))
    last += "|shaped"
    wanted = _element(expected.dtype)
    if wanted not in (output.type.tensor_type.elem_type, TensorProto.STRING):
        nodes.append(helper.make_node("Cast", [last], [last + "|cast"], to=wanted))
        last += "|cast"
    nodes.append(helper.make_node("Identity", [last], ["predictions"]))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("predictions", wanted, shape))
    onnx.checker.check_model(proto)
    return proto


def _common(sample: Any) -> Any:
    import numpy as np

    return np.result_type(*sample.dtypes)


def _element(dtype: Any) -> int:
    import numpy as np
    from onnx import TensorProto, helper

    if dtype.kind not in "fiub":
        return int(TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype.name)))
