"""How much memory there is, how much is in use, and how much MLX may cache.

MLX caches freed arrays for reuse. On a GPU the cache is unbounded by default, and training on clips
of ever new lengths would fill all of the machine's memory; a quarter of it suffices for what one
step frees. On a CPU MLX caches 32 MB, and `_backend.tune_allocator` has the C library keep the
rest. `MLX_VITS_CACHE_GB` sets another limit, on any device.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

CACHE_VARIABLE = "MLX_VITS_CACHE_GB"
_CACHE_SHARE = 0.25
_MAC_SHARE = 0.75  # of a Mac's memory; about what the system grants its GPU
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_UNLIMITED = 1 << 60
# What MLX's backends (Metal, CUDA, CPU) say when an allocation fails.
_OUT_OF_MEMORY = (
    "unable to allocate",
    "out of memory",
    "insufficient memory",
    "outofmemory",
    "attempting to allocate",
    "memory allocation",
)


def total_memory() -> int:
    """Bytes of the GPU's memory, or of the machine's without one; 0 if unknown."""
    info = _gpu_info()
    found = info.get("memory_size") or info.get("total_memory")
    if found:
        return int(found)
    return min(machine_memory(), _container_limit() or _UNLIMITED)


def free_memory() -> int:
    """Bytes that this process may still allocate for arrays; 0 if unknown."""
    info = _gpu_info()
    if "free_memory" in info:  # CUDA
        return int(info["free_memory"])
    granted = info.get("max_recommended_working_set_size")  # Metal
    if granted or sys.platform == "darwin":
        bound = int(granted or _MAC_SHARE * total_memory())
        return max(0, bound - mx.get_active_memory())
    if info:
        return max(0, total_memory() - mx.get_active_memory())
    return min(_available_on_linux(), _left_in_container(), _left_of_addresses())


def _gpu_info() -> dict[str, Any]:
    """MLX's description of the GPU that it computes on; empty on a CPU."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return {}
    return dict(mx.device_info(mx.gpu))


def resident_bytes() -> int:
    """Bytes that this process holds now, including mapped files; 0 if unknown."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return int(told.stdout) * 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def limit_cache() -> int | None:
    """Limit the memory of freed arrays that MLX caches.

    Returns:
        The limit in bytes; None if MLX's own is kept.
    """
    limit = _wished_cache()
    if limit is None:
        limit = int(_CACHE_SHARE * total_memory()) if _gpu_info() else 0
        if not limit:
            return None
    mx.set_cache_limit(limit)
    return limit


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in words for part in _OUT_OF_MEMORY)


def _wished_cache() -> int | None:
    wish = os.environ.get(CACHE_VARIABLE, "")
    if not wish:
        return None
    try:
        limit = float(wish) * 1e9
        if not 0 <= limit < _UNLIMITED:
            raise ValueError(wish)
    except ValueError:
        warnings.warn(f"{CACHE_VARIABLE}={wish}: is no number of gigabytes; ignored", stacklevel=2)
        return None
    return int(limit)


def machine_memory() -> int:
    """Bytes of the machine's memory, whatever MLX computes on; 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _available_on_linux() -> int:
    """Bytes available by the kernel's estimate, including caches that it would give up."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _container_limit() -> int:
    """Limit of the control group in bytes; 0 without one."""
    return _number_in("memory.max") or _number_in("memory/memory.limit_in_bytes")


def _left_in_container() -> int:
    limit = _container_limit()
    if not limit:
        return _UNLIMITED
    used = _number_in("memory.current") or _number_in("memory/memory.usage_in_bytes")
    return max(0, limit - used)


def address_limit() -> int:
    """Bytes of address space that this process may use on Linux (`ulimit -v`); 0 for no limit."""
    if not sys.platform.startswith("linux"):
        return 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit if 0 <= limit < _UNLIMITED else 0


def _left_of_addresses() -> int:
    limit = address_limit()
    if not limit:
        return _UNLIMITED
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return limit
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))


def _number_in(name: str) -> int:
    """Read a control group's number; 0 if the file is missing or states no limit."""
    try:
        number = int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return 0
    return number if number < _UNLIMITED else 0
