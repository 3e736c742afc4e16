"""Finished mini-batches of a batch run, each a file, and the one output that they become in the end.

``part-<number>.jsonl``: a first line ``{"rows", "columns", "kinds", "errors": [[file, row, message]], "bytes"}``, then
a line ``[file, row, value, …]`` for each row that was scored. A part is there whole or not at all: it is renamed into
place, and one that is shorter than it says (after a loss of power) counts as absent.
"""

import csv
import json
import os

from . import jobfolder

#: Rows of a Parquet row group in the output.
_GROUP = 65536


def path(folder, number):
    return os.path.join(folder, "part-%08d.jsonl" % number)


def write(folder, number, columns, rows, errors):
    """Keep a mini-batch.

    Args:
        columns: names of the values.
        rows: lists ``[file, row, value, …]``.
        errors: lists ``[file, row, message]`` of rows that failed; row None: all of the file.
    """
    kinds = [_kind(row[at + 2] for row in rows) for at in range(len(columns))]
    body = "".join(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows)
    head = {"rows": len(rows), "columns": columns, "kinds": kinds, "errors": errors, "bytes": len(body)}
    jobfolder.write_file(path(folder, number), (json.dumps(head) + "\n" + body).encode("ascii"), durable=False)


def head(folder, number):
    """What a part says of itself, None when it is not there."""
    try:
        with open(path(folder, number), "rb") as f:
            found = json.loads(f.readline())
            if os.fstat(f.fileno()).st_size - f.tell() != found["bytes"]:
                return None
            return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def numbers(folder):
    """Numbers of all parts, in order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(n[5:-6]) for n in names if n.startswith("part-") and n.endswith(".jsonl") and n[5:-6].isdigit())


def _kind(values):
    """The type of a column: int, float, bool, str, list (of numbers), json, or null when all are missing."""
    kinds = set()
    for value in values:
        if value is None:
            continue
        if isinstance(value, list):
            kinds.add("list" if all(type(v) in (int, float) for v in value) else "json")
        elif type(value) is int and not -(2**63) <= value < 2**63:
            kinds.add("json")
        else:
            kinds.add({bool: "bool", int: "int", float: "float", str: "str"}.get(type(value), "json"))
    return _common(kinds)


def _common(kinds):
    kinds = set(kinds) - {"null"}
    if not kinds:
        return "null"
    if len(kinds) == 1:
        return kinds.pop()
    return "float" if kinds == {"int", "float"} else "json"


# -- the output ---------------------------------------------------------------


def merge(folder, count, names, target, form):
    """Write parts 0 to ``count`` - 1, in order, as one file; it replaces ``target`` when it is whole.

    Args:
        names: of the files, by their numbers.
        form: ``csv``, ``parquet`` or ``jsonl``.
    """
    columns = {}  # type: dict[str, str]
    for number in range(count):
        found = head(folder, number)
        for name, kind in zip(found["columns"], found["kinds"]):
            columns[name] = _common({columns.get(name, "null"), kind})
    temporary = _temporary(target)
    try:
        _WRITERS[form](temporary, list(columns.items()), _rows(folder, count, names, list(columns)))
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _temporary(target):
    return os.path.join(os.path.dirname(target), ".%s.%d.tmp" % (os.path.basename(target), os.getpid()))


def write_errors(folder, count, names, target):
    """Write the failed rows, in order, as ``{"file", "row", "message"}`` a line; no file when there are none."""
    temporary = _temporary(target)
    any_there = False
    with open(temporary, "w", encoding="ascii") as f:
        for number in range(count):
            found = head(folder, number)
            for file, row, message in found["errors"] if found else ():
                any_there = True
                f.write(json.dumps({"file": names[file], "row": row, "message": message}) + "\n")
    if any_there:
        os.replace(temporary, target)
    else:
        os.unlink(temporary)
        if os.path.isfile(target):
            os.unlink(target)


def _rows(folder, count, names, columns):
    for number in range(count):
        with open(path(folder, number), encoding="ascii") as f:
            own = json.loads(f.readline())["columns"]
            order = None if own == columns else [own.index(c) if c in own else -1 for c in columns]
            for line in f:
                file, row, *values = json.loads(line)
                if order is not None:
                    values = [None if at < 0 else values[at] for at in order]
                yield names[file], row, values


def _write_csv(target, columns, rows):
    kinds = [kind for _, kind in columns]
    with open(target, "w", encoding="utf-8", newline="", errors="backslashreplace") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["file", "row", *(name for name, _ in columns)])
        nested = any(kind in ("list", "json", "bool") for kind in kinds)
        for file, row, values in rows:
            if nested:
                values = [json.dumps(v) if isinstance(v, (list, dict, bool)) else v for v in values]
            writer.writerow([file, row, *values])


def _write_jsonl(target, columns, rows):
    names = [name for name, _ in columns]
    with open(target, "w", encoding="ascii") as f:
        for file, row, values in rows:
            f.write(json.dumps({"file": file, "row": row, **dict(zip(names, values))}) + "\n")


def _write_parquet(target, columns, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "list": pa.list_(pa.float64()),
             "str": pa.string(), "json": pa.string(), "null": pa.null()}
    kinds = [kind for _, kind in columns]
    fields = [("file", pa.string()), ("row", pa.int64()), *((name, types[kind]) for name, kind in columns)]
    schema = pa.schema(fields)
    with pq.ParquetWriter(target, schema) as writer:
        held = []  # type: list
        for file, row, values in rows:
            held.append([_typed(file, "str"), row, *(_typed(v, kind) for v, kind in zip(values, kinds))])
            if len(held) == _GROUP:
                writer.write_table(_table(pa, schema, held))
                held = []
        if held or not columns:
            writer.write_table(_table(pa, schema, held))


def _typed(value, kind):
    if value is None:
        return None
    if kind in ("json", "str"):
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode("utf-8", "backslashreplace").decode()  # half a character is none
    return float(value) if kind == "float" else value


def _table(pa, schema, rows):
    columns = list(zip(*rows)) or [()] * len(schema)
    return pa.table([pa.array(values, field.type) for field, values in zip(schema, columns)], schema=schema)


_WRITERS = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
