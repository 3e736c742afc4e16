"""Stands in for micromamba where there is none: ``create --yes --prefix P [--override-channels] --channel C --file F``.

It reads real channels in folders and unpacks real packages, finds the newest version that a spec allows and what it
depends on, and says what micromamba says. It solves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tarfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["create"])
    parser.add_argument("--yes", action="store_true", required=True)
    parser.add_argument("--override-channels", action="store_true")
    parser.add_argument("--channel", action="append", default=[])
    for name in ("--prefix", "--file"):
        parser.add_argument(name, required=True)
    a = parser.parse_args()
    prefix = Path(a.prefix)
    if prefix.exists():
        print("critical libmamba Non-conda folder exists at prefix - aborting.", file=sys.stderr)
        return 1
    for name in ("CONDA_PKGS_DIRS", "MAMBA_ROOT_PREFIX"):
        Path(os.environ[name], "written").write_text("")
    alias, rc = os.environ.get("MAMBA_CHANNEL_ALIAS", ""), os.environ.get("CONDARC")
    if rc and (found := re.search(r"channel_alias: (\S+)", Path(rc).read_text())):
        print(f"info     libmamba Channel alias {found.group(1)}")
    known: dict[str, list[tuple[dict[str, object], Path]]] = {}
    for channel in a.channel:
        url = channel if "://" in channel else f"{alias}/{channel}"
        for folder in Path(unquote(urlsplit(url).path)).glob("*/repodata.json"):
            print(f"{channel}/{folder.parent.name}    No change")
            for file, about in json.loads(folder.read_text())["packages"].items():
                known.setdefault(about["name"], []).append((about, folder.parent / file))
    wanted, chosen = Path(a.file).read_text().split("\n"), {}
    while wanted:
        spec = wanted.pop(0).strip().rpartition("::")[2]
        match = re.fullmatch(r"([\w.-]+?)\s*(?:=+\s*([\d.]+)(\.\*)?)?", spec)
        if not spec or (match and match.group(1) in chosen):
            continue
        fits = [k for k in known.get(match.group(1) if match else "", []) if match and (
            not match.group(2) or f"{k[0]['version']}.".startswith(match.group(2) + "."))]
        if not fits:
            print("error    libmamba Could not solve for environment specs\n"
                  "    The following package could not be installed\n"
                  f"    └─ {spec} does not exist (perhaps a typo or a missing channel).\n"
                  "critical libmamba Could not solve for environment specs", file=sys.stderr)
            return 1
        chosen[match.group(1)] = max(fits, key=lambda k: str(k[0]["version"]))
        wanted += chosen[match.group(1)][0]["depends"]
    (prefix / "conda-meta").mkdir(parents=True)
    print("Transaction starting", flush=True)
    for wait in ("BEGAN", "GO"):  # a test may want it to take its time
        if (file := os.environ.get(f"TEST_CONDA_{wait}")) is not None:
            while wait == "GO" and not Path(file).exists():
                time.sleep(0.05)
            Path(file).touch()
    for name, (about, file) in sorted(chosen.items(), key=lambda c: c[0] != "python"):
        print(f"Linking {name}-{about['version']}-0", flush=True)
        with tarfile.open(file) as archive:
            for entry in archive.getmembers():
                if entry.name.startswith("site-packages/"):
                    entry.name = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/{entry.name}"
                if not entry.name.startswith("info/"):
                    archive.extract(entry, prefix)
        (prefix / "conda-meta" / f"{name}-{about['version']}-0.json").write_text(json.dumps(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
