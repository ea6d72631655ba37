"""The layers of `SynthesizerTrn`, merged: which weight goes where in which layer.

The projections of an attention lie side by side; so do the conditions of all layers of a WN stack,
and of all flows. The residual blocks of a decoder stage become one of block-diagonal weights. A
transposed convolution becomes one whose channels are a stride of samples (sub-pixel convolution,
Shi et al. 2016, arXiv:1609.05158). Flips are folded into weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from scripts.demo_base.flat import ZERO, Flat

_FROZEN = ("ssl_proj", "quantizer")
_TAPS = 3  # input frames that a stride of upsampled samples sees


@dataclass(frozen=True)
class Stage:
    """A decoder stage: channels of a residual block, of the stage's input, and of all blocks."""

    rate: int
    channels: int
    padded: int
    merged: int


class MergedLayers:
    """The layers by name in a `Flat`.

    Args:
        config: all residual blocks of a stage have the same dilations; an even number of flows.
        shapes: of the parameters of `SynthesizerTrn(config)`, by path.

    Attributes:
        flat: the weights.
        encoders: layers of each encoder of the prior.
        dilations: of the pairs of every residual block.
        stages: of the decoder.

    Raises:
        CheckpointError: the configuration cannot be merged so.
    """

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]):
        model = config.model
        kernels = zip(model.upsample_rates, model.upsample_kernel_sizes, strict=True)
        is_mergeable = (
            len(set(model.resblock_dilation_sizes)) == 1
            and config.reduced_dims.flow_n_flows % 2 == 0
            and all((k - u) % 2 == 0 and k <= _TAPS * u for u, k in kernels)
            and not model.is_pro
            and config.p_dropout == config.style_dropout == 0
        )
        if not is_mergeable:
            raise CheckpointError(
                "config: its layers cannot be merged; give all residual blocks the same "
                "dilations, an even number of flows, and no dropout"
            )
        self.config, self.flat = config, Flat(shapes, _FROZEN)
        self.dilations = model.resblock_dilation_sizes[0]
        self.encoders = {
            "encoder_ssl": model.n_layers // 2,
            "encoder_text": model.n_layers,
            "encoder2": model.n_layers // 2,
        }
        self._add_style()
        self._add_prior()
        self._add_latent()
        self.stages = self._add_decoder()
        self.flat.finish()

    def _linear(self, name: str, *stems: str, scales: Sequence[float] = ()) -> None:
        """Layers of one tap side by side, as `(in, out)`, each times a scale if some are given."""
        weights = self.flat.weights
        columns = [weights[f"{s}.weight"].reshape(len(weights[f"{s}.weight"]), -1).T for s in stems]
        scale = np.repeat(scales, [c.shape[1] for c in columns]) if scales else 1.0
        self.flat.add(f"{name}.w", np.concatenate(columns, 1), scale)
        self.flat.add(f"{name}.b", np.concatenate([weights[f"{s}.bias"] for s in stems]), scale)

    def _conv(self, name: str, stem: str) -> None:
        self.flat.add(f"{name}.w", self.flat.weights[f"{stem}.weight"])
        self.flat.add(f"{name}.b", self.flat.weights[f"{stem}.bias"])

    def _add_style(self) -> None:
        stem = "ref_enc"
        for layer in ("spectral.0.fc", "spectral.3.fc", "fc.fc"):
            self._linear(f"style.{layer}", f"{stem}.{layer}")
        for block in range(2):
            self._conv(f"style.{block}", f"{stem}.temporal.{block}.conv1.conv")
        attention = f"{stem}.slf_attn"
        scales = (self.config.reduced_dims.style_hidden**-0.5, 1.0, 1.0)
        self._linear("style.qkv", *(f"{attention}.w_{part}s" for part in "qkv"), scales=scales)
        self._linear("style.o", f"{attention}.fc")

    def _add_prior(self) -> None:
        flat, weights = self.flat, self.flat.weights
        model, dims = self.config.model, self.config.reduced_dims
        scales = ((model.hidden_channels // model.n_heads) ** -0.5, 1.0, 1.0)
        self._linear("prior.ssl", "enc_p.ssl_proj")
        flat.add("prior.embedding", weights["enc_p.text_embedding.weight"])
        for encoder, layers in self.encoders.items():
            for layer in range(layers):
                name, stem = f"{encoder}.{layer}", f"enc_p.{encoder}"
                attention = f"{stem}.attn_layers.{layer}"
                parts = [f"{attention}.conv_{part}" for part in "qkv"]
                self._linear(f"{name}.qkv", *parts, scales=scales)
                self._linear(f"{name}.o", f"{attention}.conv_o")
                flat.add(f"{name}.rel_k", weights[f"{attention}.emb_rel_k"][0].T)
                flat.add(f"{name}.rel_v", weights[f"{attention}.emb_rel_v"][0])
                for part in "12":
                    norm = f"{stem}.norm_layers_{part}.{layer}"
                    flat.add(f"{name}.gamma{part}", weights[f"{norm}.gamma"])
                    flat.add(f"{name}.beta{part}", weights[f"{norm}.beta"])
                    self._conv(f"{name}.ffn{part}", f"{stem}.ffn_layers.{layer}.conv_{part}")
        stem = "enc_p.mrte"
        for part in ("c_pre", "text_pre", "c_post"):
            self._linear(f"mrte.{part}", f"{stem}.{part}")
        scale = (dims.mrte_hidden // dims.mrte_heads) ** -0.5
        for name, scales in (("q", (scale,)), ("kv", ()), ("o", ())):
            parts = [f"{stem}.cross_attention.conv_{part}" for part in name]
            self._linear(f"mrte.{name}", *parts, scales=scales)
        self._linear("prior.proj", "enc_p.proj")

    def _add_wavenet(self, name: str, stem: str, layers: int) -> None:
        weights = self.flat.weights
        for layer in range(layers):
            self.flat.add(f"{name}.in.{layer}", weights[f"{stem}.in_layers.{layer}.weight"])
            self._linear(f"{name}.skip.{layer}", f"{stem}.res_skip_layers.{layer}")

    def _add_conditions(self, name: str, stems: list[str], layers: int) -> None:
        """All conditions of some WN stacks as one layer, with the biases they are added to."""
        self._linear(f"{name}.cond", *(f"{stem}.cond_layer" for stem in stems))
        biases = [
            self.flat.weights[f"{stem}.in_layers.{layer}.bias"]
            for stem in stems
            for layer in range(layers)
        ]
        self.flat.add(f"{name}.cond.b2", np.concatenate(biases))

    def _add_latent(self) -> None:
        dims, weights = self.config.reduced_dims, self.flat.weights
        self._linear("q.pre", "enc_q.pre")
        self._linear("q.proj", "enc_q.proj")
        self._add_wavenet("q", "enc_q.enc", dims.enc_q_wn_layers)
        self._add_conditions("q", ["enc_q.enc"], dims.enc_q_wn_layers)
        stems = [f"flow.flows.{2 * flow}" for flow in range(dims.flow_n_flows)]
        for flow, stem in enumerate(stems):
            # The flips: every other flow meets the channels in reverse.
            turn = slice(None, None, -1 if flow % 2 else 1)
            self.flat.add(f"flow.{flow}.pre.w", weights[f"{stem}.pre.weight"][:, 0].T[turn])
            self.flat.add(f"flow.{flow}.pre.b", weights[f"{stem}.pre.bias"])
            self.flat.add(f"flow.{flow}.post.w", weights[f"{stem}.post.weight"][:, 0].T[:, turn])
            self.flat.add(f"flow.{flow}.post.b", weights[f"{stem}.post.bias"][turn])
            self._add_wavenet(f"flow.{flow}", f"{stem}.enc", dims.flow_wn_layers)
        self._add_conditions("flow", [f"{stem}.enc" for stem in stems], dims.flow_wn_layers)

    def _add_decoder(self) -> list[Stage]:
        model, weights = self.config.model, self.flat.weights
        self._conv("dec.pre", "dec.conv_pre")
        self._linear("dec.cond", "dec.cond")
        width = model.upsample_initial_channel
        padded, stages = fours(width), []
        for number, rate in enumerate(model.upsample_rates):
            channels = width // 2
            blocks = len(model.resblock_kernel_sizes)
            stage = Stage(rate, channels, fours(channels), fours(blocks * channels))
            self._add_upsampling(number, stage, width, padded)
            self._add_blocks(number, stage)
            stages.append(stage)
            width, padded = channels, stage.padded
        post = weights["dec.conv_post.weight"]
        self.flat.add("dec.post.w", _embed(post, (1, post.shape[1], padded)))
        return stages

    def _add_upsampling(self, number: int, stage: Stage, width: int, padded: int) -> None:
        weight = self.flat.weights[f"dec.ups.{number}.weight"]  # (out, K, in)
        kernel, rate = weight.shape[1], stage.rate
        merged = np.full((rate, stage.padded, _TAPS, padded), ZERO)
        for phase in range(rate):
            for tap in range(_TAPS):  # input frame `tap - 1` from this one
                at = phase + (kernel - rate) // 2 + (1 - tap) * rate
                if 0 <= at < kernel:
                    merged[phase, : stage.channels, tap, :width] = weight[:, at]
        self.flat.add(f"up.{number}.w", merged.reshape(rate * stage.padded, _TAPS, padded))
        bias = self.flat.weights[f"dec.ups.{number}.bias"]
        self.flat.add(f"up.{number}.b", _embed(bias, (stage.padded,)))

    def _add_blocks(self, number: int, stage: Stage) -> None:
        """The residual blocks of a stage as one, each kernel centred in the longest."""
        kernels = self.config.model.resblock_kernel_sizes
        longest, c = max(kernels), stage.channels
        for pair in range(len(self.dilations)):
            for half in "12":
                # All blocks begin with the stage's own channels.
                is_first = pair == 0 and half == "1"
                inputs = stage.padded if is_first else stage.merged
                weight = np.full((stage.merged, longest, inputs), ZERO)
                bias = np.full(stage.merged, ZERO)
                for block, kernel in enumerate(kernels):
                    stem = f"dec.resblocks.{number * len(kernels) + block}.convs{half}.{pair}"
                    own = slice(block * c, (block + 1) * c)
                    source = slice(0, c) if is_first else own
                    at = (longest - kernel) // 2
                    weight[own, at : at + kernel, source] = self.flat.weights[f"{stem}.weight"]
                    bias[own] = self.flat.weights[f"{stem}.bias"]
                self.flat.add(f"res.{number}.{pair}.{half}.w", weight)
                self.flat.add(f"res.{number}.{pair}.{half}.b", bias)


def fours(channels: int) -> int:
    """Channels rounded up to a multiple of four, which GPUs convolve faster."""
    return -(-channels // 4) * 4


def _embed(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An index in the first corner of a larger one, zeros elsewhere."""
    larger = np.full(shape, ZERO)
    larger[tuple(slice(size) for size in index.shape)] = index
    return larger
