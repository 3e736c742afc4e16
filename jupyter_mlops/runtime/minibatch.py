"""The files of a batch run, and the mini-batches that they are read as.

A plan is made once and kept in the job folder: a further attempt reads the same files in the same order, so that a
mini-batch has the same number and the same rows in all of them. Files are read as a stream, one mini-batch at a time;
what a row says is looked at by the workers (:mod:`.rows`).
"""

import glob
import os
import stat

#: Suffix → kind of file.
SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".png": "images", ".jpg": "images", ".jpeg": "images",
}
#: Rows, or images, of a mini-batch when nothing else is asked for.
ROWS, IMAGES = 4096, 10
#: Most files of one run, and bytes of one row.
MAX_FILES, MAX_RECORD = 1000000, 64 * 1024 * 1024
#: Files that are looked at before a job is made.
_GLANCE = 5000


class BatchError(Exception):
    """Something about the input or output that a person has to mend; its text is one line."""


def find(path):
    """(folder that names are relative to, sorted paths of the input's files, their kind).

    ``path`` is absolute: a file, a folder (with all below it, hidden files and linked folders left out) or a glob
    pattern, in which ``**`` stands for any folders.

    Raises:
        BatchError: there is none, or there are several kinds.
    """
    if os.path.isfile(path):
        root, found = os.path.dirname(path), [path]
        if _kind(path) is None:
            raise BatchError("%s is none of the files that are understood: %s" % (path, ", ".join(SUFFIXES)))
    elif os.path.isdir(path):
        root, found = path, list(_below(path))
    elif glob.has_magic(path):
        root, found = _before_magic(path), [p for p in glob.iglob(path, recursive=True) if os.path.isfile(p)]
    else:
        raise BatchError("the input %s is not there" % path)
    files = sorted(p for p in found if _kind(p) is not None)
    if not files:
        raise BatchError("%s holds none of the files that are understood: %s" % (path, ", ".join(SUFFIXES)))
    if len(files) > MAX_FILES:
        raise BatchError("%s holds more than %d files" % (path, MAX_FILES))
    kinds = sorted({str(_kind(p)) for p in files})
    if len(kinds) > 1:
        example = next(s for s, k in SUFFIXES.items() if k == kinds[0])
        raise BatchError("the input holds files of several kinds (%s): choose some of them by a pattern such as %s" % (
            ", ".join(kinds), os.path.join(root, "**", "*" + example)))
    return root, files, kinds[0]


def look(path):
    """Refuse an input that clearly holds nothing, at a cost that does not grow with it; :func:`find` has the last word.

    Raises:
        BatchError: see its text.
    """
    if os.path.isdir(path):
        for seen, file in enumerate(_below(path)):
            if _kind(file) is not None or seen == _GLANCE:
                return
        raise BatchError("%s holds none of the files that are understood: %s" % (path, ", ".join(SUFFIXES)))
    if "**" in path:  # may have to look everywhere
        head = _before_magic(path)
        if not os.path.isdir(head):
            raise BatchError("the input %s is not there" % head)
        return
    find(path)


def _before_magic(path):
    """The folder that a pattern begins in."""
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return path


def _kind(path):
    return SUFFIXES.get(os.path.splitext(path)[1].lower())


def _below(folder):
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def plan(path, size=None):
    """What is read, as JSON: ``{"kind", "root", "size", "files": [[name, bytes, mtime_ns]]}``.

    Raises:
        BatchError: see :func:`find`; also when a file cannot be read.
    """
    root, files, kind = find(path)
    entries = []
    for file in files:
        if not os.access(file, os.R_OK):
            raise BatchError("the file %s cannot be read" % file)
        info = os.stat(file)
        if not stat.S_ISREG(info.st_mode):
            raise BatchError("%s is not a plain file" % file)
        entries.append([os.path.relpath(file, root), info.st_size, info.st_mtime_ns])
    return {"kind": kind, "root": root, "size": size or (IMAGES if kind == "images" else ROWS), "files": entries}


def place_of(batch, row):
    """(number of the file, row in it) of a row of a mini-batch."""
    return (batch["images"][row], 0) if "images" in batch else (batch["file"], batch["first"] + row)


def check_unchanged(made):
    """Refuse to go on when the input is not what the finished part of the run has read.

    Raises:
        BatchError: naming the first file that differs.
    """
    for name, size, mtime in made["files"]:
        try:
            info = os.stat(os.path.join(made["root"], name))
        except OSError:
            raise BatchError("the file %s is gone since the first attempt: begin a new run" % name) from None
        if (info.st_size, info.st_mtime_ns) != (size, mtime):
            raise BatchError("the file %s has changed since the first attempt: begin a new run" % name)


