"""CUDA kernels over the weights of several layers at once, a block of threads for each row.

For weight norm, and for the pull toward the pretrained weights. All arrays are fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.accel.cuda.kernels import THREADS, constants, short
from mlx_vits.accel.cuda.source import SUM_OF_BLOCK

_LAYERS = 8  # that a launch takes

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
    for start in range(0, len(v), _LAYERS):
        few = slice(start, start + _LAYERS)
        directions, norms = v[few], g[few]
        missing = _LAYERS - len(directions)
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
                constants((*scales[few], *[0.0] * missing)),
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
            output_dtypes=[mx.float32] * (2 * _LAYERS + 1),
        )
        for so_far, first in zip((found.of_g, found.of_v), (0, _LAYERS), strict=True):
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
    for start in range(0, len(kinds[0]), _LAYERS):
        few = slice(start, start + _LAYERS)
        directions = kinds[1][few]
        count = len(directions)
        missing = _LAYERS - count
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
            output_dtypes=[mx.float32] * 2 * _LAYERS,
        )
        for so_far, first in zip(found, (0, _LAYERS), strict=True):
            so_far += outputs[first : first + count]
    return found


# A block finds its layer and its row in that.
_ROW = f"""
    int layer = 0;
    while (blockIdx.x >= ends[layer]) ++layer;
    const long row = blockIdx.x - (layer > 0 ? ends[layer - 1] : 0);
    const int width = ends[{_LAYERS} + layer];
    const long start = row * width;
"""


def _chosen(inputs: str, outputs: Sequence[str]) -> str:
    """Pointers to a layer's arrays, by the letters of the inputs and the names of the outputs."""
    declared = "".join(f"const float* {letter} = {letter}0;" for letter in inputs)
    declared += "".join(f"float* {name} = {name}0;" for name in outputs)
    names = [*inputs, *outputs]
    cases = "".join(
        f"case {n}: {''.join(f'{name} = {name}{n};' for name in names)} break;"
        for n in range(_LAYERS)
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
    names = [f"{letter}{n}" for letter in inputs for n in range(_LAYERS)]
    return mx.fast.cuda_kernel(
        name=name,
        input_names=[*names, "ends", *more_inputs],
        output_names=[
            *(f"{output}{n}" for output in outputs for n in range(_LAYERS)),
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
        const bool is_normed = ends[2 * {_LAYERS} + layer] != 0;
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
            parts[ends[{_LAYERS - 1}] + blockIdx.x] = own + twice * along * twice * along;
        }}
    """
    return _row_kernel("vits_pull", "gvoch", ("to_g", "to_v"), body, ["scales"], ["parts"])
