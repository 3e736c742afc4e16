"""What pods need of us, packed: our runtime, and bytes in parts that fit into Secrets."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

from ..runtime import bundle

#: Bytes of one part: a Secret holds a little less than 1 MiB.
PART = 960 * 1024
#: What has more parts than this is brought by exec: nodes hold mounted Secrets in memory.
MAX_PARTS = 16


def part_count(size: int) -> int:
    """In how many parts so many bytes go."""
    return -(-size // PART)


def parts(data: bytes) -> list[bytes]:
    """Bytes in parts that fit into Secrets."""
    return [data[at:at + PART] for at in range(0, len(data), PART)]


@lru_cache(maxsize=1)
def runtime_zip() -> bytes:
    """Our runtime, compressed, the same for the same sources."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as source, zipfile.ZipFile(result, "w") as target:
        for info in source.infolist():
            add(target, info.filename, source.read(info))
    return result.getvalue()


def add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a file to a zip, in the same way at any time."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, data)


@lru_cache(maxsize=1)
def cloudpickle_zip() -> bytes:
    """The cloudpickle of this interpreter, for images that have none: variables of notebooks are read with it."""
    import cloudpickle

    root = Path(cloudpickle.__file__).parent
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as target:
        for path in sorted(root.glob("*.py")):
            add(target, f"cloudpickle/{path.name}", path.read_bytes())
    return result.getvalue()
