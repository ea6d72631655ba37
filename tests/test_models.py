"""The generator of every version against the Python original: forward, taps, inference, decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import pytest

from mlx_vits import accel
from mlx_vits.models.vits import SynthesizerOutput, SynthesizerTrn
from mlx_vits.nn.masking import length_mask
from mlx_vits.nn.weight_norm import NORM_SCHEMES
from tests.support.goldens import (
    assert_close,
    assert_near,
    generator,
    last,
    tensors,
    values,
)

# v2 is copied into the project, the others are read where ../shared is there.
VERSIONS = ["sovits_v2", "sovits_v1", "sovits_v2Pro", "sovits_v2ProPlus"]
WAVE_ATOL = 1e-4  # the goldens' own fp32 spread is below 5e-6


@pytest.fixture(autouse=True, params=["as here", "off"])
def acceleration(request: Any) -> Iterator[None]:
    """With what makes this machine's backend fast, and in plain MLX."""
    with accel.use("off") if request.param == "off" else nullcontext():
        yield


class Tap:
    """Stands in for a module and keeps what it gave last."""

    def __init__(self, module: Any, kept: dict[str, mx.array], name: str):
        self.module, self.kept, self.name = module, kept, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.module(*args, **kwargs)
        self.kept[self.name] = result
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _tap(model: SynthesizerTrn, names: list[str]) -> dict[str, Any]:
    """Replaces the named sub-modules, innermost last, by taps."""
    kept: dict[str, Any] = {}
    for name in sorted(names, key=lambda name: -name.count(".")):
        parent: Any = model
        *path, leaf = name.split(".")
        for part in path:
            parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
        if leaf.isdigit():
            parent[int(leaf)] = Tap(parent[int(leaf)], kept, name)
        else:
            setattr(parent, leaf, Tap(getattr(parent, leaf), kept, name))
    return kept


def _forward(model: SynthesizerTrn, data: dict[str, mx.array]) -> SynthesizerOutput:
    return model(
        last(data["in/ssl"]),
        last(data["in/spec"]),
        data["in/spec_lengths"],
        data["in/text"],
        data["in/text_lengths"],
        noise=last(data["in/noise_q"]),
        ids_slice=data["in/ids_slice"],
        sv_emb=data.get("in/sv_emb"),
    )


@pytest.mark.parametrize("folder", VERSIONS)
def test_training_forward(folder: str) -> None:
    model, data = generator(folder), tensors(folder, "forward.safetensors")
    out = _forward(model, data)
    assert_close(last(out.y_hat), data["out/y_hat"], atol=WAVE_ATOL)
    for name in ("z", "z_p", "m_p", "logs_p", "m_q", "logs_q"):
        assert_near(last(getattr(out, name)), data[f"out/{name}"])
    assert_near(last(out.quantized), data["out/stats_ssl"])
    assert mx.array_equal(last(out.mask), data["out/x_mask"])
    assert out.commit_loss.item() == data["out/kl_ssl"].item() == 0.0
    mask, g = out.mask, last(data["tap/ge"])
    assert_near(last(model.flow(out.z_p, mask, g, reverse=True)), data["out/flow_reverse_of_z_p"])
    codes = model.extract_latent(last(data["in/ssl"]))
    assert mx.array_equal(codes[:, None], data["out/extract_latent"])


