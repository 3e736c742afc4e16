"""What a model answers, as named columns of JSON values: one of each for every row."""

import base64
import sys

#: Columns that a matrix of answers becomes at most; a wider one is a list in a single column.
MAX_SPREAD = 1000


def table(output, count):
    """(names, columns as lists) of what the model answered for ``count`` rows.

    A DataFrame or a mapping keeps its names; a matrix becomes ``prediction_0`` and so on; all else is ``prediction``.

    Raises:
        ValueError: there is not one answer for each row.
    """
    np, pd = sys.modules.get("numpy"), sys.modules.get("pandas")
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(output, torch.Tensor):
        output = output.detach().cpu().numpy()
    if hasattr(output, "toarray") and hasattr(output, "nnz"):
        output = output.toarray()
    if pd is not None and isinstance(output, pd.Series):
        named = {str(output.name) if output.name not in (None, 0) else "prediction": output.tolist()}
    elif pd is not None and isinstance(output, pd.DataFrame):
        single = output.shape[1] == 1 and output.columns[0] == 0
        named = {"prediction" if single else str(c): output.iloc[:, i].tolist() for i, c in enumerate(output.columns)}
    elif isinstance(output, dict):
        named = {str(k): [v] if isinstance(v, (str, bytes, dict)) or not hasattr(v, "__len__") else list(v)
                 for k, v in output.items()}
    elif isinstance(output, list) and output and all(isinstance(row, dict) for row in output):
        known = {}  # type: dict[str, None]
        for row in output:
            known.update(dict.fromkeys(row))
        named = {str(name): [row.get(name) for row in output] for name in known}
    elif np is not None and isinstance(output, np.ndarray) and output.ndim == 2 and 0 < output.shape[1] <= MAX_SPREAD:
        if output.shape[1] == 1:
            named = {"prediction": output[:, 0].tolist()}
        else:
            named = {"prediction_%d" % i: output[:, i].tolist() for i in range(output.shape[1])}
    elif np is not None and isinstance(output, np.ndarray):
        named = {"prediction": output.tolist() if output.ndim else [output.item()]}
    else:
        named = {"prediction": list(output) if isinstance(output, (list, tuple)) else [output]}
    for values in named.values():
        if len(values) != count:
            raise ValueError("the model answered %d rows for %d" % (len(values), count))
    names = [name if name not in ("file", "row") else "prediction_" + name for name in named]
    return names, [[v if type(v) in (int, str, bool) or v is None else plain(v) for v in values]
                   for values in named.values()]


def plain(value):
    """A value as JSON has it: NaN and infinities are null, dates ISO 8601, bytes base64."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if value != value:  # NaT, NaN of other kinds
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "item"):
        return plain(value.item())
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    try:
        return plain(float(value))  # Decimal
    except (TypeError, ValueError):
        raise ValueError("the model's answer has a %s in it, which is not JSON" % type(value).__name__) from None
