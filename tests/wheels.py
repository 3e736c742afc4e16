"""Tiny wheels and a package index of them in a folder, for tests that install something."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def wheel(index: Path, name: str, version: str = "1.0", source: str = "", requires: tuple[str, ...] = (),
          python: str = "", size: int = 0) -> Path:
    """Put a wheel of one module into an index; ``size`` bytes of data go with it. Gives the wheel's path."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    meta = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    if python:
        meta.append(f"Requires-Python: {python}")
    files = {
        f"{stem}/__init__.py": (source or f"VERSION = {version!r}\n").encode(),
        f"{info}/METADATA": ("\n".join(meta) + "\n").encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {stem}:main\n".encode(),
    }
    if size:
        files[f"{stem}/data.bin"] = bytes(size)
    record = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    links = "".join(f'<a href="{w.name}">{w.name}</a>\n' for w in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!doctype html><html><body>\n{links}</body></html>\n")
    return made
