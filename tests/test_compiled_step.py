"""The compiled step: how often it is compiled, and that nothing in it waits for the device."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_vits.benchmarking import work
from tests.support.tiny import tiny_config


def test_one_compilation_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced alone: an `eval` or `item` in a step would be an error here."""
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))
    works = [work.Work("v2", size, seconds) for size, seconds in ((1, 1.0), (2, 1.0), (2, 1.3))]
    batches = [work.make_batch(size) for size in works]
    step = work.make_step(works[0], compiled=True)
    assert step.compilations == 0
    seen = set()
    for number, index in enumerate((0, 0, 1, 0, 2, 1, 2, 0)):
        step(batches[index], mx.random.key(number))
        seen.add(index)
        assert step.compilations == len(seen)
    # Neither other weights nor other rates are another shape.
    model = step.generator
    model.dec.conv_pre["weight"] = model.dec.conv_pre["weight"] * 2
    step.optimizers.discriminator.learning_rate = 0.5
    step(batches[0], mx.random.key(9))
    assert step.compilations == len(seen)
