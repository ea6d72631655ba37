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

from mlx_vits.accel.cuda.kernels import THREADS, short
from mlx_vits.accel.cuda.source import SUM_OF_BLOCK

_PAIRS = 16  # of arrays that a launch adds up
_UPDATED = 8  # tensors that a launch updates
_FOLDED = 8  # layers whose weight norm a launch computes
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
                _constants((betas[0], 1 - betas[0], betas[1], 1 - betas[1], eps)),
            ],
            grid=(ends[-1], 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[*(array.shape for array in p), *[(1,)] * missing] * 3,
            output_dtypes=[mx.float32] * 3 * _UPDATED,
        )
        of_each = [outputs[kind * _UPDATED :][: len(p)] for kind in range(3)]
        found += [(a, Moments(b, c)) for a, b, c in zip(*of_each, strict=True)]
    return found


Arrays = Sequence[mx.array]


def fold(g: Arrays, v: Arrays) -> tuple[list[mx.array], list[mx.array]]:
    """`g * v / ||v||` of several layers, the norm of each row of v, and the norms.

    Args:
        g: of one number a row, `(R, 1, ...)`.
        v: `(R, ...)`.
    """
    return _of_rows(_fold(), (g, v), (v, g))


def fold_gradient(
    g: Arrays, v: Arrays, norms: Arrays, cotangents: Arrays
) -> tuple[list[mx.array], list[mx.array]]:
    """In g and in v."""
    return _of_rows(_fold_gradient(), (g, v, norms, cotangents), (g, v))


class Pull(NamedTuple):
    """What pulls.

    Attributes:
        loss: sum of `scale * ||w - origin||^2` over all layers.
        norm: of its gradient.
        of_g, of_v: each layer's gradients, the given ones added; without meaning as `of_g` of a
            layer that has no weight norm.
    """

    loss: mx.array
    norm: mx.array
    of_g: list[mx.array]
    of_v: list[mx.array]


