"""A voice between the pretrained weights and the trained ones.

    w = w0 + share (w_trained - w0)

for every trained tensor, length and direction of a weight norm each by itself. A few hundred
updates on one minute bring a voice nearer to its speaker, and cost it some of the clarity that the
base has learnt from hours: on the way back most of the clarity returns before most of the likeness
is gone (`docs/evaluation.md`). Source: Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT), whose
alpha is the share.

The training itself goes on from the trained weights; only what is spoken and saved as the voice is
blended.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.models.vits import SynthesizerTrn


class Blend:
    """The blended twin of a generator that is being trained.

    Args:
        trained: with the pretrained weights, its frozen parts frozen; it is not changed.
        share: of the way to the trained weights, above 0; at 1 the twin is the generator itself.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """

    def __init__(self, trained: SynthesizerTrn, share: float):
        check_share(share)
        self._trained, self._share = trained, share
        self._twin = trained if share == 1 else copy.deepcopy(trained)
        self._origin = _leaves(self._twin) if share < 1 else {}

    def model(self) -> SynthesizerTrn:
        """The twin, with what the trained weights are now."""
        if self._origin:
            weights = _leaves(self._trained)
            blended = [
                (path, origin + self._share * (weights[path] - origin))
                for path, origin in self._origin.items()
            ]
            self._twin.update(tree_unflatten(blended))
            mx.eval(self._twin.parameters())
        return self._twin


def check_share(share: float) -> None:
    """Refuses what is no share of the way.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"blend is {share!r}, not above 0 and at most 1")


def _leaves(model: SynthesizerTrn) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(model.trainable_parameters())
    return dict(leaves)
