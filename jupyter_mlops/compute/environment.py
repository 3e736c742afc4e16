"""The environment of ranks: what the user has on this machine, without what belongs to Jupyter and to us."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

#: Addresses and settings of other MLflow servers, ours of the control plane, Jupyter's and the debugger's own.
_DROPPED = re.compile(
    r"^(_?MLFLOW_|JUPYTER_MLOPS_|JPY_|PYDEVD_|TORCHELASTIC_|NOTIFY_SOCKET$|CONFIGPROXY_AUTH_TOKEN$|MPLBACKEND$"
    r"|(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$)"
)
_SECRET = re.compile(r"^JUPYTER.*(TOKEN|SECRET|PASSWORD|PASSWD|COOKIE|CRYPT|KEY)")


def base() -> dict[str, str]:
    """The own environment without MLflow settings and without any of Jupyter's or JupyterHub's secrets."""
    return {k: v for k, v in os.environ.items() if not _DROPPED.match(k) and not _SECRET.match(k)}


def for_ranks(
    interpreter: str, variables: Mapping[str, str], given: Mapping[str, str], processes: int, cpus: int
) -> dict[str, str]:
    """The environment that ranks get.

    Args:
        interpreter: absolute path of their Python; its folder comes first on PATH.
        variables: what the spec asks for.
        given: what the control plane adds; wins over all.
        processes: how many ranks share this machine's ``cpus``.
    """
    env = base()
    prefix = Path(interpreter).parent.parent
    if (prefix / "pyvenv.cfg").is_file():
        env["VIRTUAL_ENV"] = str(prefix)
    else:
        env.pop("VIRTUAL_ENV", None)
    env["MPLBACKEND"] = "Agg"
    env["PYTHONUNBUFFERED"] = "1"  # Python programs that a rank starts write to its log at once
    if processes > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, cpus // processes)))
        # Without it a crash of one rank can leave the others hanging in the rendezvous store.
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        if sys.platform.startswith("linux"):
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here; a host name need not resolve
    env.update(variables)
    env.update(given)
    env["PATH"] = os.path.dirname(interpreter) + os.pathsep + env.get("PATH", os.defpath)
    return env
