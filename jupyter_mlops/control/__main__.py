"""``python -m jupyter_mlops.control``: the control plane of one workspace, in the foreground."""

from __future__ import annotations

import argparse
import sys

from .lifecycle import main

parser = argparse.ArgumentParser(prog="python -m jupyter_mlops.control", description=__doc__)
parser.add_argument("--home", help="workspace folder")
parser.add_argument("--workspace", help="its name")
parser.add_argument("--idle", type=float, default=900.0, help="seconds without any need for it after which it ends")
arguments = parser.parse_args()
sys.exit(main(arguments.home, arguments.workspace, arguments.idle))