def pull(
    v: Arrays,
    origins: Arrays,
    grads: Arrays,
    g: Sequence[mx.array | None],
    grads_g: Sequence[mx.array | None],
    scales: Sequence[float],
) -> Pull:
    """Pull the weights of several layers toward their origins; a block computes a row.

    Args:
        v: weights, or where there is weight norm their directions, `(R, ...)`.
        origins: what the weights are pulled toward.
        grads: in v, to which the pull's are added.
        g: norms of the rows of a weight, R elements; None for no weight norm.
        grads_g: in these.
        scales: of each layer.
    """
    found = Pull(mx.array(0.0), mx.array(0.0), [], [])
    parts = []
    for start in range(0, len(v), _FOLDED):
        few = slice(start, start + _FOLDED)
        directions, norms = v[few], g[few]
        missing = _FOLDED - len(directions)
        kinds = [_given(norms, directions), directions, origins[few], grads[few]]
        kinds.append(_given(grads_g[few], directions))
        ends = np.cumsum([len(one) for one in directions]).tolist()
        widths = [one.size // len(one) for one in directions] + [0] * missing
        is_normed = [int(one is not None) for one in norms] + [0] * missing
        unused = [(1,)] * missing
        outputs = _pull()(
            inputs=[
                *(array for kind in kinds for array in (*kind, *[kind[0]] * missing)),
                mx.array([*ends, *[ends[-1]] * missing, *widths, *is_normed], mx.int32),
                _constants((*scales[few], *[0.0] * missing)),
            ],
            grid=(ends[-1] * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[
                *((1,) if one is None else one.shape for one in norms),
                *unused,
                *(one.shape for one in directions),
                *unused,
                (2, ends[-1]),
            ],
            output_dtypes=[mx.float32] * (2 * _FOLDED + 1),
        )
        for so_far, first in zip((found.of_g, found.of_v), (0, _FOLDED), strict=True):
            so_far += outputs[first : first + len(directions)]
        parts.append(outputs[-1])
    loss, squares = mx.split(mx.sum(mx.concatenate(parts, axis=1), axis=1), 2)
    return found._replace(loss=loss.squeeze(0), norm=mx.sqrt(squares.squeeze(0)))


def _given(arrays: Sequence[mx.array | None], others: Arrays) -> list[mx.array]:
    """The arrays, and of the others for what is missing."""
    pairs = zip(arrays, others, strict=True)
    return [other if array is None else array for array, other in pairs]


def _of_rows(
    kernel: Any, kinds: Sequence[Arrays], like: tuple[Arrays, Arrays]
) -> tuple[list[mx.array], list[mx.array]]:
    """Two arrays for each layer, of the shapes of those in `like`; a block computes a row."""
    found: tuple[list[mx.array], list[mx.array]] = ([], [])
    for start in range(0, len(kinds[0]), _FOLDED):
        few = slice(start, start + _FOLDED)
        directions = kinds[1][few]
        count = len(directions)
        missing = _FOLDED - count
        ends = np.cumsum([len(v) for v in directions]).tolist()
        widths = [v.size // len(v) for v in directions] + [0] * missing
        outputs = kernel(
            inputs=[
                *(array for kind in kinds for array in (*kind[few], *[kind[start]] * missing)),
                mx.array([*ends, *[ends[-1]] * missing, *widths], mx.int32),
            ],
            grid=(ends[-1] * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[
                shape
                for kind in like
                for shape in (*(a.shape for a in kind[few]), *[(1,)] * missing)
            ],
            output_dtypes=[mx.float32] * 2 * _FOLDED,
        )
        for so_far, first in zip(found, (0, _FOLDED), strict=True):
            so_far += outputs[first : first + count]
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
        numbers = *weights[few], *[0.0] * missing, *targets[few]
        sizes = [array.size for array in a] + [0] * missing
        blocks = np.cumsum([-(-size // _SEGMENT) for size in sizes]).tolist()
        (part,) = _sums()(
            inputs=[
                *(array for kind in (a, b) for array in (*kind, *[kind[0]] * missing)),
                mx.array([branch, *blocks, *sizes], mx.int32),
                _constants(numbers),
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
                _constants((*weights[few], *[0.0] * missing, *targets[few], *[0.0] * missing)),
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
def _constants(values: tuple[float, ...]) -> mx.array:
    return mx.array(values, mx.float32)


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


# A block finds its layer and its row in that.
_ROW = f"""
    int layer = 0;
    while (blockIdx.x >= ends[layer]) ++layer;
    const long row = blockIdx.x - (layer > 0 ? ends[layer - 1] : 0);
    const int width = ends[{_FOLDED} + layer];
    const long start = row * width;
"""


def _chosen(inputs: str, outputs: Sequence[str]) -> str:
    """Pointers to a layer's arrays, by the letters of the inputs and the names of the outputs."""
    declared = "".join(f"const float* {letter} = {letter}0;" for letter in inputs)
    declared += "".join(f"float* {name} = {name}0;" for name in outputs)
    names = [*inputs, *outputs]
    cases = "".join(
        f"case {n}: {''.join(f'{name} = {name}{n};' for name in names)} break;"
        for n in range(_FOLDED)
    )
    return f"{declared} switch (layer) {{ {cases} }}"


def _row_kernel(
    name: str,
    inputs: str,
    outputs: Sequence[str],
    body: str,
    more_inputs: Sequence[str] = (),
    more_outputs: Sequence[str] = (),
) -> Any:
    names = [f"{letter}{n}" for letter in inputs for n in range(_FOLDED)]
    return mx.fast.cuda_kernel(
        name=name,
        input_names=[*names, "ends", *more_inputs],
        output_names=[
            *(f"{output}{n}" for output in outputs for n in range(_FOLDED)),
            *more_outputs,
        ],
        header=short(SUM_OF_BLOCK),
        source=short(_ROW + _chosen(inputs, outputs) + body),
    )


@cache
def _fold() -> Any:
    body = """
        float total = 0;
        for (int at = threadIdx.x; at < width; at += blockDim.x)
            total += v[start + at] * v[start + at];
        const float norm = sqrtf(sum_of_block(total)), scale = g[row] / norm;
        for (int at = threadIdx.x; at < width; at += blockDim.x)
            to_w[start + at] = v[start + at] * scale;
        if (threadIdx.x == 0) to_n[row] = norm;
    """
    return _row_kernel("vits_fold", "gv", ("to_w", "to_n"), body)


@cache
def _fold_gradient() -> Any:
    body = """
        float total = 0;
        for (int at = threadIdx.x; at < width; at += blockDim.x)
            total += c[start + at] * v[start + at];
        const float along = sum_of_block(total) / n[row], scale = g[row] / n[row];
        const float share = along / n[row];
        for (int at = threadIdx.x; at < width; at += blockDim.x)
            to_v[start + at] = scale * (c[start + at] - v[start + at] * share);
        if (threadIdx.x == 0) to_g[row] = along;
    """
    return _row_kernel("vits_fold_gradient", "gvnc", ("to_g", "to_v"), body)


@cache
def _pull() -> Any:
    """Of each row also its part of the loss, and of the square of the gradient's norm."""
    body = f"""
        const bool is_normed = ends[2 * {_FOLDED} + layer] != 0;
        float norm = 1, factor = 1;
        if (is_normed) {{
            float total = 0;
            for (int at = threadIdx.x; at < width; at += blockDim.x)
                total += v[start + at] * v[start + at];
            norm = sqrtf(sum_of_block(total));
            factor = g[row] / norm;
        }}
        float squares = 0, along = 0;
        for (int at = threadIdx.x; at < width; at += blockDim.x) {{
            const float x = v[start + at] * factor - o[start + at];
            squares += x * x;
            along += x * v[start + at];
        }}
        squares = sum_of_block(squares);
        along = is_normed ? sum_of_block(along) / norm : 0;
        const float twice = 2 * scales[layer], share = along / norm;
        float own = 0;
        for (int at = threadIdx.x; at < width; at += blockDim.x) {{
            const float x = v[start + at] * factor - o[start + at];
            const float mine = twice * factor * (x - v[start + at] * share);
            own += mine * mine;
            to_v[start + at] = c[start + at] + mine;
        }}
        own = sum_of_block(own);
        if (threadIdx.x == 0) {{
            if (is_normed) to_g[row] = h[row] + twice * along;
            parts[blockIdx.x] = scales[layer] * squares;
            parts[ends[{_FOLDED - 1}] + blockIdx.x] = own + twice * along * twice * along;
        }}
    """
    return _row_kernel("vits_pull", "gvoch", ("to_g", "to_v"), body, ["scales"], ["parts"])


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
