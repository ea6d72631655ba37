"""The full list of tensors that a file should hold, and what it lacks of it or has wrong.

The list comes from a model that is built but not loaded. MLX draws no weight before it is asked
to, so that building a full-size model costs milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.checkpoints.contents import (
    complete_config,
    detect_version,
    discriminator_config,
    discriminator_family,
    has_posterior,
    infer_dims,
)
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import to_numpy
from mlx_vits.config import Config, ReducedDims, T2SConfig
from mlx_vits.errors import CheckpointError
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.tools.inspect.layers import Form
from mlx_vits.tools.inspect.subject import Net

# What GPT-SoVITS reads of a voice's configuration to speak with it, beside the version.
# Source: `inference_webui.py`; the constructor's arguments without a default in `models.py`.
_READ_TO_SPEAK = {
    "data": "filter_length hop_length win_length sampling_rate n_speakers",
    "train": "segment_size",
    "model": "inter_channels hidden_channels filter_channels n_heads n_layers kernel_size "
    "p_dropout resblock resblock_kernel_sizes resblock_dilation_sizes upsample_rates "
    "upsample_initial_channel upsample_kernel_sizes gin_channels",
}


class Expected(NamedTuple):
    """The model that a file's tensors belong to.

    Attributes:
        version: by content; for a discriminator the versions it serves, "" for other nets.
        config: None where the sizes cannot be determined; then `model` is None as well.
        model: of these sizes, its weights never drawn.
        shapes: names and shapes in a file of that model, PyTorch's axes.
        normed: layers with weight norm in upstream's files.
        reason: why the stated configuration could not be used, "" where it could.
    """

    version: str
    config: Config | None = None
    model: nn.Module | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    normed: frozenset[str] = frozenset()
    reason: str = ""

    def reduced_dims(self) -> dict[str, list[Any]]:
        """Return the sizes that differ from those GPT-SoVITS hard-codes: found, and full size."""
        if self.config is None:
            return {}
        found = dataclasses.asdict(self.config.reduced_dims)
        full = dataclasses.asdict(ReducedDims.full_size(self.config.version))
        is_discriminator = isinstance(self.model, MultiPeriodDiscriminator)
        return {
            name: [found[name], size]
            for name, size in full.items()
            if found[name] != size
            and name != "dropout_everywhere"
            and (name == "disc_width") == is_discriminator
        }


def expect(net: Net) -> Expected:
    """Return the model that a net's tensors belong to.

    Raises:
        CheckpointError: it is a v3 or v4 generator.
    """
    if net.net == "content encoder":
        return Expected("")
    if net.net == "discriminator":
        return _expect_discriminator(net)
    if net.net == "GPT":
        stated = T2SConfig.from_dict(net.config, source=str(net.file))
        model = Text2SemanticDecoder(stated)
        return Expected(stated.version, model=model, shapes=expected_shapes(model))
    version = detect_version(net.tensors, net.file)
    # A run's --weight-norm may split what files hold as one weight of the same shape.
    shown = dict(net.tensors)
    for name, tensor in net.tensors.items():
        if name.endswith(".weight_v"):
            shown.setdefault(name.removesuffix("_v"), tensor)
    try:
        return _generator(complete_config(net.config, shown, net.file))
    except (CheckpointError, ValueError) as error:
        reason = str(error)
    best = min(_guesses(net, version, shown), key=lambda guess: _misfits(net.tensors, guess))
    if 2 * _misfits(net.tensors, best) > len(net.tensors):
        return Expected(version, normed=best.normed, reason=reason)
    return best._replace(reason=reason)


def _expect_discriminator(net: Net) -> Expected:
    versions = discriminator_family(net.tensors)
    try:
        config = discriminator_config(net.tensors, net.file)
    except CheckpointError:  # its other tensors are still compared with those of the full size
        config = Config.from_dict({"version": versions.split(" and ")[-1]})
    return _expected(versions, config, MultiPeriodDiscriminator(config))


def _generator(config: Config) -> Expected:
    return _expected(config.version, config, SynthesizerTrn(config))


def _expected(version: str, config: Config, model: nn.Module) -> Expected:
    shapes = expected_shapes(model)
    normed = frozenset(n.removesuffix(".weight_v") for n in shapes if n.endswith(".weight_v"))
    return Expected(version, config, model, shapes, normed)


def _guesses(net: Net, version: str, shown: Mapping[str, Any]) -> Iterator[Expected]:
    """Models for a file whose configuration does not do.

    One is what the file states, one is the full size; and each again with the sizes that the
    file's own tensors show, where the guess stands in only for those that it lacks.
    """
    for config in (*_stated(net, version), Config.from_dict({"version": version})):
        # Where the sizes make no model, the next guess may do.
        with contextlib.suppress(CheckpointError, ValueError, KeyError, IndexError):
            guess = _generator(config)
            yield guess
            nothing = np.float32(0)
            filled = {n: np.broadcast_to(nothing, shape) for n, shape in guess.shapes.items()}
            yield _generator(complete_config(net.config, filled | dict(shown), net.file))


def _stated(net: Net, version: str) -> Iterator[Config]:
    model = net.config.get("model")
    if isinstance(model, Mapping):
        values = dict(net.config) | {"model": dict(model) | {"version": version}}
        with contextlib.suppress(CheckpointError, ValueError, KeyError, IndexError):
            dims = dataclasses.asdict(infer_dims(net.tensors, version))
            yield Config.from_dict({"reduced_dims": dims} | values, source=str(net.file))


def _misfits(tensors: Mapping[str, Any], expected: Expected) -> int:
    """Count tensors that only one of the two has, or in another shape."""
    shapes = expected.shapes
    wrong = sum(shapes.get(name) != tuple(tensor.shape) for name, tensor in tensors.items())
    return wrong + sum(name not in tensors for name in _needed(tensors, expected))


def _needed(tensors: Mapping[str, Any], expected: Expected) -> list[str]:
    """Names on the full list, without `enc_q` where the file has none of it."""
    is_whole = has_posterior(tensors)
    return [name for name in expected.shapes if is_whole or not name.startswith("enc_q.")]


@dataclass(frozen=True)
class MissingFacts:
    """What a net lacks, or has wrong; a folded layer counts as complete."""

    compared: bool  # whether the full list of its version was known
    expected: int  # tensors on that list, without `enc_q` where the file has none of it
    lacking: list[str]
    unknown: list[str]
    misshapen: dict[str, list[list[int]]]  # found, and expected
    not_finite: list[str]  # tensors with NaN or infinity
    zero_channels: list[str]  # directions (`weight_v`) with a channel of zeros
    posterior: bool | None  # whether `enc_q` is there; None for a discriminator
    quantizer_fitted: bool | None  # what the codebook says of itself; None where it is absent
    config_fields: list[str]  # absent, of those that GPT-SoVITS reads to speak
    discriminator: str  # the file that is missing beside a generator to train from


def find_missing(net: Net, expected: Expected, stored: Mapping[str, Form]) -> MissingFacts:
    """Compare a net with the full list of its version.

    Args:
        stored: from `forms`.
    """
    tensors, shapes = net.tensors, expected.shapes
    is_generator = net.net == "generator"
    needed = _needed(tensors, expected) if is_generator else list(shapes)
    # A layer that is whole in another form is reported as such.
    other_form = {layer for layer, form in stored.items() if form in ("folded", "split", "mixed")}
    speaks = net.form in ("pretrained", "exported") and is_generator
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
        posterior=has_posterior(tensors) if is_generator else None,
        quantizer_fitted=all(bool(np.all(_numpy(t) != 0)) for t in fitted) if fitted else None,
        config_fields=_absent_fields(net.config) if speaks else [],
        discriminator=net.lacks_discriminator,
    )


def _layer(name: str) -> str:
    """The layer of a weight, "" for other tensors."""
    layer, _, last = name.rpartition(".")
    return layer if last in ("weight", "weight_g", "weight_v") else ""


def is_finite(tensor: Any) -> bool:
    """Return whether a tensor, numpy's or MLX's, is free of NaN and infinity."""
    if not isinstance(tensor, (np.ndarray, mx.array)):
        return True
    array = _numpy(tensor)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _has_zeros(tensor: Any) -> bool:
    """Whether all of a channel is 0."""
    array = _numpy(tensor)
    if not array.ndim or not array.size:
        return False
    return bool((array.reshape(len(array), -1) == 0).all(axis=1).any())


def _numpy(tensor: Any) -> np.ndarray:
    return to_numpy(tensor) if isinstance(tensor, mx.array) else np.asarray(tensor)


def _absent_fields(config: Mapping[str, Any]) -> list[str]:
    absent = []
    for section, names in _READ_TO_SPEAK.items():
        table = config.get(section)
        held = table if isinstance(table, Mapping) else {}
        absent += [f"{section}.{name}" for name in names.split() if name not in held]
    return absent
