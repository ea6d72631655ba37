"""The kernels of `mlx_vits/nn/cuda.py` on a CPU: g++ compiles their sources, a thread a block.

What they compute is computed at once, so a gradient passes through one of them, but not through
what lies between two: MLX forgets the graph of what is computed in the midst of a gradient.
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
from mlx_vits.nn.cuda_source import ACCESS

from mlx_vits.nn import cuda

_C_TYPES = {
    mx.float32: "float",
    mx.int32: "int",
    mx.uint32: "unsigned",
    mx.bfloat16: "Brain",
}
_PRELUDE = """
#include <cmath>
#include <cstring>
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
static Index blockIdx, blockDim = {1}, threadIdx = {0};
static float sum_of_block(float x) { return x; }
static float most_of_block(float x) { return x; }
"""
_PRELUDE += ACCESS


@contextmanager
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Has the kernels used within a `with` block; sources and libraries go to `folder`."""

    def compiled(**definition: Any) -> Callable[..., list[mx.array]]:
        return _compiled(folder, **definition)

    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "cuda_kernel", compiled)
        patch.setattr(cuda, "is_on_cuda", lambda: True)
        patch.setattr(cuda, "_THREADS", 1)
        for kernel in (cuda._kernel, cuda._joining):
            kernel.cache_clear()
        try:
            yield
        finally:
            for kernel in (cuda._kernel, cuda._joining):
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
            library = _build(folder, name, input_names, types, to, source)
        strides = [
            (ctypes.c_long * max(1, array.ndim))(*(s // array.itemsize for s in array.strides))
            for array in arrays
        ]
        outputs = [
            _numpy(mx.full(shape, mx.nan, dtype)).copy()
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *outputs)]
        assert (*threadgroup, *grid[1:]) == (1,) * 5
        library.run(*pointers, *strides, ctypes.c_long(grid[0]))
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
    source: str,
) -> Any:
    pointers = [f"const {kind}* {name}" for kind, name in zip(types, inputs, strict=True)]
    declared = ", ".join([*pointers, *outputs, *(f"const long* {i}_strides" for i in inputs)])
    names = [*inputs, *(output.split()[-1] for output in outputs)]
    passed = ", ".join([*names, *(f"{i}_strides" for i in inputs)])
    code = f"""{_PRELUDE}
        static void thread({declared}) {{ {source} }}
        extern "C" void run({declared}, long blocks) {{
            for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) thread({passed});
        }}
    """
    path = folder / f"{name}.cpp"
    path.write_text(code)
    library = path.with_suffix(".so")
    command = ["g++", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-o", library, path]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))
