"""How many operations a step takes: products of convolutions and matrices, from their shapes.

A multiplication and an addition are two operations. Activations, norms, spectrograms and optimizers
are not counted: they are bound by memory. Axes: T spectrogram frames, L phonemes, N samples.
"""

from __future__ import annotations

from typing import NamedTuple

from mlx_vits.config import Config
from mlx_vits.tools.bench.work import Work

_DISCRIMINATOR_S = [  # in, out, kernel, stride, groups at full width; in `models/discriminator.py`
    (1, 16, 15, 1, 1),
    (16, 64, 41, 4, 4),
    (64, 256, 41, 4, 16),
    (256, 1024, 41, 4, 64),
    (1024, 1024, 41, 4, 256),
    (1024, 1024, 5, 1, 1),
    (1024, 1, 3, 1, 1),
]
_DISCRIMINATOR_P = [(1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024)]


class Operations(NamedTuple):
    """Of one batch.

    Attributes:
        forward_g: the generator's forward of training.
        step_d: the discriminator on both waveforms, and its gradients.
        step_g: the generator's gradients, through the discriminator's judgement of both.
        step: all three.
        synthesis: of one clip.
    """

    forward_g: float
    step_d: float
    step_g: float
    step: float
    synthesis: float


def count_operations(work: Work) -> Operations:
    """Of a step over a batch, and of synthesis at batch 1.

    A gradient costs a forward in its inputs and another in its weights.
    """
    config, frames, phonemes = work.config, work.frames, work.phonemes
    size = work.batch_size
    prior = _text_encoder(config, frames, phonemes)
    flow = _flow(config, frames)
    trained = prior + flow + _posterior(config, frames) + _style(config, frames)
    trained += _decoder(config, config.segment_frames)
    frozen = _quantizer(config, frames)
    judged = _discriminators(config, config.train.segment_size)
    forward_g = size * (trained + frozen)
    step_d = size * 2 * 3 * judged
    # Both waveforms are judged, the generated one's gradient is in its samples alone.
    step_g = size * (2 * trained + 3 * judged)
    synthesis = prior + flow + _decoder(config, frames)
    return Operations(forward_g, step_d, step_g, forward_g + step_d + step_g, synthesis)


def _decoder(config: Config, frames: int) -> float:
    model = config.model
    width, length = model.upsample_initial_channel, frames
    products = length * 7 * model.inter_channels * width + model.gin_channels * width
    taps = sum(
        2 * size * len(dilations)
        for size, dilations in zip(
            model.resblock_kernel_sizes, model.resblock_dilation_sizes, strict=True
        )
    )
    for rate, kernel in zip(model.upsample_rates, model.upsample_kernel_sizes, strict=True):
        products += length * kernel * width * (width // 2)
        width, length = width // 2, length * rate
        products += length * taps * width**2
    return 2.0 * (products + length * 7 * width)


def _wn(config: Config, frames: int, kernel: int, layers: int) -> float:
    width = config.model.hidden_channels
    inner = kernel * width * 2 * width * layers
    outer = width * width * (2 * layers - 1)
    return 2.0 * (frames * (inner + outer) + config.model.gin_channels * 2 * width * layers)


def _posterior(config: Config, frames: int) -> float:
    model, dims = config.model, config.reduced_dims
    ends = config.data.spec_channels + 2 * model.inter_channels
    around = 2.0 * frames * ends * model.hidden_channels
    return around + _wn(config, frames, dims.enc_q_kernel, dims.enc_q_wn_layers)


def _flow(config: Config, frames: int) -> float:
    model, dims = config.model, config.reduced_dims
    around = 2.0 * frames * model.inter_channels * model.hidden_channels
    return dims.flow_n_flows * (around + _wn(config, frames, dims.flow_kernel, dims.flow_wn_layers))


def _attention(queries: int, keys: int, width: int, relative: int = 0) -> float:
    projections = 2 * (queries + keys) * width**2
    return 2.0 * (projections + 2 * queries * (keys + relative) * width)


def _encoder(config: Config, length: int, layers: int) -> float:
    model = config.model
    width = model.hidden_channels
    ffn = 4.0 * length * model.kernel_size * width * model.filter_channels
    relative = 2 * config.reduced_dims.attn_window + 1
    return layers * (_attention(length, length, width, relative) + ffn)


def _text_encoder(config: Config, frames: int, phonemes: int) -> float:
    model, dims = config.model, config.reduced_dims
    width, layers = model.hidden_channels, model.n_layers
    ends = 2.0 * frames * width * (dims.ssl_dim + 2 * model.inter_channels)
    mrte = 2.0 * (2 * frames + phonemes) * width * dims.mrte_hidden
    mrte += _attention(frames, phonemes, dims.mrte_hidden)
    encoders = 2 * _encoder(config, frames, layers // 2) + _encoder(config, phonemes, layers)
    return ends + mrte + encoders


def _style(config: Config, frames: int) -> float:
    model, dims = config.model, config.reduced_dims
    width = dims.style_hidden
    alone = dims.ref_spec_bins * width + width**2 + width * model.gin_channels
    temporal = 2 * dims.style_kernel * width * 2 * width
    speaker = 2.0 * dims.sv_dim * model.gin_channels
    return 2.0 * frames * (alone + temporal) + _attention(frames, frames, width) + speaker


def _quantizer(config: Config, frames: int) -> float:
    dims = config.reduced_dims
    stride = 2 if config.model.semantic_frame_rate == "25hz" else 1
    codes = frames // stride
    return 2.0 * codes * dims.ssl_dim * (stride * dims.ssl_dim + dims.codebook_size)


def _discriminators(config: Config, samples: int) -> float:
    width = config.reduced_dims.disc_width
    products, length = 0.0, samples
    for inputs, outputs, kernel, stride, groups in _DISCRIMINATOR_S:
        length = -(-length // stride)
        inner = max(1, width * inputs) / max(1, width * groups)
        products += length * kernel * inner * (outputs if outputs == 1 else width * outputs)
    periods = (2, 3, 5, 7, 11, 17, 23) if config.model.is_pro else (2, 3, 5, 7, 11)
    for period in periods:
        length = -(-samples // period)
        for layer, (inputs, outputs) in enumerate(_DISCRIMINATOR_P):
            length = -(-length // 3) if layer < 4 else length
            products += period * length * 5 * max(1, width * inputs) * width * outputs
        products += period * length * 3 * width * 1024
    return 2.0 * products
