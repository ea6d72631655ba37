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

_PAIRS = 16  # of arrays that a launch adds up
_UPDATED = 8  # tensors that a launch updates
_GRADED = 8  # arrays that a launch computes gradients in
_SEGMENT = 8192  # elements that a block adds up


class Moments(NamedTuple):
    """AdamW's first and second moment of a tensor."""

    m: mx.array
    v: mx.array


def sum_of_products(arrays: Sequence[mx.array], others: Sequence[mx.array]) -> mx.array:
    """Sum of the products of the elements of all pairs: `()`."""
    return _sum_of_pairs(0, arrays, others, [1.0] * len(arrays))


def sum_of_distances(
    arrays: Sequence[mx.array], others: Sequence[mx.array], weights: Sequence[float]
) -> mx.array:
    """Sum of `weight * |x - y|` over the elements of all pairs, a weight a pair: `()`."""
    return _sum_of_pairs(1, arrays, others, weights)


def sum_of_squares(
    arrays: Sequence[mx.array], targets: Sequence[float], weights: Sequence[float]
) -> mx.array:
    """Sum of `weight * (x - target)^2` over the elements of all arrays, one of each an array."""
    return _sum_of_pairs(2, arrays, arrays, weights, targets)


def distance_gradients(
    arrays: Sequence[mx.array],
    others: Sequence[mx.array],
    weights: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    """Of `sum_of_distances` in the others, from its cotangent `()`."""
    return _gradients(0, arrays, others, weights, [0.0] * len(arrays), cotangent)


def square_gradients(
    arrays: Sequence[mx.array],
    targets: Sequence[float],
    weights: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    """Of `sum_of_squares`, from its cotangent `()`."""
    return _gradients(1, arrays, arrays, weights, targets, cotangent)


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


def _sum_of_pairs(
    branch: int,
    arrays: Sequence[mx.array],
    others: Sequence[mx.array],
    weights: Sequence[float],
    targets: Sequence[float] = (),
) -> mx.array:
    parts = []
    for start in range(0, len(arrays), _PAIRS):
        few = slice(start, start + _PAIRS)
        a, b = arrays[few], others[few]
        missing = _PAIRS - len(a)
        factors = *weights[few], *[0.0] * missing, *targets[few]
        sizes = [array.size for array in a] + [0] * missing
        blocks = np.cumsum([-(-size // _SEGMENT) for size in sizes]).tolist()
        (part,) = _sums()(
            inputs=[
                *(array for kind in (a, b) for array in (*kind, *[kind[0]] * missing)),
                mx.array([branch, *blocks, *sizes], mx.int32),
                constants(factors),
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


def _gradients(
    branch: int,
    arrays: Sequence[mx.array],
    others: Sequence[mx.array],
    weights: Sequence[float],
    targets: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    found: list[mx.array] = []
    for start in range(0, len(arrays), _GRADED):
        few = slice(start, start + _GRADED)
        a, b = arrays[few], others[few]
        missing = _GRADED - len(a)
        ends = np.cumsum([array.size for array in a]).tolist()
        outputs = _graded()(
            inputs=[
                *(array for kind in (a, b) for array in (*kind, *[kind[0]] * missing)),
                mx.array([branch, *ends, *[ends[-1]] * missing], mx.int32),
                constants((*weights[few], *[0.0] * missing, *targets[few], *[0.0] * missing)),
                cotangent,
            ],
            grid=(ends[-1], 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[*(array.shape for array in b), *[(1,)] * missing],
            output_dtypes=[mx.float32] * _GRADED,
        )
        found += outputs[: len(a)]
    return found


@cache
def _sums() -> Any:
    """A block adds up a segment of one pair."""
    names = [f"{kind}{number:02}" for kind in "ab" for number in range(_PAIRS)]
    cases = "".join(f"case {n}: a = a{n:02}; b = b{n:02}; break;" for n in range(_PAIRS))
    return mx.fast.cuda_kernel(
        name="vits_sums",
        input_names=[*names, "sizes", "weights"],
        output_names=["out"],
        header=short(SUM_OF_BLOCK),
        source=short(f"""
            const int block = blockIdx.x;
            int pair = 0;
            while (block >= sizes[1 + pair]) ++pair;
            const float* a = a00;
            const float* b = b00;
            switch (pair) {{ {cases} }}
            const int first = (block - (pair > 0 ? sizes[pair] : 0)) * {_SEGMENT};
            const int size = sizes[1 + {_PAIRS} + pair];
            const int last = first + {_SEGMENT} < size ? first + {_SEGMENT} : size;
            const float target = sizes[0] == 2 ? weights[{_PAIRS} + pair] : 0.0f;
            float total = 0;
            for (int at = first + threadIdx.x; at < last; at += blockDim.x)
                total += sizes[0] == 0 ? a[at] * b[at]
                    : sizes[0] == 1 ? fabsf(a[at] - b[at])
                    : (a[at] - target) * (a[at] - target);
            total = sum_of_block(total);
            if (threadIdx.x == 0) out[block] = total * weights[pair];
        """),
    )


@cache
def _graded() -> Any:
    """A thread computes the gradient in one element."""
    cases = "".join(f"case {n}: a = a{n}; b = b{n}; to = to{n}; break;" for n in range(_GRADED))
    names = [f"{kind}{n}" for kind in "ab" for n in range(_GRADED)]
    return mx.fast.cuda_kernel(
        name="vits_graded",
        input_names=[*names, "ends", "weights", "cotangent"],
        output_names=[f"to{n}" for n in range(_GRADED)],
        source=short(f"""
            const int place = blockIdx.x * blockDim.x + threadIdx.x;
            if (place >= ends[{_GRADED}]) return;
            int pair = 0;
            while (place >= ends[1 + pair]) ++pair;
            const float *a = a0, *b = b0;
            float* to = to0;
            switch (pair) {{ {cases} }}
            const int i = place - (pair > 0 ? ends[pair] : 0);
            const float scale = weights[pair] * cotangent[0], x = b[i] - a[i];
            if (ends[0] == 0) to[i] = ((x > 0) - (x < 0)) * scale;
            else to[i] = 2 * (a[i] - weights[{_GRADED} + pair]) * scale;
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
