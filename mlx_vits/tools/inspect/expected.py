"""What a file should hold: the full list of its version, from a model that is built but not loaded.

MLX draws nothing before it is asked to, so that building a full-size model costs milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import mlx.nn as nn
import numpy as np

from mlx_vits.checkpoints.contents import (
    complete_config,
    detect_version,
    discriminator_family,
    has_posterior,
    infer_dims,
)
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.config import Config, ReducedDims
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.tools.inspect.subject import Net

_SCORES = "discriminators.0.conv_post"  # as wide as the discriminator is


class Expected(NamedTuple):
    """The model that a file's tensors belong to.

    Attributes:
        version: by content; for a discriminator the versions it serves, "" for other nets.
        config: None where the sizes cannot be told.
        model: of these sizes, its weights never drawn; None as well.
        shapes: names and shapes in a file of that model, PyTorch's axes; empty where unknown.
        normed: layers that hold length and direction in upstream's files.
        reason: why the stated configuration could not be used, "" where it could.
    """

    version: str
    config: Config | None
    model: nn.Module | None
    shapes: dict[str, tuple[int, ...]]
    normed: set[str]
    reason: str = ""

    @property
    def is_reduced(self) -> bool | None:
        """Whether a size is smaller than GPT-SoVITS hard-codes; None where that is unknown."""
        return None if self.config is None else bool(self.reduced())

    def reduced(self) -> dict[str, tuple[Any, Any]]:
        """Sizes that differ from those GPT-SoVITS hard-codes: ours, and its own."""
        if self.config is None:
            return {}
        ours = dataclasses.asdict(self.config.reduced_dims)
        full = dataclasses.asdict(ReducedDims.full_size(self.config.version))
        is_discriminator = isinstance(self.model, MultiPeriodDiscriminator)
        return {
            name: (value, full[name])
            for name, value in ours.items()
            if value != full[name]
            and name != "dropout_everywhere"
            and (name == "disc_width") == is_discriminator
        }


def expect(net: Net) -> Expected:
    """The model that a net's tensors belong to.

    Raises:
        CheckpointError: it is a v3 or v4 generator.
    """
    if net.net == "discriminator":
        return _expect_discriminator(net)
    if net.net == "content encoder":
        return Expected("", None, None, {}, set())
    version = detect_version(net.tensors, net.file)
    # A run may hold as length and direction what files hold as one weight of the same shape.
    shown = dict(net.tensors)
    for name, tensor in net.tensors.items():
        if name.endswith(".weight_v"):
            shown.setdefault(name.removesuffix("_v"), tensor)
    try:
        config = complete_config(net.config, shown, net.file)
        return _of(version, config, SynthesizerTrn(config))
    except (CheckpointError, ValueError) as error:
        reason = str(error)
    found = list(_guesses(net, version))
    found += [better for guess in found for better in _refined(net, version, shown, guess)]
    best = min(found, key=lambda expected: _misfits(net.tensors, expected))
    if 2 * _misfits(net.tensors, best) > len(net.tensors):
        return Expected(version, None, None, {}, best.normed, reason)
    return best._replace(reason=reason)


def _of(version: str, config: Config, model: nn.Module) -> Expected:
    shapes = expected_shapes(model)
    normed = {name.removesuffix(".weight_v") for name in shapes if name.endswith(".weight_v")}
    return Expected(version, config, model, shapes, normed)


def _guesses(net: Net, version: str) -> Iterator[Expected]:
    """Models for a file whose configuration does not do: what it states, and the full size."""
    model = net.config.get("model")
    if isinstance(model, Mapping):
        values = dict(net.config) | {"model": dict(model) | {"version": version}}
        # Where these sizes make no model either, the next guess may do.
        with contextlib.suppress(CheckpointError, ValueError, KeyError, IndexError):
            dims = dataclasses.asdict(infer_dims(net.tensors, version))
            values = {"reduced_dims": dims} | values
            config = Config.from_dict(values, source=str(net.file))
            yield _of(version, config, SynthesizerTrn(config))
    config = Config.from_dict({"version": version})
    yield _of(version, config, SynthesizerTrn(config))


def _refined(
    net: Net, version: str, shown: Mapping[str, Any], guess: Expected
) -> Iterator[Expected]:
    """What the file's own tensors tell once a guess stands in for those that it lacks."""
    nothing = np.float32(0)
    filled = {name: np.broadcast_to(nothing, shape) for name, shape in guess.shapes.items()}
    with contextlib.suppress(CheckpointError, ValueError):
        config = complete_config(net.config, filled | dict(shown), net.file)
        yield _of(version, config, SynthesizerTrn(config))


def _misfits(tensors: Mapping[str, Any], expected: Expected) -> int:
    """Tensors that only one of the two has, or in another shape; a whole `enc_q` may be absent."""
    shapes = expected.shapes
    wrong = sum(shapes.get(name) != tuple(tensor.shape) for name, tensor in tensors.items())
    is_whole = has_posterior(tensors)
    needed = [n for n in shapes if is_whole or not n.startswith("enc_q.")]
    return wrong + sum(name not in tensors for name in needed)


def _expect_discriminator(net: Net) -> Expected:
    versions = discriminator_family(net.tensors)
    version = versions.split(" and ")[-1]
    full = expected_shapes(MultiPeriodDiscriminator(Config.from_dict({"version": version})))
    width = 1.0
    for part in ("weight_v", "weight"):
        scores = net.tensors.get(f"{_SCORES}.{part}")
        if scores is not None and len(scores.shape) == 3:
            width = scores.shape[1] / full[f"{_SCORES}.weight_v"][1]
    config = Config.from_dict({"version": version, "reduced_dims": {"disc_width": width}})
    return _of(versions, config, MultiPeriodDiscriminator(config))
