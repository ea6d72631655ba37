"""CUDA kernels over many arrays at once, for what is done to every tensor of a net.

A SoVITS generator trains 600 to 700 tensors, most of them small, and a launch costs as much for a
small one as for a large one. Here each launch takes several arrays, and every thread finds the
array that its element belongs to. All arrays are fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.accel.cuda.kernels import THREADS, constants, short
from mlx_vits.accel.cuda.source import SUM_OF_BLOCK

_ADDED = 16  # arrays that a launch adds up
_UPDATED = 8  # tensors that a launch updates
_GRADED = 8  # arrays that a launch computes gradients in
_SEGMENT = 8192  # elements that a block adds up


class Moments(NamedTuple):
    """AdamW's first and second moment of a tensor."""

    m: mx.array
    v: mx.array


def sum_of_squares(
    arrays: Sequence[mx.array], targets: Sequence[float], weights: Sequence[float]
) -> mx.array:
    """Sum of `weight * (x - target)^2` over the elements of all arrays, one of each an array."""
    parts = []
    for start in range(0, len(arrays), _ADDED):
        few = slice(start, start + _ADDED)
        x = arrays[few]
        missing = _ADDED - len(x)
        sizes = [array.size for array in x] + [0] * missing
        blocks = np.cumsum([-(-size // _SEGMENT) for size in sizes]).tolist()
        (part,) = _sums()(
            inputs=[
                *(*x, *[x[0]] * missing),
                mx.array([*blocks, *sizes], mx.int32),
                constants((*weights[few], *[0.0] * missing, *targets[few], *[0.0] * missing)),
            ],
            grid=(blocks[-1] * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[(blocks[-1],)],
            output_dtypes=[mx.float32],
        )
        parts.append(part)
    if len(parts) == parts[0].size == 1:
        return parts[0].reshape(())
    return mx.sum(mx.concatenate(parts))


def square_gradients(
    arrays: Sequence[mx.array],
    targets: Sequence[float],
    weights: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    """Of `sum_of_squares`, from its cotangent `()`."""
    found: list[mx.array] = []
    for start in range(0, len(arrays), _GRADED):
        few = slice(start, start + _GRADED)
        x = arrays[few]
        missing = _GRADED - len(x)
        ends = np.cumsum([array.size for array in x]).tolist()
        outputs = _graded()(
            inputs=[
                *(*x, *[x[0]] * missing),
                mx.array([*ends, *[ends[-1]] * missing], mx.int32),
                constants((*weights[few], *[0.0] * missing, *targets[few], *[0.0] * missing)),
                cotangent,
            ],
            grid=(ends[-1], 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[*(array.shape for array in x), *[(1,)] * missing],
            output_dtypes=[mx.float32] * _GRADED,
        )
        found += outputs[: len(x)]
    return found


def adamw(
    parameters: Sequence[mx.array],
    gradients: Sequence[mx.array],
    moments: Sequence[Moments],
    factors: mx.array,
    betas: tuple[float, float],
    eps: float,
) -> list[tuple[mx.array, Moments]]:
    """Each parameter with its moments after a step.

    Args:
        factors: `(3,)`: of the parameter, of the first moment, and of the root of the second.
    """
    found: list[tuple[mx.array, Moments]] = []
    for start in range(0, len(parameters), _UPDATED):
        few = slice(start, start + _UPDATED)
        p, g, both = parameters[few], gradients[few], moments[few]
        m, v = zip(*both, strict=True)
        missing = _UPDATED - len(p)
        ends = np.cumsum([array.size for array in p]).tolist()
        outputs = _adamw()(
            inputs=[
                *(array for kind in (p, g, m, v) for array in (*kind, *[kind[0]] * missing)),
                mx.array([*ends, *[ends[-1]] * missing], mx.int32),
                factors,
                constants((betas[0], 1 - betas[0], betas[1], 1 - betas[1], eps)),
            ],
            grid=(ends[-1], 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[*(array.shape for array in p), *[(1,)] * missing] * 3,
            output_dtypes=[mx.float32] * 3 * _UPDATED,
        )
        of_each = [outputs[kind * _UPDATED :][: len(p)] for kind in range(3)]
        found += [(a, Moments(b, c)) for a, b, c in zip(*of_each, strict=True)]
    return found


@cache
def _sums() -> Any:
    """A block adds up a segment of one array."""
    names = [f"x{number:02}" for number in range(_ADDED)]
    cases = "".join(f"case {n}: x = x{n:02}; break;" for n in range(_ADDED))
    return mx.fast.cuda_kernel(
        name="vits_sums",
        input_names=[*names, "sizes", "weights"],
        output_names=["out"],
        header=short(SUM_OF_BLOCK),
        source=short(f"""
            const int block = blockIdx.x;
            int array = 0;
            while (block >= sizes[array]) ++array;
            const float* x = x00;
            switch (array) {{ {cases} }}
            const int first = (block - (array > 0 ? sizes[array - 1] : 0)) * {_SEGMENT};
            const int size = sizes[{_ADDED} + array];
            const int last = first + {_SEGMENT} < size ? first + {_SEGMENT} : size;
            const float target = weights[{_ADDED} + array];
            float total = 0;
            for (int at = first + threadIdx.x; at < last; at += blockDim.x)
                total += (x[at] - target) * (x[at] - target);
            total = sum_of_block(total);
            if (threadIdx.x == 0) out[block] = total * weights[array];
        """),
    )


@cache
def _graded() -> Any:
    """A thread computes the gradient in one element."""
    cases = "".join(f"case {n}: x = x{n}; to = to{n}; break;" for n in range(_GRADED))
    return mx.fast.cuda_kernel(
        name="vits_graded",
        input_names=[*(f"x{n}" for n in range(_GRADED)), "ends", "weights", "cotangent"],
        output_names=[f"to{n}" for n in range(_GRADED)],
        source=short(f"""
            const int place = blockIdx.x * blockDim.x + threadIdx.x;
            if (place >= ends[{_GRADED - 1}]) return;
            int array = 0;
            while (place >= ends[array]) ++array;
            const float* x = x0;
            float* to = to0;
            switch (array) {{ {cases} }}
            const int i = place - (array > 0 ? ends[array - 1] : 0);
            const float scale = weights[array] * cotangent[0];
            to[i] = 2 * (x[i] - weights[{_GRADED} + array]) * scale;
        """),
    )


@cache
def _adamw() -> Any:
    """A thread updates one element."""
    names = [f"{kind}{n}" for kind in "pgmv" for n in range(_UPDATED)]
    outputs = [f"{kind}{n}" for kind in ("to_p", "to_m", "to_v") for n in range(_UPDATED)]
    cases = "".join(
        f"case {n}: p = p{n}; g = g{n}; m = m{n}; v = v{n};"
        f" to_p = to_p{n}; to_m = to_m{n}; to_v = to_v{n}; break;"
        for n in range(_UPDATED)
    )
    return mx.fast.cuda_kernel(
        name="vits_adamw",
        input_names=[*names, "ends", "factors", "constants"],
        output_names=outputs,
        source=short(f"""
            const int place = blockIdx.x * blockDim.x + threadIdx.x;
            if (place >= ends[{_UPDATED - 1}]) return;
            int tensor = 0;
            while (place >= ends[tensor]) ++tensor;
            const float *p = p0, *g = g0, *m = m0, *v = v0;
            float *to_p = to_p0, *to_m = to_m0, *to_v = to_v0;
            switch (tensor) {{ {cases} }}
            const int i = place - (tensor > 0 ? ends[tensor - 1] : 0);
            const float moment = constants[0] * m[i] + constants[1] * g[i];
            const float second = constants[2] * v[i] + constants[3] * g[i] * g[i];
            to_p[i] = p[i] * factors[0]
                - factors[1] * moment / (sqrtf(second) * factors[2] + constants[4]);
            to_m[i] = moment;
            to_v[i] = second;
        """),
    )