@pytest.mark.parametrize("folder", VERSIONS)
def test_taps(folder: str) -> None:
    """Every sub-module's raw output, so that a fault shows where it arises."""
    model, data = generator(folder), tensors(folder, "forward.safetensors")
    wanted = {k[len("tap/") :]: v for k, v in data.items() if k.startswith("tap/")}
    # These are not modules of their own here, and are checked below.
    own = {"ge", "quantizer.quantized", "quantizer.codes", "ref_enc.spectral", "ref_enc.temporal"}
    names = [n for n in wanted if n not in own and not n.startswith("dec.stage")]
    blocks = [f"dec.resblocks.{i}" for i in range(len(model.dec.resblocks))]
    kept = _tap(model, [*names, "quantizer", "ref_enc.temporal.1", *blocks])
    embed_style = Tap(model.embed_style, kept, "ge")
    model.embed_style = embed_style  # type: ignore[method-assign]
    _forward(model, data)
    kept["quantizer.quantized"] = kept["quantizer"].values
    kept["quantizer.codes"] = kept["quantizer"].codes
    kept["ref_enc.temporal"] = kept["ref_enc.temporal.1"]
    for stage in range(len(model.dec.ups)):
        trio = [kept[f"dec.resblocks.{3 * stage + i}"] for i in range(3)]
        kept[f"dec.stage{stage}"] = sum(trio[1:], start=trio[0]) / 3
    for name, theirs in wanted.items():
        if name == "ref_enc.spectral":
            continue
        ours = kept[name]
        if name == "quantizer.codes":
            assert mx.array_equal(ours[None], theirs)
            continue
        # Linear parts are channels-last upstream too; a speaker vector has no time.
        if name in ("ref_enc.slf_attn", "enc_p.text_embedding", "sv_emb", "ge_to512"):
            assert_near(ours.reshape(theirs.shape), theirs)
        else:
            if name.startswith("enc_p.mrte.") and "attention" in name:
                # Padded queries see no key: what they attend to is masked out behind it.
                ours, theirs = ours * _mask(data), theirs * data["out/x_mask"]
            assert_near(last(ours), theirs)
    spec = last(data["in/spec"])[..., : model.ref_enc.bins] * _mask(data)
    spectral = model.ref_enc.embed_frames(spec)
    assert_near(spectral, data["tap/ref_enc.spectral"])


def _mask(data: dict[str, mx.array]) -> mx.array:
    return last(data["out/x_mask"])


@pytest.mark.parametrize("clip", [0, 1])
def test_a_recording_said_again(clip: int) -> None:
    """Upstream's `infer`, whose padding is cut off here; its waveform differs at that cut alone."""
    model, data = generator("sovits_v2"), tensors("sovits_v2", "forward.safetensors")
    spec = last(data["in/spec"])
    mask = length_mask(data["in/spec_lengths"], spec.shape[1])
    style = model.embed_style(spec, mask)[clip : clip + 1]
    frames, phonemes = (int(data[f"in/{of}_lengths"][clip]) for of in ("spec", "text"))
    ssl, noise = (last(data[name])[clip : clip + 1, :frames] for name in ("in/ssl", "infer/noise"))
    text = data["in/text"][clip : clip + 1, :phonemes]
    out = model.decode(model.extract_latent(ssl), text, [style], noise=noise, noise_scale=0.5)
    for name in ("z", "z_p", "m_p", "logs_p"):
        theirs = data[f"infer/{name}"][clip : clip + 1, :, :frames]
        assert_near(last(getattr(out, name)), theirs)
    samples = 640 * (frames - 8)
    assert_close(
        last(out.wav)[..., :samples], data["infer/o"][clip : clip + 1, :, :samples], atol=WAVE_ATOL
    )


@pytest.mark.parametrize("folder", VERSIONS)
def test_decode_at_every_speed(folder: str) -> None:
    model, data = generator(folder), tensors(folder, "decode.safetensors")
    style = _style(model, data, 0)
    speeds = [
        name[len("out/s") : -len("/o")]
        for name in data
        if name.startswith("out/s") and name.endswith("/o")
    ]
    assert "1.0" in speeds
    assert len(speeds) > 1
    for speed in speeds:
        out = model.decode(
            data["in/codes"][0],
            data["in/text"],
            [style],
            noise=last(data[f"in/noise_s{speed}"]),
            noise_scale=0.5,
            speed=float(speed),
        )
        assert_close(last(out.wav), data[f"out/s{speed}/o"], atol=WAVE_ATOL)
        for ours, name in ((out.x, "x"), (out.m_p, "m_p"), (out.logs_p, "logs_p"), (out.z, "z")):
            assert_near(last(ours), data[f"out/s{speed}/{name}"])
        assert_near(last(out.g), data[f"out/s{speed}/ge"])
        assert out.z.shape[1] == model.decoded_frames(data["in/codes"].shape[-1], float(speed))


