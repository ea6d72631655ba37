"""How much memory a step of the GPT stage takes, reckoned before the first one.

Counted are the weights with their moments, the anchor and the gradients, and what the forward of
one micro-batch leaves for the backward: along its rows, phonemes and codes together, and between
every two of them. How many tensors that is was fitted to `mx.get_peak_memory()` on a CPU,
uncompiled, with dropout: of 13 steps of five nets, from 36 MB to the full size's 5.1 GB, none is
more than 7 % off. Where the forward leaves little, the update takes more: gradients, weights and
moments in stacks, as they were and as they become. That was measured at the full size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlx_vits.config import BERT_CHANNELS, T2SConfig
from mlx_vits.training.footprint import exceeds
from mlx_vits.training.t2s_rows import CODES_PER_SECOND

_BYTES = 4  # of a number, fp32
_ROW_TENSORS = 20  # per layer and row, each as wide as the model
_UPDATE = 7  # times the weights, at the peak of an update
_UPDATE_OF_PULL = 3  # more with the pull: the anchor, and gradients with and without its own
_PAIR_TENSORS = 3  # per layer and head: scores, their softmax, and dropout


class T2SClips(NamedTuple):
    """What a micro-batch holds.

    Attributes:
        size: clips in it.
        phonemes: of each, padding included.
        codes: of each, likewise.
    """

    size: int
    phonemes: int
    codes: int


def count_weights(config: T2SConfig) -> int:
    """The number of parameters."""
    width = config.hidden_dim
    layer = 12 * width**2 + 13 * width
    tables = (config.phoneme_vocab_size + 2 * config.vocab_size + BERT_CHANNELS + 1) * width
    return config.n_layer * layer + tables + 2


def estimate_t2s_peak(
    config: T2SConfig,
    clips: T2SClips,
    *,
    recomputes: bool = False,
    is_anchored: bool = False,
    dpo: bool = False,
) -> int:
    """Bytes that a training step takes at its peak in fp32, the net and its optimizer included.

    Args:
        clips: of the largest micro-batch.
        recomputes: whether layers are computed again in the backward.
        is_anchored: whether a copy of the weights is kept to pull toward.
        dpo: whether rejected codes, up to twice as many, are read as well.
    """
    weights = count_weights(config)
    held = 5 + is_anchored  # with two moments, the gradients, and what an update makes of them
    left = _activations(config, clips, recomputes)
    if dpo:
        left += _activations(config, clips._replace(codes=2 * clips.codes), recomputes)
    update = weights * (_UPDATE + _UPDATE_OF_PULL * is_anchored)
    return _BYTES * max(weights * held + left, update)


def _activations(config: T2SConfig, clips: T2SClips, recomputes: bool) -> int:
    rows = clips.phonemes + clips.codes
    layer = rows * _ROW_TENSORS * config.hidden_dim + _PAIR_TENSORS * config.head * rows**2
    ends = 3 * (clips.codes + 1) * config.vocab_size + clips.phonemes * BERT_CHANNELS
    layers = (config.n_layer + 1) * layer  # one that its gradients take
    if recomputes:
        layers = 2 * layer + config.n_layer * rows * config.hidden_dim
    return clips.size * (layers + ends)


def describe_t2s_shortage(needs: Callable[[T2SClips], int], clips: T2SClips, memory: int) -> str:
    """In words, what a micro-batch needs, what there is, and what to do instead.

    Args:
        needs: bytes that a step takes with such micro-batches.
        clips: of the largest one.
        memory: bytes, from `usable_memory`.
    """

    def fits(size: int) -> bool:
        return not exceeds(memory, needs(clips._replace(size=size)))

    fitting = [size for size in range(1, clips.size) if fits(size)]
    cure = "leave the longest clips out, or close other programs"
    if fitting:
        cure = f"--gpt-batch-size {fitting[-1]} fits"
    seconds = clips.codes / CODES_PER_SECOND
    return (
        f"a batch of {clips.size} clips of up to {seconds:.0f} s needs about "
        f"{needs(clips) / 1e9:.1f} GB of memory, and {memory / 1e9:.1f} GB can be had; {cure}"
    )
