"""A voice between the pretrained weights and the trained ones.

    w = w0 + share (w_trained - w0)

for every trained tensor, length and direction of a weight norm each by itself. A few hundred
updates on one minute bring a voice nearer to its speaker, and cost it some of the clarity that the
base has learnt from hours: on the way back most of the clarity returns before most of the likeness
is gone. The encoders and the flow, which learn from the KL divergence, have a share of their own,
as they cost most of the one and bring least of the other (`docs/evaluation.md`). Source: Wortsman
et al. 2022, arXiv:2109.01903 (WiSE-FT), whose alpha is the share.

The training itself goes on from the trained weights; only what is spoken and saved as the voice is
blended.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.models.vits import SynthesizerTrn

_PRIOR_SIDE = ("enc_p.", "enc_q.", "flow.")


class Blend:
    """The blended twin of a generator that is being trained.

    Args:
        trained: with the pretrained weights, its frozen parts frozen; it is not changed.
        share: of the way to the trained weights; at 1 the twin is the generator itself.
        prior_share: of `enc_p`, `enc_q` and `flow`; None for the same.
    """

    def __init__(self, trained: SynthesizerTrn, share: float, prior_share: float | None = None):
        self._share, self._prior_share = share, share if prior_share is None else prior_share
        is_whole = self._share == self._prior_share == 1
        self._trained, self._twin = trained, trained if is_whole else copy.deepcopy(trained)
        self._origin = {} if is_whole else _leaves(self._twin)

    def describe(self) -> str:
        """A sentence for the screen; empty where nothing is blended."""
        if not self._origin:
            return ""
        beside = f" ({self._prior_share:g} for encoders and flow)"
        return (
            f"The voice lies at {self._share:g} of the way from the base to what is trained"
            f"{beside if self._prior_share != self._share else ''}; --blend chooses."
        )

    def model(self) -> SynthesizerTrn:
        """The twin, with what the trained weights are now."""
        if self._origin:
            weights = _leaves(self._trained)
            blended = [
                (path, origin + self._share_of(path) * (weights[path] - origin))
                for path, origin in self._origin.items()
            ]
            self._twin.update(tree_unflatten(blended))
            mx.eval(self._twin.parameters())
        return self._twin

    def _share_of(self, path: str) -> float:
        return self._prior_share if path.startswith(_PRIOR_SIDE) else self._share


def _leaves(model: SynthesizerTrn) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(model.trainable_parameters())
    return dict(leaves)
