"""How much memory a training step takes, reckoned before the first one.

A step holds the weights of both nets with their moments and the anchor, its gradients, and what the
forward leaves for the backward: of the decoded segment, of the discriminators' judgement, and of
the whole clips in the encoders. Each of these is counted from the configuration and multiplied by a
factor of the device that it is computed on, see `accel/memory.py`.

Axes: T spectrogram frames, L phonemes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_vits.accel.memory import MemoryFactors, step_memory
from mlx_vits.config import Config, TrainSection
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.system.memory import free_memory

_BYTES = 4  # of a number, fp32


class Clips(NamedTuple):
    """What a batch holds.

    Attributes:
        size: clips in it.
        frames: spectrogram frames of each, padding included.
        phonemes: of each, likewise.
    """

    size: int
    frames: int
    phonemes: int


class Parts(NamedTuple):
    """Bytes of what is counted.

    Attributes:
        state: weights, moments, the anchor. Always held.
        gradients: of all that is trained.
        decoder: outputs of the decoder's convolutions.
        judge: outputs of the discriminators' convolutions, of one waveform a clip.
        frames: outputs along the frames and phonemes of whole clips.
        pairs: attention, of every frame or phoneme to every other.
    """

    state: float
    gradients: float
    decoder: float
    judge: float
    frames: float
    pairs: float


_MARGIN = 1.1  # estimates are fitted to a few models and machines


def estimate_peak(config: Config, clips: Clips, *, recomputes: bool = False) -> int:
    """Bytes that a training step takes at its peak, the nets and their optimizers included.

    Args:
        config: of the model; `train.segment_size` as it is trained with.
        clips: of the largest batch.
        recomputes: whether activations are checkpointed.
    """
    parts = count_parts(config, clips)
    return int(min(peak_of(parts, factors) for factors in _factors(recomputes)))


def _factors(recomputes: bool) -> tuple[MemoryFactors, ...]:
    """Those of a step; recomputing takes at most what keeping takes, so both bound it."""
    both = step_memory()
    return both if recomputes else both[:1]


def peak_of(parts: Parts, factors: MemoryFactors) -> float:
    """Bytes at the peak: that of the update of the weights, or of the backward before it."""
    return max(parts.state + factors.update * parts.gradients, _backward(parts, factors))


def _backward(parts: Parts, factors: MemoryFactors) -> float:
    left = zip(parts[1:], factors[1:], strict=True)
    return parts.state + sum(part * factor for part, factor in left)


def batch_that_fits(config: Config, clips: Clips, memory: int, *, recomputes: bool = False) -> int:
    """The most clips of a length whose step stays within `memory` bytes; 0 where none does."""
    none, one = (count_parts(config, clips._replace(size=size)) for size in (0, 1))
    room, most = memory / _MARGIN, 0
    for factors in _factors(recomputes):
        if peak_of(none, factors) <= room:
            empty = _backward(none, factors)
            most = max(most, int((room - empty) // (_backward(one, factors) - empty)))
    return most


def usable_memory() -> int:
    """Bytes that a training may take in all, with what MLX holds already; 0 where nobody knows."""
    free = free_memory()
    return free + mx.get_active_memory() + mx.get_cache_memory() if free else 0


def describe_shortage(
    config: Config, clips: Clips, memory: int, *, recomputes: bool = False, accumulate: int = 1
) -> str:
    """In words, what a batch needs, what there is, and what to do instead.

    Args:
        clips: of the largest batch.
        memory: bytes, from `usable_memory`.
        recomputes: whether activations are checkpointed already.
        accumulate: batches that a step consists of already.
    """
    seconds = clips.frames * config.data.hop_length / config.data.sampling_rate
    needed = _MARGIN * estimate_peak(config, clips, recomputes=recomputes)
    return (
        f"a batch of {clips.size} clips of up to {seconds:.0f} s needs about {needed / 1e9:.1f} GB"
        f" of memory, and {memory / 1e9:.1f} GB can be had; "
        + _cures(config, clips, memory, recomputes, accumulate)
    )


def _cures(config: Config, clips: Clips, memory: int, recomputes: bool, accumulate: int) -> str:
    """Checkpointing, where all fit with it; a smaller batch; parts of the same one."""
    kept, again = (
        batch_that_fits(config, clips, memory, recomputes=flag) for flag in (recomputes, True)
    )
    found, option = [], "--checkpoint-activations on"
    if not recomputes and again >= clips.size:
        found.append(f"{option} makes room")
    count, beside = min(kept, clips.size - 1), ""
    if not count and not found and not recomputes:
        count, beside = again, f" {option}"
    if count:
        found.append(f"--batch-size {count}{beside} fits")
        part = max(size for size in range(1, count + 1) if clips.size % size == 0)
        parts = accumulate * clips.size // part
        found.append(f"--batch-size {part} --accumulate {parts}{beside} makes the same steps")
    if not found:
        return "not even one fits; leave the longest clips out, or close other programs"
    return ", or ".join(found)


def is_short(config: Config, clips: Clips, memory: int, *, recomputes: bool = False) -> bool:
    """Whether a batch is likely not to fit into `memory` bytes, 0 for unknown."""
    return exceeds(memory, estimate_peak(config, clips, recomputes=recomputes))


def exceeds(memory: int, peak: int) -> bool:
    """Whether an estimated peak is likely not to fit into `memory` bytes, 0 for unknown."""
    return 0 < memory < _MARGIN * peak


def count_parts(config: Config, clips: Clips) -> Parts:
    """What a step holds, in bytes, before any factor."""
    weights = _count_weights(config)
    size = clips.size * _BYTES
    return Parts(
        state=_BYTES * (weights.held + 2 * weights.trained + weights.anchored),
        gradients=_BYTES * weights.trained,
        decoder=size * _decoder(config),
        judge=size * _judge(config),
        frames=size * _frames(config, clips.frames, clips.phonemes),
        pairs=size * _pairs(config, clips.frames, clips.phonemes),
    )


class _Weights(NamedTuple):
    """Numbers of parameters: of both nets; trained ones; those that an anchor is kept of."""

    held: int
    trained: int
    anchored: int


def _count_weights(config: Config) -> _Weights:
    sizes = replace(config, train=TrainSection(), extra={})
    return _count_weights_of(json.dumps(sizes.to_dict()))


@cache
def _count_weights_of(sizes: str) -> _Weights:
    config = Config.from_dict(json.loads(sizes))
    # The arrays of both nets are never computed, only their shapes are looked at.
    generator, judge = SynthesizerTrn(config), _count(MultiPeriodDiscriminator(config))
    frozen = _count(generator.ssl_proj) + _count(generator.quantizer)
    held = _count(generator)
    return _Weights(held + judge, held - frozen + judge, held - frozen)


def _count(module: nn.Module) -> int:
    leaves: Any = tree_flatten(module.parameters())
    return sum(array.size for _, array in leaves)


def _decoder(config: Config) -> int:
    model = config.model
    width, length = model.upsample_initial_channel, config.segment_frames
    numbers = length * width
    blocks = sum(1 + 2 * len(dilations) for dilations in model.resblock_dilation_sizes)
    for rate in model.upsample_rates:
        width, length = width // 2, length * rate
        numbers += length * width * (1 + blocks)
    return numbers


def _judge(config: Config) -> int:
    scale, samples = config.reduced_dims.disc_width, config.train.segment_size

    def width(channels: int) -> int:
        return max(1, round(scale * channels))

    numbers, length = 0, samples
    for channels, stride in ((16, 1), (64, 4), (256, 4), (1024, 4), (1024, 4), (1024, 1)):
        length = -(-length // stride)
        numbers += length * width(channels)
    for period in (2, 3, 5, 7, 11, *((17, 23) if config.model.is_pro else ())):
        height = -(-samples // period)
        for channels, stride in ((32, 3), (128, 3), (512, 3), (1024, 3), (1024, 1)):
            height = -(-height // stride)
            numbers += period * height * width(channels)
    return numbers


def _frames(config: Config, frames: int, phonemes: int) -> int:
    model, dims = config.model, config.reduced_dims
    hidden = model.hidden_channels
    layer = 8 * hidden + 2 * model.filter_channels  # projections, sums, norms; the FFN's two
    gates = 5 * hidden * (dims.enc_q_wn_layers + dims.flow_n_flows * dims.flow_wn_layers)
    ends = 2 * config.data.spec_channels + 3 * dims.ssl_dim + 8 * model.inter_channels
    style = 10 * dims.style_hidden + 6 * dims.mrte_hidden
    along = frames * (gates + layer * model.n_layers + ends + style)
    return along + phonemes * (layer * model.n_layers + 3 * dims.mrte_hidden)


def _pairs(config: Config, frames: int, phonemes: int) -> int:
    model, dims = config.model, config.reduced_dims
    own = model.n_heads * model.n_layers * (frames**2 + phonemes**2)
    return own + dims.mrte_heads * frames * phonemes + dims.style_heads * frames**2
