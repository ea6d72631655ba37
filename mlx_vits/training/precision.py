"""What a training step computes in. Weights, moments and files are fp32 whatever is chosen.

With bf16, convolutions and products of matrices are computed from weights that were cast, and what
passes between them is bf16. Fp32 stay: the weights that are updated, AdamW, weight norm, the
statistics of layer norms, softmax, all losses, spectrograms, the pull, gradients and their norms;
the layers that read or give a waveform, scores, or the moments of a distribution; and what is
frozen. bf16 has the range of fp32, so losses are not scaled.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

PRECISIONS = ("auto", "fp32", "bf16")
CHECKPOINTING = ("auto", "on", "off")


def compute_type(precision: str) -> mx.Dtype:
    """The type to compute in.

    Args:
        precision: of `PRECISIONS`. "auto" is fp32: on a Linux CPU a step of the demo in bf16
            takes 6 times as long, and what it gains on GPUs has not been measured.

    Raises:
        ValueError: another word.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return mx.bfloat16 if precision == "bf16" else mx.float32


def cast_floats(tree: Any, dtype: mx.Dtype) -> Any:
    """Cast the arrays of a tree; gradients arrive in the types they had."""
    return tree_map(lambda array: array.astype(dtype), tree)
