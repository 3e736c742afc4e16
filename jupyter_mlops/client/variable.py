"""A model of the notebook as a model version: answered here, logged with what it needs, registered.

It is what ``mlflow.<flavor>.log_model`` does, by the same public functions of MLflow, less what is done twice or
guessed there: MLflow would load the model again in a subprocess to find out what it imports, load it once more to try
the example, and walk through all installed files.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BackendUnreachable, MlopsError, ParameterError, Refused
from ..runtime import loading, scorer
from . import flavour as flavours
from . import payload, sample
from .flavour import PYFUNC, PYTORCH, Flavour, quiet
from .pins import Needs, needs, version_of

if TYPE_CHECKING:
    from .model import ModelVersion
    from .sync import Client

#: Most bytes of a proof's request and answer as JSON; rows are left out until it fits.
MOST_PROOF = 1_000_000


@dataclass
class Answered:
    """A model of the notebook with a sample that it has answered.

    Attributes:
        output: what it answered.
        signature: MLflow's.
        offer: an :class:`~.onnx.Offer` that is logged in the model's place.
        skops: write it as skops rather than cloudpickle.
    """

    model: Any
    name: str
    flavour: Flavour
    sample: sample.Sample
    output: Any
    signature: Any
    needs: Needs
    offer: Any = None
    skops: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The signature as JSON."""
        return self.signature.to_dict()

    def proof(self) -> dict[str, Any]:
        """What a deployment has to answer, and how; of an ONNX form it is still what the model itself answered."""
        made = proof(self.sample.data, self.output, self.schema, self.needs.packages, "variable")
        return made if self.offer is None else {"rtol": 1e-4, "atol": 1e-6, **made}

    def as_onnx(self, told: Callable[[str], None]) -> bool:
        """Take the model's ONNX form where it answers the same and faster; whether it is taken. ``told`` hears why."""
        from .onnx import offer

        self.offer = offer(self.model, self.sample.data, self.output, told=told)
        if self.offer is not None:
            told(self.offer.line)
            self.needs = needs(flavours.ONNX.modules)
        return self.offer is not None


@dataclass
class Logged:
    """A registered version, and what proves that a deployment of it answers as the notebook did."""

    version: ModelVersion
    proof: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)


