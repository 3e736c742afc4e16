"""A model of scikit-learn or torch as an ONNX model, offered only when it is faster and answers the same.

The converted model is loaded and called as a deployment would, on the sample and on rows made from it. It takes the
caller's columns as they are (64-bit numbers are cast inside), and answers in the form of the model it was made from:
its metadata tells the scorer so. What cannot be converted, differs, or is not faster, is no offer; the reason is told.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flavour import quiet
from .onnxgraph import Unconvertible, candidates, first_line

#: Bytes of a pickled model beyond which converting takes too long to be tried unasked.
MOST_BYTES = 64 << 20
#: How far numbers may differ; labels may not.
RTOL = 1e-4
#: Rows that are made from the sample, in each of three ways.
MADE = 300
#: An offer answers one row and a hundred in at most this share of the time.
FASTER = 0.9
#: Seconds after which no other way of converting is tried.
PATIENCE = 10.0
SIZES = (1, 100)


@dataclass(frozen=True)
class Offer:
    """A faster form of a model.

    Attributes:
        model: the ``onnx.ModelProto`` for ``mlflow.onnx``, to be logged with the signature of the original.
        metadata: has to be logged with it (``metadata=``).
        line: the figures in one line, for people.
        rows: how many rows were compared.
        max_difference: the largest absolute difference of two numbers.
        before, after: microseconds for so many rows, of the original and of the offer.
    """

    model: Any
    metadata: dict[str, str]
    line: str
    rows: int
    max_difference: float
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)


def offer(
    model: Any, sample: Any, expected: Any, *, method: str = "predict", told: Callable[[str], None] | None = None
) -> Offer | None:
    """An ONNX form of ``model`` that answers ``sample`` as it does, and faster; None when there is none.

    Args:
        model: a fitted scikit-learn estimator or a torch module.
        sample: a DataFrame or an array, as the deployment will get it.
        expected: what the model answered to it.
        method: the function that answers, ``predict`` or ``predict_proba``; torch modules are called.
        told: gets the reason in one line when there is no offer.
    """
    tell = told or (lambda reason: None)
    try:
        # Converters warn a lot, of what is checked here anyway.
        with quiet("skl2onnx", "torch.onnx", "onnxscript", "mlflow"):
            return _Attempt(model, sample, expected, method).run()
    except Unconvertible as error:
        tell(str(error))
    except ImportError as error:
        tell(f"{error.name or 'a package'} is not installed (pip install 'jupyter-mlops[serve]')")
    except Exception as error:
        tell(f"it cannot be converted ({type(error).__name__}: {first_line(error)})")
    return None


class _Attempt:
    def __init__(self, model: Any, sample: Any, expected: Any, method: str) -> None:
        import cloudpickle
        import numpy as np

        self.np, self.sample, self.method = np, sample, method
        kinds = {c.__module__.partition(".")[0]: c.__name__ for c in type(model).__mro__}
        self.torch = "torch" in kinds
        if not self.torch and "sklearn" not in kinds:
            raise Unconvertible("only models of scikit-learn and torch are converted")
        if isinstance(sample, dict | list) or not hasattr(sample, "shape"):
            raise Unconvertible("only tables and single arrays are converted")
        if len(cloudpickle.dumps(model)) > MOST_BYTES:
            raise Unconvertible(f"it is larger than {MOST_BYTES >> 20} MB")
        self.model = copy.deepcopy(model)
        if self.torch:
            self.model = self.model.cpu().eval()
        self.expected = expected.to_numpy() if hasattr(expected, "to_numpy") else np.asarray(expected)
        if self.expected.dtype.kind not in "OUSfiub" or (self.expected.dtype.kind == "f" and self.expected.ndim > 2):
            raise Unconvertible("its answer is no table of numbers or labels")
        self.answer = "records" if hasattr(expected, "columns") else "array"
        self.signature = self._signature()
        self.original = self._original()

    # -- the original ----------------------------------------------------------

    def _signature(self) -> dict[str, Any]:

        from mlflow.models import infer_signature

        found = infer_signature(self.sample).to_dict()
        return {"inputs": json.loads(found["inputs"])}

    def _original(self) -> Callable[[Any], Any]:
        """The model as the scorer calls it."""
        if self.torch:
            import torch

            def call(data: Any) -> Any:
                array = data.to_numpy(dtype=self.np.float32) if hasattr(data, "to_numpy") else data
                with torch.inference_mode():
                    return self.model(torch.from_numpy(self.np.array(array))).numpy()

            return call
        from ..runtime import estimators

        wrapped = estimators.wrap(copy.deepcopy(self.model), self.method, self.signature)
        self.arrays = wrapped.wants == "array"
        return lambda data: wrapped.predict(data, {})

    # -- rows ------------------------------------------------------------------

    def made(self) -> Iterator[tuple[str, Any]]:
        """Rows made from the sample: drawn from each column, from around its values, from far off."""
        np, rng = self.np, self.np.random.default_rng(7)
        frame = self.sample if hasattr(self.sample, "columns") else None
        columns = [frame[c].to_numpy() for c in frame] if frame is not None else [self.sample]

        def drawn(values: Any) -> Any:
            return values[rng.integers(0, len(values), MADE)]

        def around(values: Any, far: float) -> Any:
            if values.dtype.kind not in "fiu":
                return drawn(values)
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            span = np.maximum(high - low, np.maximum(abs(high) * 0.1, 1e-3)).astype(float)
            made = rng.uniform(low - far * span, high + far * span, (MADE, *values.shape[1:]))
            if values.dtype.kind == "f" and np.isnan(values).any():
                made[rng.random(made.shape) < 0.05] = np.nan
            return np.rint(made).astype(values.dtype) if values.dtype.kind in "iu" else made.astype(values.dtype)

        for word, make in (("drawn", drawn), ("around", lambda v: around(v, 0.5)), ("far", lambda v: around(v, 10.0))):
            yield word, self._assembled([make(v) for v in columns])
        if any(v.dtype == np.float64 for v in columns):
            yield "32 bits", self._assembled(
                [around(v, 0.5).astype("f4").astype("f8") if v.dtype == np.float64 else drawn(v) for v in columns])
        if any(v.dtype.kind not in "fiub" for v in columns):
            yield "unseen", self._assembled(
                [drawn(v) if v.dtype.kind in "fiub" else np.array(["⁂unseen"] * MADE, object) for v in columns])

    def _assembled(self, columns: list[Any]) -> Any:
        if not hasattr(self.sample, "columns"):
            return columns[0]
        import pandas as pd

        made = pd.DataFrame(dict(zip(self.sample.columns, columns, strict=True)))
        return made.astype({c: t for c, t in self.sample.dtypes.items() if t.kind in "fiub"})

    def refused(self) -> list[str]:
        """Which of ``nan``, ``inf`` and ``null`` (a missing text) the original raises for; ONNX Runtime never does."""
        np, found = self.np, []
        frame = hasattr(self.sample, "columns")
        kinds = [self.sample[c].dtype.kind for c in self.sample] if frame else [self.sample.dtype.kind]
        for name, value, where in (("nan", np.nan, "f"), ("inf", np.inf, "f"), ("null", None, "OSU")):
            if not any(kind in where or (kind not in "fiub" and where == "OSU") for kind in kinds):
                continue
            data = self.sample[:1].copy()
            if frame:
                at = next(i for i, k in enumerate(kinds) if (k == "f") == (where == "f") and k not in "iub")
                data = data.astype({data.columns[at]: object}) if where != "f" else data
                data.isetitem(at, [value])
            else:
                data[(0,) * data.ndim] = value
            try:
                self.original(data)
            except Exception:
                found.append(name)
        return found

    # -- the attempt -----------------------------------------------------------

    def run(self) -> Offer:
        if not self._compare(self.original(self.sample), self.expected)[0]:
            raise Unconvertible("the model does not answer the sample as it did before")
        cases = [("sample", self.sample, self.expected)]
        for word, data in self.made():
            try:
                cases.append((word, data, self.np.asarray(self.original(data))))
            except Exception as error:
                what = "values that the sample does not have" if word != "unseen" else "unknown text"
                reason = f"it refuses {what} ({first_line(error)}), ONNX Runtime would answer them"
                raise Unconvertible(reason) from error
        refuses = [] if self.torch else self.refused()
        metadata = {"mlops.answer": self.answer, **({"mlops.refuses": ",".join(refuses)} if refuses else {})}
        cases += self._with_holes(refuses)
        reasons: list[str] = []
        begun = time.monotonic()
        for proto in candidates(self.model, self.sample, self.expected, self.method, self.torch):
            if isinstance(proto, str):
                reasons.append(proto)
                continue
            with tempfile.TemporaryDirectory(prefix="mlops-onnx-") as folder:
                try:
                    served = self._served(Path(folder), proto, metadata)
                    return self._offered(proto, metadata, served, sum(len(d) for _, d, _ in cases),
                                         max(self._prove(served, *case) for case in cases))
                except Unconvertible as error:
                    reasons.insert(0, str(error))  # it was converted: that says more than what was tried before
                except Exception as error:
                    reasons.append(f"ONNX Runtime does not run it ({first_line(error)})")
            if time.monotonic() - begun > PATIENCE:
                break
        raise Unconvertible(reasons[0] if reasons else "its conversion to ONNX failed")

    def _prove(self, served: Callable[[Any], Any], word: str, data: Any, wanted: Any) -> float:
        same, difference = self._compare(self._plain(served(data)), wanted)
        if not same:
            raise Unconvertible(f"its answers as ONNX differ ({word} rows, by up to {difference:.2g})")
        return difference

    def _with_holes(self, refuses: list[str]) -> list[tuple[str, Any, Any]]:
        """The sample with a value missing in each column in turn, where the original takes that."""
        np, found = self.np, []
        if not hasattr(self.sample, "columns"):
            if self.sample.dtype.kind != "f" or "nan" in refuses:
                return []
            data = self.sample.copy()
            data[(0,) * data.ndim] = np.nan
            return [("missing", data, np.asarray(self.original(data)))]
        for at, kind in enumerate(t.kind for t in self.sample.dtypes):
            if kind in "iub" or ("nan" if kind == "f" else "null") in refuses:
                continue
            data = self.sample.copy()
            data.isetitem(at, [None if kind != "f" else np.nan, *self.sample.iloc[1:, at]])
            found.append(("missing", data, np.asarray(self.original(data))))
            if len(found) == 20:
                break
        return found

    def _served(self, folder: Path, proto: Any, metadata: dict[str, str]) -> Callable[[Any], Any]:
        from ..runtime import flavours

        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        native = {"data": "model.onnx", "providers": ["CPUExecutionProvider"], "answer": metadata["mlops.answer"],
                  "refuses": metadata.get("mlops.refuses", "").split(",")}
        loaded = flavours.load_onnx(str(folder), native, self.signature)
        self.onnx_arrays = loaded.wants == "array"
        return lambda data: loaded.predict(data, {})

    def _plain(self, output: Any) -> Any:
        if self.answer == "records":
            return self.np.array([list(row.values()) for row in output], dtype=self.expected.dtype)
        return self.np.asarray(output)

    def _compare(self, given: Any, wanted: Any) -> tuple[bool, float]:
        np = self.np
        given, wanted = np.asarray(given), np.asarray(wanted)
        if given.shape != wanted.shape:
            raise Unconvertible(f"its answer as ONNX has the shape {list(given.shape)}, not {list(wanted.shape)}")
        if wanted.dtype.kind != "f":
            kinds = {"O": "text", "U": "text", "S": "text", "b": "bool"}
            if kinds.get(given.dtype.kind, "number") != kinds.get(wanted.dtype.kind, "number"):
                raise Unconvertible(f"its labels as ONNX are {given.dtype}, not {wanted.dtype}")
            return bool((given == wanted).all()), float((given != wanted).sum())
        finite = np.isfinite(wanted)
        scale = float(abs(wanted[finite]).max()) if finite.any() else 0.0
        difference = abs(given.astype(float) - wanted)
        largest = float(difference[finite].max()) if finite.any() else 0.0
        return np.allclose(given, wanted, rtol=RTOL, atol=RTOL / 10 * scale, equal_nan=True), largest

    def _offered(self, proto: Any, metadata: dict[str, str], served: Any, rows: int, largest: float) -> Offer:
        before, after = {}, {}
        for size in SIZES:
            data = self.sample
            while len(data) < size:
                data = self._repeated(data)
            data = data[:size]
            before[size] = _microseconds(self.original, self._as(data, not self.torch and self.arrays))
            after[size] = _microseconds(served, self._as(data, self.onnx_arrays))
        figures = ", ".join(f"{n} row{'s' if n > 1 else ''} {before[n]:,.0f} → {after[n]:,.0f} µs" for n in SIZES)
        slower = [n for n in SIZES if after[n] > FASTER * before[n]]
        if slower:
            raise Unconvertible(f"ONNX Runtime is not faster ({figures})")
        differ = f"largest difference {largest:.1e}" if largest else "no difference"
        line = f"as ONNX it answers the same for {rows:,} rows ({differ}) and faster: {figures}"
        return Offer(proto, metadata, line, rows, largest, before, after)

    def _repeated(self, data: Any) -> Any:
        if not hasattr(data, "columns"):
            return self.np.concatenate([data, data])
        import pandas as pd

        return pd.concat([data, data], ignore_index=True)

    def _as(self, data: Any, array: bool) -> Any:
        if array and hasattr(data, "columns"):
            return self.np.ascontiguousarray(data.to_numpy())
        return data


def _microseconds(call: Callable[[Any], Any], data: Any) -> float:
    """The best of several rounds, after one to warm up; about 50 ms altogether."""
    begun = time.perf_counter()
    call(data)
    rounds = max(5, min(50, int(0.05 / max(time.perf_counter() - begun, 1e-6))))
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call(data)
        took.append(time.perf_counter() - begun)
    return min(took) * 1e6
