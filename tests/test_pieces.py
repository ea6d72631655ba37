"""The decoder in pieces: the sound of the whole, and one core for each piece's products."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits import accel
from mlx_vits._backend import BLAS
from mlx_vits.accel.cpu import pieces, streams
from mlx_vits.accel.cpu.pieces import PiecewiseGenerator
from mlx_vits.config import Config
from mlx_vits.models.generator import Generator
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis.folding import fold_model
from mlx_vits.synthesis.voice import Voice
from tests.support.tiny import tiny_config

TOLD = pytest.mark.skipif(BLAS.name not in ("mkl", "openblas"), reason=f"BLAS is {BLAS.name}")


pytestmark = pytest.mark.usefixtures("on_cpu")


def make_generator(config: Config) -> Generator:
    mx.random.seed(7)
    generator = Generator(config)
    # Biases that are seen: padding with zeros is not padding with what zeros would give.
    for layer in generator.modules():
        if "bias" in layer:
            layer.bias = mx.random.normal(layer.bias.shape) * 0.3
    return generator


def inputs(config: Config, batch: int, frames: int) -> tuple[mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(frames))
    z = mx.random.normal((batch, frames, config.model.inter_channels), key=keys[0])
    return z, mx.random.normal((batch, 1, config.model.gin_channels), key=keys[1])


def in_pieces(generator: Generator, elements: int) -> pieces._Decoder:
    return pieces._Decoder(generator, elements)


def assert_close(found: mx.array, wished: mx.array) -> None:
    assert found.shape == wished.shape
    np.testing.assert_allclose(np.array(found), np.array(wished), rtol=0, atol=2e-6)


@pytest.mark.parametrize("frames", [1, 7, 40])
@pytest.mark.parametrize("elements", [64, 1000, 1 << 18])
def test_pieces_are_the_whole(frames: int, elements: int) -> None:
    config = tiny_config("v2")
    generator = make_generator(config)
    z, g = inputs(config, 2, frames)
    assert_close(in_pieces(generator, elements)(z, g), generator(z, g))


@pytest.mark.parametrize("rates", [(5, 3), (4, 4, 2), (3,)])
def test_other_rates_and_kernels(rates: tuple[int, ...]) -> None:
    base = tiny_config("v2")
    kernels = tuple(2 * rate + 1 for rate in rates)  # not of the rate's parity: lengths differ
    model = replace(base.model, upsample_rates=rates, upsample_kernel_sizes=kernels)
    config = replace(base, model=model)
    generator = make_generator(config)
    z, g = inputs(config, 1, 60)
    wished = generator(z, g)
    assert_close(in_pieces(generator, 64)(z, g), wished)


def test_the_work_is_cut_and_shared_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("v2")
    spans: list[tuple[int, int, int, mx.Stream]] = []
    real = pieces._Decoder._compute_piece

    def computed(self: pieces._Decoder, stage: int, x: mx.array, a: int, b: int) -> mx.array:
        spans.append((stage, a, b, mx.default_stream(mx.cpu)))
        return real(self, stage, x, a, b)

    monkeypatch.setattr(pieces._Decoder, "_compute_piece", computed)
    monkeypatch.setattr(streams, "_cores", lambda: 3)
    of_three = streams.core_streams.__wrapped__()
    monkeypatch.setattr(pieces, "core_streams", lambda: of_three)
    in_pieces(make_generator(config), 64)(*inputs(config, 1, 60))
    last = [span for span in spans if span[0] == len(config.model.upsample_rates) - 1]
    assert len(last) > 3
    assert [start for _, start, _, _ in last[1:]] == [end for _, _, end, _ in last[:-1]]
    assert last[0][1] == 0
    assert len({str(stream) for *_, stream in spans}) == 3


@TOLD
def test_products_keep_to_one_core_and_get_the_others_back() -> None:
    threads = streams._blas_threads()
    assert threads is not None
    before = threads.read()
    with streams.single_threaded_blas():
        assert threads.read() == 1
        # Threads that compute are others than this one.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(threads.read).result() == 1
    with pytest.raises(ZeroDivisionError), streams.single_threaded_blas():
        _ = 1 / 0
    assert threads.read() == before


def make_voice() -> Voice:
    mx.random.seed(1)
    return Voice(SynthesizerTrn(tiny_config("v2")))


def say(voice: Voice) -> np.ndarray:
    refer = mx.random.uniform(shape=(1, 1025, 40), key=mx.random.key(3))
    return voice.decode(np.arange(12)[None, None], np.arange(7)[None], refer)


@pytest.mark.skipif(sys.platform != "linux", reason="pieces are for Linux")
def test_a_voice_speaks_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    build = pieces._Decoder.__init__

    def counted(self: pieces._Decoder, generator: Generator, elements: int) -> None:
        made.append(1)
        build(self, generator, 500)

    monkeypatch.setattr(pieces._Decoder, "__init__", counted)
    with accel.use("off"):
        whole = say(make_voice())
    assert not made
    voice = make_voice()
    np.testing.assert_allclose(say(voice), whole, rtol=0, atol=2e-6)
    say(voice)
    assert len(made) == 1
    voice.model.dec.conv_post.weight = voice.model.dec.conv_post.weight * 1
    say(voice)
    assert len(made) == 2, "the weights were replaced"


@pytest.mark.skipif(sys.platform != "linux", reason="pieces are for Linux")
def test_the_model_itself_stays_as_it_is() -> None:
    model = SynthesizerTrn(tiny_config("v2"))
    assert isinstance(fold_model(model).dec, PiecewiseGenerator)
    assert type(model.dec) is Generator
