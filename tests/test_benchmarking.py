"""`mlx-vits bench`: what it counts, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from mlx_vits.cli import app
from mlx_vits.config import Config, T2SConfig
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.tools.bench import measure, speech, work
from mlx_vits.tools.bench.graphs import count_graph, count_operations
from mlx_vits.tools.bench.measure import PARTS, measure_all
from mlx_vits.tools.machine import device_kind
from tests.support.tiny import tiny_config


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x, w: mx.conv1d(x, w, padding=1), 2 * 20 * 3 * 4 * 6),
        (lambda x, w: mx.conv1d(x, w, stride=2), 2 * 9 * 3 * 4 * 6),
        (lambda x, w: mx.conv1d(mx.tile(x, (1, 1, 2)), w, groups=2), 2 * 18 * 3 * 4 * 6),
        (lambda x, w: mx.conv_transpose1d(x, w, stride=3), 2 * 20 * 3 * 4 * 6),
        (lambda x, w: x @ w[:, 0].T + 1, 2 * 20 * 4 * 6),
        (lambda x, w: nn.mish(x) + mx.sum(w), 0),
    ],
    ids=["padded", "strided", "grouped", "transposed", "product", "none"],
)
def test_operations_are_those_of_products(function: Any, operations: float) -> None:
    x, w = mx.ones((1, 20, 4)), mx.ones((6, 3, 4))
    assert count_operations(lambda key: function(x, w)) == pytest.approx(operations)


def test_a_gradient_costs_what_its_two_products_cost() -> None:
    x, w = mx.ones((7, 20)), mx.ones((20, 5))
    run = mx.value_and_grad(lambda x, w: mx.sum(mx.square(x @ w)), argnums=(0, 1))
    assert count_operations(lambda key: run(x, w)) == 3 * 2 * 7 * 20 * 5


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
    parts = work.StepParts(work.Work("v2", 1, 1.0), compiled=False)
    before = arrays_of(parts.gan.state)
    parts.count_kernels()
    parts.count_operations()
    after = arrays_of(parts.gan.state)
    assert all(a is b for a, b in zip(before, after, strict=True))


def tiny_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version measured at a tiny size."""
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_measured(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_works(monkeypatch)
    size = work.Work("v2Pro", 2, 1.0)
    report = measure_all([size], repetitions=1, compiled=compiled)
    (result,) = report["results"]
    assert report["ceiling"] > 0
    assert {"platform", "processor", "device", "versions", "commit"} <= set(report["machine"])
    assert result["work"] == size.to_dict()
    assert set(result["mlx"]["seconds"]) == set(PARTS) == set(result["operations"])
    assert all(value > 0 for value in result["mlx"]["seconds"].values())
    assert result["mlx"]["peak_bytes"] > 0
    kernels = {part: graph["kernels"] for part, graph in result["kernels"].items()}
    within = ("forward_g", "step_d", "weight_norm", "update")
    assert all(0 < kernels[part] < kernels["step"] for part in within)


def test_the_command_shows_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_works(monkeypatch)
    monkeypatch.setattr(measure, "_SIDE", {"cpu": 64, "gpu": 64})
    output = tmp_path / "bench.json"
    options = ["--batch", "1", "--seconds", "1", "--repeat", "1", "--output", str(output)]
    options += ["--precision", "bf16"]
    done = CliRunner().invoke(app, ["bench", *options])
    assert done.exit_code == 0, done.output
    assert "whole step" in done.output
    report = json.loads(output.read_text())
    assert report["precision"] == "bf16"
    assert [result["work"]["batch_size"] for result in report["results"]] == [1]


class Instant:
    """Parts that take no time; those of more than two clips find no memory."""

    def __init__(self, size: work.Work, **options: Any):
        if size.batch_size > 2:
            raise RuntimeError("[malloc] Unable to allocate 123456 bytes.")

    def run(self, part: str) -> None:
        pass

    def count_kernels(self) -> dict[str, Any]:
        return {}

    def count_operations(self) -> dict[str, float]:
        return dict.fromkeys(PARTS, 1e9)


def test_a_table_to_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every size in both precisions in a row each, uncut on a narrow terminal."""
    monkeypatch.setattr(measure, "StepParts", Instant)
    monkeypatch.setattr(measure, "_SIDE", {"cpu": 64, "gpu": 64})
    output = tmp_path / "bench.json"
    done = CliRunner().invoke(app, ["bench", "--share", "--output", str(output)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("|")]
    header, _, *rows = [line.strip(" |").split(" | ") for line in lines]
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["precision"] for row in found] == ["fp32", "bf16"]
    for row in found:
        assert row["MLX"] == mx.__version__
        assert float(row["step of 1, s"]) >= 0
        assert float(row["peak of 2, GB"]) >= 0
        assert row["step of 4, s"] == row["peak of 4, GB"] == "-"
        assert float(row["real-time factor"]) >= 0
    reports = json.loads(output.read_text())
    assert [[r["work"]["batch_size"] for r in one["results"]] for one in reports] == 2 * [[1, 2]]


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow nets; all codes are there, so that EOS is never among the best."""
    sizes = T2SConfig(hidden_dim=64, embedding_dim=64, head=2, n_layer=2)
    tiny = tiny_config("v2", codebook_size=sizes.EOS)
    monkeypatch.setattr(speech.SpeechWork, "t2s", property(lambda self: sizes))
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny))


def test_speaking_is_measured_by_part(small: None) -> None:
    asked = speech.SpeechWork(phonemes=9, prompt=5, codes=20, together=3)
    report = speech.measure_speech(asked, repetitions=2)
    seconds = report["mlx"]["seconds"]
    assert set(seconds) == set(speech.PARTS) - ({"codes_8bit"} if device_kind() == "cpu" else set())
    assert all(value > 0 for value in seconds.values())
    assert seconds["sentence"] > seconds["prefill"]
    assert report["mlx"]["real_time_factor"] == seconds["sentence"] / 0.8
    rates = report["mlx"]["codes_per_second"]
    assert rates["codes"] == pytest.approx(20 / seconds["codes"])
    assert rates["together"] == pytest.approx(3 * 20 / seconds["together"])
    assert "torch" not in report


def test_the_command_measures_speaking(small: None, tmp_path: Path) -> None:
    output = tmp_path / "speech.json"
    done = CliRunner().invoke(app, ["bench", "--speech", "--repeat", "1", "--output", str(output)])
    assert done.exit_code == 0, done.output
    (report,) = json.loads(output.read_text())
    assert report["work"]["version"] == "v2"
    for words in ("first sound of a stream", "a sentence of 5 s", "real-time factor"):
        assert words in " ".join(done.output.split())
    wrong = CliRunner().invoke(app, ["bench", "--speech", "--version", "v3"])
    assert wrong.exit_code == 1
    assert "v3: not a version" in wrong.stderr


@pytest.mark.torch
def test_the_twin_speaks_the_same_parts() -> None:
    pytest.importorskip("torch")
    code = """
import mlx_vits.tools.bench.speech_twin as twin
from mlx_vits.config import T2SConfig
from mlx_vits.tools.bench.speech import PARTS, SpeechWork
sizes = T2SConfig(hidden_dim=64, embedding_dim=64, head=2, n_layer=2)
SpeechWork.t2s = property(lambda self: sizes)
spoken = twin.Twin(SpeechWork(phonemes=9, prompt=5, codes=20, together=3), "cpu", tf32=False)
print(all(spoken.run(part) > 0 for part in PARTS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
