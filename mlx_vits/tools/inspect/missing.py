"""What a net lacks, or has wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.tensors import to_numpy
from mlx_vits.tools.inspect.expected import Expected
from mlx_vits.tools.inspect.layers import Form
from mlx_vits.tools.inspect.optimizers import is_finite
from mlx_vits.tools.inspect.subject import Net

# What GPT-SoVITS reads of a voice's configuration to speak with it, beside the version.
# Source: `inference_webui.py`; the constructor's arguments without a default in `models.py`.
_READ_TO_SPEAK = {
    "data": ("filter_length", "hop_length", "win_length", "sampling_rate", "n_speakers"),
    "train": ("segment_size",),
    "model": (
        "inter_channels",
        "hidden_channels",
        "filter_channels",
        "n_heads",
        "n_layers",
        "kernel_size",
        "p_dropout",
        "resblock",
        "resblock_kernel_sizes",
        "resblock_dilation_sizes",
        "upsample_rates",
        "upsample_initial_channel",
        "upsample_kernel_sizes",
        "gin_channels",
    ),
}


@dataclass(frozen=True)
class MissingFacts:
    """What a net lacks, or has wrong.

    Attributes:
        compared: whether its version's full list was known, to compare with.
        expected: tensors on that list, `enc_q` left out where the file has none.
        lacking, unknown: names on only one of the two; a folded layer counts as complete.
        misshapen: shapes found and expected, by name.
        not_finite: tensors with NaN or infinity.
        zero_channels: directions (`weight_v`) with a channel of zeros, which has no direction.
        posterior: whether `enc_q` is there; None for a discriminator.
        quantizer_fitted: whether the codebook says so of itself; None where it is absent.
        config_fields: those GPT-SoVITS reads to speak, absent from a file that it speaks with.
        discriminator: the file that is missed beside a generator to train from, "" for none.
    """

    compared: bool
    expected: int
    lacking: list[str]
    unknown: list[str]
    misshapen: dict[str, list[list[int]]]
    not_finite: list[str]
    zero_channels: list[str]
    posterior: bool | None
    quantizer_fitted: bool | None
    config_fields: list[str]
    discriminator: str


def find_missing(net: Net, expected: Expected, stored: Mapping[str, Form]) -> MissingFacts:
    """Compares a net with the full list of its version.

    Args:
        stored: from `forms`.
    """
    tensors, shapes = net.tensors, expected.shapes
    is_generator = net.net == "generator"
    posterior = has_posterior(tensors) if is_generator else None
    needed = [n for n in shapes if posterior is not False or not n.startswith("enc_q.")]
    # A layer that is whole in another form is told of as such.
    other_form = {layer for layer, form in stored.items() if form in ("folded", "split", "mixed")}
    read = net.form in ("pretrained", "exported") and is_generator
    companion = net.companion
    fitted = [t for name, t in tensors.items() if name.endswith("._codebook.inited")]
    return MissingFacts(
        compared=bool(shapes),
        expected=len(needed),
        lacking=[n for n in needed if n not in tensors and _layer(n) not in other_form],
        unknown=[n for n in tensors if shapes and n not in shapes and _layer(n) not in other_form],
        misshapen={
            name: [list(tensor.shape), list(shapes[name])]
            for name, tensor in tensors.items()
            if name in shapes and tuple(tensor.shape) != shapes[name]
        },
        not_finite=[name for name, tensor in tensors.items() if not is_finite(tensor)],
        zero_channels=[n for n, t in tensors.items() if n.endswith(".weight_v") and _has_zeros(t)],
        posterior=posterior,
        quantizer_fitted=all(bool(np.all(_numpy(t) != 0)) for t in fitted) if fitted else None,
        config_fields=_absent_fields(net.config) if read else [],
        discriminator=companion[0].name if companion is not None and not companion[1] else "",
    )


def _layer(name: str) -> str:
    """The layer of a weight, "" for other tensors."""
    layer, _, last = name.rpartition(".")
    return layer if last in ("weight", "weight_g", "weight_v") else ""


def _numpy(tensor: Any) -> np.ndarray:
    return to_numpy(tensor) if isinstance(tensor, mx.array) else np.asarray(tensor)


def _has_zeros(tensor: Any) -> bool:
    """Whether all of a channel is 0."""
    array = _numpy(tensor)
    return (
        array.ndim > 0
        and array.size > 0
        and bool((array.reshape(array.shape[0], -1) == 0).all(axis=1).any())
    )


def _absent_fields(config: Mapping[str, Any]) -> list[str]:
    absent = []
    for section, names in _READ_TO_SPEAK.items():
        table = config.get(section)
        held = table if isinstance(table, Mapping) else {}
        absent += [f"{section}.{name}" for name in names if name not in held]
    return absent
