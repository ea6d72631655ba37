"""`mlx-vits bench`: what it counts, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from mlx_vits.cli import app
from mlx_vits.config import Config
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn import layers
from mlx_vits.tools.bench import machine, operations, work
from mlx_vits.tools.bench.kernels import count_graph
from mlx_vits.tools.bench.measure import PARTS, measure_all
from tests.support.tiny import tiny_config


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Operations of every convolution that is called."""
    seen: list[float] = []

    def watch(name: str, per_output: bool) -> None:
        original: Any = getattr(layers, name)

        def watched(x: mx.array, weight: mx.array, *args: Any, **options: Any) -> mx.array:
            y = original(x, weight, *args, **options)
            steps = (y if per_output else x).shape[1]
            seen.append(2.0 * x.shape[0] * steps * weight.size)
            return y

        monkeypatch.setattr(layers, name, watched)

    watch("conv1d", True)
    watch("conv_transpose1d", False)
    return seen


def test_operations_of_the_decoder_and_the_coders(counted: list[float]) -> None:
    config = tiny_config()
    model = SynthesizerTrn(config)
    frames = 20
    mask, g = mx.ones((1, frames, 1)), mx.zeros((1, 1, config.model.gin_channels))
    z = mx.zeros((1, frames, config.model.inter_channels))
    spec = mx.zeros((1, frames, config.data.spec_channels))
    for name, call in {
        "_decoder": lambda: model.dec(z, g),
        "_flow": lambda: model.flow(z, mask, g),
        "_posterior": lambda: model.enc_q(spec, mask, g, z),
    }.items():
        counted.clear()
        call()
        assert sum(counted) == pytest.approx(getattr(operations, name)(config, frames)), name


@pytest.mark.parametrize("version", ["v2", "v2Pro"])
def test_operations_of_the_discriminators(version: str, counted: list[float]) -> None:
    config = Config.from_dict({"version": version})
    model = MultiPeriodDiscriminator(config)
    model(mx.zeros((1, 20480, 1)))
    assert sum(counted) == pytest.approx(operations._discriminators(config, 20480), rel=0.01)


def test_a_batch_costs_its_clips() -> None:
    one, four = (operations.count_operations(work.Work(batch_size=size)) for size in (1, 4))
    assert four.step == pytest.approx(4 * one.step)
    assert one.step == pytest.approx(one.forward_g + one.step_d + one.step_g)
    assert four.synthesis == one.synthesis


def test_kernels_of_a_graph() -> None:
    x = mx.ones((4, 6))
    mx.eval(x)
    graph = count_graph([mx.concatenate([mx.tanh(x).T, x.T]), x])
    assert graph.kinds == {"Transpose": 2, "Tanh": 1, "Concatenate": 1}
    assert (graph.operations, graph.kernels, graph.fused) == (4, 3, 0)


@pytest.mark.machine("g++")
@pytest.mark.usefixtures("fusing")
def test_fused_kernels_of_a_graph() -> None:
    x = mx.ones((4, 6))
    mx.eval(x)
    fused = count_graph(mx.compile(lambda x: mx.tanh(x * x) @ x.T)(x))
    assert (fused.kernels, fused.fused, fused.sources) == (2, 1, 1)


def arrays_of(tree: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(tree)
    return [array for _, array in leaves]


def test_counting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_works(monkeypatch)
    gan = work.make_step(work.Work("v2", 1, 1.0))
    batch = work.make_batch(work.Work("v2", 1, 1.0))
    before = arrays_of(gan.state)
    with work._kept(gan.state):
        gan(batch, mx.random.key(0))
    after = arrays_of(gan.state)
    assert all(a is b for a, b in zip(before, after, strict=True))


def tiny_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version measured at a tiny size."""

    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_measured(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_works(monkeypatch)
    works = [work.Work("v2", 1, 1.0), work.Work("v2Pro", 2, 1.0)]
    report = measure_all(works, repetitions=1, compiled=compiled)
    assert report["ceiling"] > 0
    assert {"platform", "processor", "device", "versions", "commit"} <= set(report["machine"])
    for result, size in zip(report["results"], works, strict=True):
        assert result["work"] == size.to_dict()
        assert set(result["mlx"]["seconds"]) == set(PARTS) == set(result["operations"])
        assert all(value > 0 for value in result["mlx"]["seconds"].values())
        assert result["mlx"]["peak_bytes"] > 0
        kernels = {part: graph["kernels"] for part, graph in result["kernels"].items()}
        within = ("forward_g", "step_d", "weight_norm", "update")
        assert all(0 < kernels[part] < kernels["step"] for part in within)


def test_the_command_shows_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_works(monkeypatch)
    monkeypatch.setattr(machine, "_SIDE", {"cpu": 64, "gpu": 64})
    output = tmp_path / "bench.json"
    options = ["--batch", "1", "--seconds", "1", "--repeat", "1", "--output", str(output)]
    options += ["--precision", "bf16"]
    done = CliRunner().invoke(app, ["bench", *options])
    assert done.exit_code == 0, done.output
    assert "whole step" in done.output
    report = json.loads(output.read_text())
    assert report["precision"] == "bf16"
    assert [result["work"]["batch_size"] for result in report["results"]] == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--version", "v9"], "v9: not a version"),
        (["--compare", "jax"], "only torch"),
        (["--precision", "fp8"], "--precision fp8: is not one of auto, fp32, bf16"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["bench", *options])
    assert done.exit_code == 1
    assert words in done.output


@pytest.mark.torch
def test_pytorchs_twin_has_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parameters as ours in every part that it has, at full size."""
    torch = pytest.importorskip("torch")
    from mlx_vits.tools.bench import torch_twin

    config = Config.from_dict({"version": "v2"})
    with torch.device("meta"):
        synthesizer = torch_twin.Synthesizer(config)
        discriminators = torch_twin.Discriminators(config)

    def ours(model: Any) -> int:
        leaves: Any = tree_flatten(model.parameters())
        return sum(array.size for _, array in leaves)

    def theirs(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    model = SynthesizerTrn(config)
    assert theirs(discriminators) == ours(MultiPeriodDiscriminator(config))
    assert theirs(synthesizer.enc_q) == ours(model.enc_q)
    assert theirs(synthesizer.flows) == ours(model.flow)
    assert theirs(synthesizer.dec) == ours(model.dec)
