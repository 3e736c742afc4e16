"""What NVIDIA GPUs do, from the driver's own library (NVML) by ctypes, on a thread that may hang without harm."""

import ctypes
import glob
import os
import threading
import time

#: Seconds between two looks while somebody asks.
_PERIOD = 2.0
#: Without a question for this long the thread ends.
_PATIENCE = 60.0


def present():
    """Whether this machine has NVIDIA GPUs; asks the file system alone."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg")


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong),
                ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)]


class Gpus:
    """Knows the newest look; :meth:`newest` never waits for the driver."""

    def __init__(self):
        self._asked = 0.0
        self._newest = []
        self._thread = None
        self._broken = False

    def newest(self):
        """``[{"index", "uuid", "gpu", "memory", "pids": {pid: bytes}}]`` of the last look, utilisation in percent.

        None where the driver does not tell. Empty before the first look and where there is no GPU.
        """
        self._asked = time.monotonic()
        if self._thread is None and not self._broken:
            self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)
            self._thread.start()
        return self._newest

    def _run(self):
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() != 0:
                raise OSError("no driver")
        except (OSError, AttributeError):
            self._broken = True
            return
        try:
            while time.monotonic() - self._asked < _PATIENCE:
                self._newest = _look(library)
                time.sleep(_PERIOD)
        except Exception:
            self._newest = []
            self._broken = True
        finally:
            library.nvmlShutdown()
            self._thread = None


def _look(library):
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
            continue
        use, memory, name = _Utilization(), _Memory(), ctypes.create_string_buffer(96)
        told = library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(use)) == 0
        known = library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
        library.nvmlDeviceGetUUID(device, name, 96)
        found.append({
            "index": index, "uuid": name.value.decode("ascii", "replace"), "gpu": use.gpu if told else None,
            "memory": memory.used if known else None, "pids": _pids(library, device),
        })
    return found


def _pids(library, device):
    call = getattr(library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if call is None:
        return {}
    count = ctypes.c_uint(256)
    table = (_Process * 256)()
    if call(device, ctypes.byref(count), table) != 0:
        return {}
    # All bits set: the driver does not tell how much.
    return {row.pid: 0 if row.memory == (1 << 64) - 1 else row.memory for row in table[:count.value]}