def read(made, columns, done):
    """The mini-batches of a plan, in order, as ``{"number", "file", "first", "rows", "share", ...}``.

    ``file`` is the number of the file, ``first`` the row in it that is the mini-batch's first, ``share`` how much of
    all input has been read with it, from 0 to 1. A file that cannot be read to its end gives one with ``error``.

    Args:
        columns: names that the model knows, to read no others; None: all.
        done: called with a number, says whether that mini-batch need not be read.
    """
    number = 0
    if made["kind"] == "images":
        count = len(made["files"])
        for first in range(0, count, made["size"]):
            if not done(number):
                files = list(range(first, min(first + made["size"], count)))
                yield {"number": number, "file": first, "first": 0, "rows": len(files), "images": files,
                       "share": (files[-1] + 1) / count}
            number += 1
        return
    total = sum(entry[1] for entry in made["files"]) or 1
    before = 0
    for file, (name, size, _) in enumerate(made["files"]):
        path = os.path.join(made["root"], name)
        first = 0
        try:
            for piece in _READERS[made["kind"]](path, made["size"], columns):
                share = (before + size * min(1.0, piece.pop("part"))) / total
                if not done(number):
                    yield dict(piece, number=number, file=file, first=first, share=share)
                first += piece["rows"]
                number += 1
        except (OSError, ValueError, BatchError) as error:
            if not done(number):
                yield {"number": number, "file": file, "first": first, "rows": 0, "share": (before + size) / total,
                       "error": _line(error)}
            number += 1
        before += size


def _line(error):
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:500]


def _csv(path, size, columns):
    """Whole records as bytes: a quote that is open at the end of a line goes on in the next."""
    whole = os.path.getsize(path) or 1
    with open(path, "rb") as f:
        header = _record(f)
        while header is not None and not header.strip():
            header = _record(f)
        if header is None:
            raise BatchError("it has no header line")
        if header.startswith(b"\xef\xbb\xbf"):
            header = header[3:]
        tab = path.lower().endswith(".tsv")
        records = []  # type: list[bytes]
        while True:
            record = _record(f)
            if record is not None and record.strip():
                records.append(record)
            if records and (record is None or len(records) == size):
                yield {"header": header, "data": b"".join(records), "rows": len(records), "tab": tab,
                       "part": f.tell() / whole}
                records = []
            if record is None:
                return


def _record(f):
    line = f.readline(MAX_RECORD)
    if not line:
        return None
    while line.count(b'"') & 1 or not line.endswith(b"\n"):
        more = f.readline(MAX_RECORD)
        if not more:
            if line.count(b'"') & 1:
                raise BatchError("a quote that opens in it is never closed")
            return line + b"\n"
        line += more
        if len(line) > MAX_RECORD:
            raise BatchError("a row has more than %d MB: is a quote open?" % (MAX_RECORD // 2**20))
    return line


def _jsonl(path, size, columns):
    whole = os.path.getsize(path) or 1
    with open(path, "rb") as f:
        records = []  # type: list[bytes]
        while True:
            line = f.readline(MAX_RECORD)
            if len(line) == MAX_RECORD:
                raise BatchError("a line has more than %d MB" % (MAX_RECORD // 2**20))
            if line.strip():
                records.append(line if line.endswith(b"\n") else line + b"\n")
            if records and (not line or len(records) == size):
                yield {"data": b"".join(records), "rows": len(records), "part": f.tell() / whole}
                records = []
            if not line:
                return


def _parquet(path, size, columns):
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BatchError("reading Parquet needs pyarrow in the model's Python") from None
    try:
        with pq.ParquetFile(path, memory_map=True) as f:
            whole = f.metadata.num_rows or 1
            names = f.schema_arrow.names
            wanted = None if columns is None else [n for n in names if n in columns]
            read = 0
            for rows in f.iter_batches(size, columns=wanted):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, rows.schema) as writer:
                    writer.write_batch(rows)
                read += rows.num_rows
                yield {"data": sink.getvalue().to_pybytes(), "rows": rows.num_rows, "part": read / whole}
    except (pa.ArrowException, OSError) as error:
        raise BatchError("it cannot be read: %s" % _line(error)) from None


_READERS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