@pytest.mark.parametrize("folder", VERSIONS)
def test_decode_with_two_references(folder: str) -> None:
    model, data = generator(folder), tensors(folder, "decode.safetensors")
    out = model.decode(
        data["in/codes"][0],
        data["in/text"],
        [_style(model, data, 0), _style(model, data, 1)],
        noise=last(data["in/noise_multi"]),
        noise_scale=0.35,
    )
    assert_close(last(out.wav), data["out/multi/o"], atol=WAVE_ATOL)


def _style(model: SynthesizerTrn, data: dict[str, mx.array], index: int) -> mx.array:
    spec = last(data[f"in/refer{index}"])
    return model.embed_style(spec, mx.ones((1, spec.shape[1], 1)), data.get(f"in/sv_emb{index}"))


@pytest.mark.parametrize("scheme", [s for s in NORM_SCHEMES if s != "upstream"])
def test_other_norm_schemes_compute_the_same(scheme: str) -> None:
    data = tensors("sovits_v2", "forward.safetensors")
    out = _forward(generator("sovits_v2", scheme), data)
    assert_close(last(out.y_hat), data["out/y_hat"], atol=WAVE_ATOL)


@pytest.mark.slow
def test_full_size_forward() -> None:
    model, data = generator("full_v2"), tensors("full_v2", "forward.safetensors")
    stats = values("full_v2", "meta.json")["forward_stats"]
    out = model(
        last(data["in/ssl"]),
        last(data["in/spec"]),
        data["in/spec_lengths"],
        data["in/ftext"],
        data["in/ftext_lengths"],
        noise=last(data["in/noise_q"]),
        ids_slice=data["in/ids_slice"],
    )
    assert_close(last(out.y_hat), data["out/y_hat"], atol=WAVE_ATOL)
    codes = model.extract_latent(last(data["in/ssl"]))
    assert mx.array_equal(codes[:, None], data["out/codes"])
    spec = last(data["in/spec"])
    style = model.embed_style(spec, mx.ones((1, spec.shape[1], 1)))
    assert_near(last(style), data["out/ge"])
    for name, expected in stats.items():
        ours = out.quantized if name == "stats_ssl" else getattr(out, name)
        first = last(ours).flatten()
        assert_close(first[:8], expected["first8"], atol=1e-4 * max(1, expected["abs_mean"] * 10))
        assert_close(mx.linalg.norm(first), expected["l2"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["full_v2", "full_v1", "full_v2Pro", "full_v2ProPlus"])
def test_full_size_decode(folder: str) -> None:
    """Also of the recipe: the weights' checksums are compared as they are made."""
    data = tensors(folder, "decode.safetensors")
    model, meta = generator(folder), values(folder, "meta.json")
    assert not model.config.is_reduced
    spec = last(data["in/refer"])
    style = model.embed_style(spec, mx.ones((1, spec.shape[1], 1)), data.get("in/sv_emb"))
    speeds = [name[len("out/s") : -len("/o")] for name in data if name.startswith("out/s")]
    assert set(speeds) == ({"1.0", "1.25"} if folder == "full_v2" else {"1.0"})
    for speed in speeds:
        out = model.decode(
            data["in/codes"][0],
            data["in/text"],
            [style],
            noise=last(data[f"in/noise_s{speed}"]),
            noise_scale=meta["noise_scale"],
            speed=float(speed),
        )
        assert_close(last(out.wav), data[f"out/s{speed}/o"], atol=WAVE_ATOL)
    codes = model.extract_latent(last(data["in/ssl_extract"]))
    assert mx.array_equal(codes[:, None], data["out/extract_latent"])
