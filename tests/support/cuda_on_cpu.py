"""The kernels of `accel/cuda` on a CPU: g++ compiles their sources.

A block's 64 threads are contexts of one process (`ucontext.h`) that take turns: each runs to its
next barrier or shuffle, then the next thread does, in the opposite order in every other block. So
sums over a block run as on a GPU, over two warps, and a missing barrier shows.

What they compute is computed at once: no gradient passes through a kernel.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.accel.cuda import kernels, many, rows

_THREADS = 64
_KERNELS = (
    kernels._kernel,
    many._sums,
    many._graded,
    many._adamw,
    rows._fold,
    rows._fold_gradient,
    rows._pull,
)
_C_TYPES = {
    mx.float32: "float",
    mx.int32: "int",
    mx.uint32: "unsigned",
    mx.bfloat16: "Brain",
}
_PRELUDE = """
#include <cmath>
#include <cstring>
#include <ucontext.h>
using namespace std;
#define __device__
struct Brain {
    unsigned short bits;
    Brain(float x) {
        unsigned all;
        memcpy(&all, &x, 4);
        bits = (all + 0x7fff + (all >> 16 & 1)) >> 16;
    }
    operator float() const {
        unsigned all = unsigned(bits) << 16;
        float x;
        memcpy(&x, &all, 4);
        return x;
    }
};
struct Index { unsigned x; };
static Index blockIdx, blockDim, threadIdx;
#define __shared__ static
const int MOST = 64;
static ucontext_t caller, threads[MOST];
static char stacks[MOST][32768];
static float given[MOST];
static void __syncthreads() { swapcontext(&threads[threadIdx.x], &caller); }
static float __shfl_down_sync(unsigned, float x, int step) {
    int me = threadIdx.x;
    given[me] = x;
    __syncthreads();
    float found = given[me % 32 + step < 32 ? me + step : me];
    __syncthreads();
    return found;
}
"""


@contextmanager
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Has the kernels used within a `with` block; sources and libraries go to `folder`."""

    def compiled(**definition: Any) -> Callable[..., list[mx.array]]:
        return _compiled(folder, **definition)

    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "cuda_kernel", compiled)
        for module in (kernels, many, rows):
            patch.setattr(module, "THREADS", _THREADS)
        for kernel in _KERNELS:
            kernel.cache_clear()
        try:
            yield
        finally:
            for kernel in _KERNELS:
                kernel.cache_clear()


def _compiled(
    folder: Path,
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
) -> Callable[..., list[mx.array]]:
    library: Any = None

    def run(
        inputs: Sequence[mx.array],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        nonlocal library
        arrays = [_numpy(array) for array in inputs]
        if ensure_row_contiguous:
            arrays = [np.ascontiguousarray(array) for array in arrays]
        if library is None:
            types = [_C_TYPES[array.dtype] for array in inputs]
            to = [f"{_C_TYPES[output_dtypes[0]]}* {output}" for output in output_names]
            library = _build(folder, name, input_names, types, to, header, source)
        outputs = [
            _numpy(mx.full(shape, mx.nan, dtype)).copy()
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *outputs)]
        assert (*threadgroup, *grid[1:]) == (_THREADS, 1, 1, 1, 1)
        library.run(*pointers, ctypes.c_long(-(-grid[0] // _THREADS)))
        pairs = zip(outputs, output_dtypes, strict=True)
        return [mx.array(out).view(dtype) for out, dtype in pairs]

    return run


def _numpy(array: mx.array) -> np.ndarray:
    """NumPy has no bf16."""
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _build(
    folder: Path,
    name: str,
    inputs: Sequence[str],
    types: Sequence[str],
    outputs: Sequence[str],
    header: str,
    source: str,
) -> Any:
    pointers = [f"const {kind}* {name}" for kind, name in zip(types, inputs, strict=True)]
    declared = [*pointers, *outputs]
    names = [declaration.split()[-1] for declaration in declared]
    code = f"""{_PRELUDE} {header}
        {"".join(f"static {declaration};" for declaration in declared)}
        static int left;
        static bool done[MOST];
        static void thread() {{ {source} }}
        static void whole_thread() {{
            thread();
            done[threadIdx.x] = true;
            --left;
        }}
        extern "C" void run({", ".join(f"{one}_" for one in declared)}, long blocks) {{
            {"".join(f"{name} = {name}_;" for name in names)}
            blockDim.x = {_THREADS};
            for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {{
                for (int i = 0; i < {_THREADS}; ++i) {{
                    getcontext(&threads[i]);
                    threads[i].uc_stack = {{stacks[i], 0, sizeof stacks[i]}};
                    threads[i].uc_link = &caller;
                    makecontext(&threads[i], whole_thread, 0);
                    done[i] = false;
                }}
                for (left = {_THREADS}; left > 0;)
                    for (int turn = 0; turn < {_THREADS}; ++turn) {{
                        threadIdx.x = blockIdx.x % 2 ? {_THREADS} - 1 - turn : turn;
                        if (!done[threadIdx.x]) swapcontext(&caller, &threads[threadIdx.x]);
                    }}
            }}
        }}
    """
    path = folder / f"{name}.cpp"
    path.write_text(code)
    library = path.with_suffix(".so")
    command = ["g++", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-o", library, path]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))
