"""The compiled step: how often it is compiled, and that nothing in it waits for the device."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_vits.tools.bench import work
from mlx_vits.training.step import GANStep
from tests.support.tiny import tiny_config

PLAYED_BACK = """
import mlx_vits
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vits.tools.bench import graphs, work
from mlx_vits.accel.compilation import stop_fusing
from tests.support.repeating import same
from tests.support.tiny import tiny_config

assert stop_fusing()
x = mx.ones(3)
assert graphs.count_graph(mx.compile(lambda x: mx.exp(mx.sin(x)))(x)).fused == 0
work.Work.config = property(lambda self: tiny_config(self.version))
size = work.Work("v2", 2, 1.0)
batch, found = work.make_batch(size), []
for compiled in (False, True):
    mx.random.seed(0)
    step, losses = work.make_step(size, compiled=compiled), []
    for number in range(4):
        losses.append(step(batch, mx.random.key(number)))
        if number == 2:  # others set a weight
            conv = step.generator.dec.conv_pre
            conv["bias"] = mx.ones_like(conv["bias"])
    found.append([array for _, array in tree_flatten([losses, step.state])])
assert len(found[0]) > 100
assert all(same(a, b, atol=1e-3) for other in found[1:] for a, b in zip(found[0], other))
"""


@pytest.mark.machine("g++")
def test_played_back_without_fusion_it_is_the_same_to_the_bit() -> None:
    """In a process of its own, since it is told to all of MLX."""
    ran = subprocess.run([sys.executable, "-c", PLAYED_BACK], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.machine("g++")
def test_one_trace_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced alone: an `eval` or `item` in a step would be an error here."""
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))
    traces: list[int] = []
    run = GANStep.run
    monkeypatch.setattr(GANStep, "run", lambda *a: (traces.append(1), run(*a))[1])
    works = [work.Work("v2", size, seconds) for size, seconds in ((1, 1.0), (2, 1.0), (2, 1.3))]
    batches = [work.make_batch(size) for size in works]
    step, seen = work.make_step(works[0], compiled=True), set()
    for number, index in enumerate((0, 0, 1, 0, 2, 1, 2, 0)):
        step(batches[index], mx.random.key(number))
        seen.add(index)
        assert len(traces) == len(seen)
    # Neither other weights nor other rates are another shape.
    model = step.generator
    model.dec.conv_pre["weight"] = model.dec.conv_pre["weight"] * 2
    step.optimizers.discriminator.learning_rate = 0.5
    step(batches[0], mx.random.key(9))
    assert len(traces) == len(seen)