def proof(
    data: Any, output: Any, schema: Mapping[str, Any], packages: dict[str, str], origin: str
) -> dict[str, Any]:
    """A proof of as many of the rows as may be sent, from the model's own output for them.

    Raises:
        Refused: a single row is too large.
    """
    expected = as_answer(output)
    count = len(expected) if isinstance(expected, list) else 0
    while True:
        request = payload.build(data, schema)
        made = {"request": request, "expected": expected, "packages": packages, "origin": origin,
                **tolerance(output)}
        if len(json.dumps(made)) <= MOST_PROOF:
            return made
        if count <= 1 or isinstance(data, dict) or not isinstance(expected, list):
            raise Refused("one row of the sample is larger than what a proof may hold", "deploy it with --no-proof")
        count = max(1, count // 2)
        data, expected = data[:count], expected[:count]


def tolerance(output: Any) -> dict[str, float]:
    """How far numbers may differ; less exact ones further, since threads and batches change the order of sums."""
    values = list(output.values()) if isinstance(output, Mapping) else [output]
    arrays = [v.to_numpy() if hasattr(v, "to_numpy") else v for v in values]
    kinds = {str(getattr(v, "dtype", "")) for v in arrays}
    for kinds_of, share in (({"float16", "bfloat16"}, 1e-2), ({"float32"}, 1e-4)):
        if kinds & kinds_of:
            sized = [v for v in arrays if getattr(getattr(v, "dtype", None), "kind", "") == "f" and v.size]
            largest = max((float(abs(v).max()) for v in sized), default=1.0)
            return {"rtol": share, "atol": share / 100 * largest if math.isfinite(largest) and largest > 0 else 1e-8}
    return {}


def as_answer(output: Any) -> Any:
    """A model's output as a deployment would write it."""
    return json.loads(scorer.answer(output))["predictions"]


def answer(
    model: Any, name: str, names: Mapping[str, Any], given: Any = None, source: str = "",
) -> Answered:
    """Have a model of the notebook answer a sample: the one given (``source`` is its expression), or one found.

    Raises:
        ParameterError: it is no model, is not fitted, no sample fits, or the model raises.
    """
    model = flavours.unwrapped(model)
    kind = flavours.detect(model)
    if kind is None:
        raise ParameterError(
            f"{name} is a {_kind(model)}, not a fitted model",
            "deploy a model of scikit-learn, PyTorch, XGBoost, LightGBM or ONNX, a PythonModel, or what has predict()",
        )
    flavours.check_fitted(model, kind, name)

    def ask(data: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return flavours.predict(model, kind, data)

    if source:
        rows = sample.given(given, source, model, kind, names)
        try:
            output = ask(rows.data)
        except Exception as error:
            raise ParameterError(
                f"{name} does not answer the sample {source}: {type(error).__name__}: {_line(error)}",
                "give rows in the form in which it was fitted",
            ) from error
    else:
        rows, output = sample.search(model, kind, name, names, ask)
        rows.remarks.insert(0, f"the sample is {rows.source}, {rows.rows} rows that fit {name}")
    try:
        as_answer(output)
    except Exception as error:
        raise ParameterError(f"the answer of {name} cannot be written as JSON: {_line(error)}") from error
    with quiet("mlflow"):
        from mlflow.models import infer_signature

        try:
            signature = infer_signature(rows.data, output)
        except Exception as error:
            raise ParameterError(
                f"MLflow finds no signature for the sample {rows.source}: {_line(error)}",
                "give a DataFrame or an array",
            ) from error
    if signature.inputs is None:
        raise ParameterError(f"MLflow finds no signature for the sample {rows.source}", "give a DataFrame or an array")
    modules = {*kind.modules, *flavours.modules_of(model)}
    return Answered(model, name, kind, rows, output, signature, needs(modules))


def answer_of_version(
    client: Client, reference: str, given: Any, source: str, names: Mapping[str, Any]
) -> dict[str, Any]:
    """The proof that a registered version gives, loaded here once as ``mlflow.pyfunc`` does.

    Raises:
        ParameterError: it cannot be loaded here, or does not answer the sample.
    """
    with quiet("mlflow"):
        import mlflow.artifacts
        import mlflow.pyfunc

        uri, where = client.version(reference).uri, client.tracking_uri
        with tempfile.TemporaryDirectory(prefix="mlops-model-") as folder:
            try:
                path = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=where, registry_uri=where)
                model = mlflow.pyfunc.load_model(path, suppress_warnings=True)
            except Exception as error:
                raise ParameterError(
                    f"{reference} cannot be loaded here: {_line(error)}",
                    "leave --sample out: the version then proves itself by its own example",
                ) from error
        inner = getattr(model, "_model_impl", None)
        rows = sample.given(given, source, getattr(inner, "sklearn_model", None), PYFUNC, names)
        try:
            output = model.predict(rows.data)
        except Exception as error:
            raise ParameterError(
                f"{reference} does not answer the sample {source}: {_line(error)}", "give rows that fit its signature"
            ) from error
    schema = model.metadata.signature.to_dict() if model.metadata.signature else {}
    loaded = {m.partition(".")[0] for m in sys.modules if "." not in m and not m.startswith("_")}
    flavours_of = {"sklearn", "torch", "xgboost", "lightgbm", "onnxruntime", "numpy", "pandas", "scipy"} & loaded
    return proof(rows.data, output, schema, needs(flavours_of).packages, "model")


def _kind(value: Any) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def log(
    client: Client, answered: Answered, register: str, experiment: str, run_name: str,
    told: Callable[[str], None] | None = None,
) -> Logged:
    """Log the model into the active run, else into one of its own, and register it as a version of ``register``.

    Args:
        told: hears what is being done.

    Raises:
        Refused: it cannot be saved.
        BackendUnreachable: MLflow does not take it.
    """
    tell = told or (lambda text: None)
    proven = answered.proof()  # what it refuses is refused before anything is made
    with tempfile.TemporaryDirectory(prefix="mlops-model-") as folder:
        tell("saving the model")
        with quiet("mlflow"):
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            store = MlflowClient(client.tracking_uri, client.tracking_uri)
            try:
                run_id, own = _run(store, client, experiment, run_name)
            except MlflowException as error:
                raise BackendUnreachable(f"MLflow refused the run: {_line(error)}") from error
            try:
                model_id = _store(store, client, answered, run_id, register, Path(folder) / "model", tell)
            except BaseException:
                if own:
                    with contextlib.suppress(Exception):
                        store.set_terminated(run_id, "FAILED")
                raise
            tell("registering the model")
            version = client.register(run_id, register, model_id=model_id)
            if own:
                store.set_terminated(run_id)
    return Logged(version, proven, list(answered.sample.remarks))


def _run(store: Any, client: Client, experiment: str, run_name: str) -> tuple[str, bool]:
    """(id of the run that the model goes into, whether it was made for that)."""
    import mlflow
    from mlflow.tracking.context import registry

    from ..runtime import locate

    active = mlflow.active_run()
    if active is not None and locate.is_ours(mlflow.get_tracking_uri()):
        return active.info.run_id, False
    made = store.create_run(client.experiment_id(experiment), tags=registry.resolve_tags(), run_name=run_name)
    return made.info.run_id, True


def _store(
    store: Any, client: Client, answered: Answered, run_id: str, register: str, path: Path, tell: Callable[[str], None]
) -> str:
    """Save, upload and finish a logged model of the run; returns its id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    name = re.sub(r"""[/:.%"'\s]+""", "-", register).strip("-") or "model"
    try:
        run = store.get_run(run_id)
        logged = store.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run_id, model_type=answered.flavour.name
        )
        about = Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
        )
        status = LoggedModelStatus.FAILED
        try:
            save(answered, path, about)
            tell("uploading the model")
            store.log_model_artifacts(logged.model_id, str(path))
            status = LoggedModelStatus.READY
        finally:
            store.finalize_logged_model(logged.model_id, status)
        store.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except MlopsError:
        raise
    except MlflowException as error:
        raise BackendUnreachable(f"MLflow did not take the model: {_line(error)}") from error
    return logged.model_id


def save(answered: Answered, path: Path, about: Any) -> None:
    """Write the model as MLflow's own flavour does, with pinned packages.

    Raises:
        Refused: it cannot be pickled, or MLflow does not write it.
    """
    kind, needed = answered.flavour, answered.needs
    from importlib import import_module

    module = import_module(f"mlflow.{kind.name}")
    options: dict[str, Any] = {
        "path": str(path), "mlflow_model": about, "signature": answered.signature,
        "input_example": answered.sample.data, "code_paths": needed.code or None,
    }
    extra: dict[str, str] = {}
    try:
        if answered.offer is not None:
            module = import_module("mlflow.onnx")
            options |= {"onnx_model": answered.offer.model, "metadata": answered.offer.metadata}
        elif kind is PYFUNC:
            options["python_model"] = flavours.wrapped(answered.model)
        elif kind is PYTORCH:
            options |= {"pytorch_model": answered.model, "serialization_format": "pickle"}
        else:
            first = {"sklearn": "sk_model", "xgboost": "xgb_model", "lightgbm": "lgb_model", "onnx": "onnx_model"}
            options[first[kind.name]] = answered.model
        if kind.name in ("sklearn", "lightgbm") and answered.offer is None:
            options |= _format(answered, extra)
        requirements = [*needed.requirements, *Needs(extra).requirements]
        with _as_pinned():
            module.save_model(**options, pip_requirements=requirements)
    except MlopsError:
        raise
    except Exception as error:
        raise Refused(
            f"{answered.name} cannot be saved: {type(error).__name__}: {_line(error)}",
            "what cannot be pickled (open files, connections, locks) must not be part of a model",
        ) from error


def _format(answered: Answered, extra: dict[str, str]) -> dict[str, Any]:
    """How a scikit-learn style model is written: as cloudpickle, or as skops where that is asked for.

    skops, MLflow's default since 3.17, runs no code when it is loaded, but costs more than a second at each start of a
    scorer: it imports all of scikit-learn. Its types of other installed packages are named as trusted, as by hand.

    Raises:
        Refused: skops cannot write it.
    """
    if answered.flavour.name == "lightgbm" and type(answered.model).__name__ == "Booster":
        return {}
    name = "skops" if answered.skops else "cloudpickle"
    extra.update([pinned for pinned in [version_of(name)] if pinned])
    if not answered.skops:
        return {"serialization_format": name}
    try:
        with loading.no_needless_torch():
            import skops.io as skops
        doubtful = skops.get_untrusted_types(data=skops.dumps(answered.model))
    except Exception as error:
        raise Refused(f"skops cannot write {answered.name}: {_line(error)}", "leave --skops out") from error
    own = [t for t in doubtful if version_of(t.partition(".")[0]) is None]
    if own:
        raise Refused(f"{answered.name} has types that skops does not trust: {', '.join(own[:3])}", "leave --skops out")
    return {"serialization_format": name, "skops_trusted_types": sorted(doubtful) or None}


@contextlib.contextmanager
def _as_pinned() -> Iterator[None]:
    """Spare MLflow the comparison of what is pinned with what is installed: it was just read there.

    For that MLflow reads the lists of files of all installed packages, which takes a second or two.
    """
    from mlflow.utils import environment

    name = "warn_dependency_requirement_mismatches"
    kept = getattr(environment, name, None)
    if kept is None:
        yield
        return
    setattr(environment, name, lambda requirements: None)
    try:
        yield
    finally:
        setattr(environment, name, kept)
