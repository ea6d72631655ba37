"""Speaker vectors against 3D-Speaker's ERes2NetV2, kaldi-native-fbank and torchaudio.

The goldens come from `scripts/make_speaker_goldens.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.audio.fbank import FRAME_SAMPLES, MEL_BANDS, kaldi_fbank
from mlx_vits.audio.sinc import resample_sinc
from mlx_vits.checkpoints.speaker import load_speaker_encoder
from mlx_vits.checkpoints.state_dict import expected_shapes, load_state, state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.speaker_encoder import ERes2NetV2, SpeakerEncoderConfig
from mlx_vits.preprocessing.prepared import SPEAKER_FOLDER, read_speaker_vector, speaker_file
from mlx_vits.preprocessing.speakers import speaker_vector, write_speaker_vector
from mlx_vits.system.files import make_folder
from tests.support.goldens import (
    assert_close,
    assert_near,
    golden,
    relative_l2,
    tensors,
    values,
)
from tests.support.recipe import make_tensor, make_weights

RATE = 32000


@pytest.fixture(scope="module")
def data() -> dict[str, mx.array]:
    return tensors("speaker", "speaker.safetensors")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """A reduced encoder's file: with the embedding's layer and the counters of upstream's."""
    meta = values("speaker", "meta.json")
    made = make_weights(golden("speaker", "state_dict.json"), meta["seed"], meta["rules"])
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(7, np.int64)
        for name in made
        if name.endswith("running_mean")
    }
    return made | counters


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    """A still smaller encoder's file, with four blocks of two parts."""
    net = ERes2NetV2(SpeakerEncoderConfig(4, 32, 2, 2, (1, 1, 1, 1)))
    rules = values("speaker", "meta.json")["rules"]
    return {
        name: make_tensor(name, shape, 1, rules) for name, shape in expected_shapes(net).items()
    }


@pytest.fixture(scope="module")
def model(weights: dict[str, np.ndarray], tmp_path_factory: Any) -> ERes2NetV2:
    path = tmp_path_factory.mktemp("speaker") / "pretrained.ckpt"
    write_torch_archive(path, weights)
    return load_speaker_encoder(path)


def test_fbank(data: dict[str, mx.array]) -> None:
    """The clip has digital silence, on Kaldi's floor, and an offset, which is taken out.

    Both others compute in fp32: where a band is nearly empty they are 4e-4 apart, as ours, in fp64,
    is from each; in the mean it is a millionth of the values.
    """
    ours = kaldi_fbank(np.array(data["out/wav16k"]))
    assert ours.shape == (1 + (data["out/wav16k"].size - 400) // 160, MEL_BANDS)
    assert ours.dtype == np.float32
    assert (ours[0] == np.float32(np.log(1.1920929e-7))).all()
    for theirs in (data["out/fbank_kaldi_native"], data["out/fbank_torchaudio"]):
        assert_close(ours, theirs, atol=1e-3)
        assert relative_l2(ours, theirs) < 3e-6


def test_resampling(data: dict[str, mx.array]) -> None:
    ours = resample_sinc(np.array(data["in/wav32k"]) / 32768, RATE, 16000)
    assert ours.dtype == np.float32
    # torchaudio multiplies in fp32.
    assert_close(ours, data["out/wav16k"], atol=5e-7)
    assert np.array_equal(resample_sinc(ours, 16000, 16000), ours)
    # 7 samples of 44.1 kHz end just after the third of 16 kHz began.
    assert resample_sinc(np.ones(7), 44100, 16000).shape == (3,)


def test_every_stage(model: ERes2NetV2, data: dict[str, mx.array]) -> None:
    """Maps [B, C, T] averaged over their bands; ours are (B, F, T, C).

    Those of the layers, theirs and ours, are up to 8e-7 from float64, whichever BLAS there is.
    """
    x = data["in/fbank"].swapaxes(1, 2)[..., None]
    x = mx.maximum(model.bn1(model.conv1, x), 0)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        aside = x
        for block in getattr(model, name):
            x = block(x)
        assert_near(x.mean(axis=1).swapaxes(1, 2), data[f"tap/{name}"], 3e-6)
    fused = model.fuse34(x, model.layer3_ds(aside))
    # From float64 the golden is 1.4e-6 away, and ours 1.1e-6 to 2.1e-6, as the BLAS has it.
    assert_near(fused.mean(axis=1).swapaxes(1, 2), data["tap/fuse34"], 6e-6)
    vectors = model.forward3(data["in/fbank"])
    assert vectors.shape == (2, model.config.sv_dim)
    # The last fusion multiplies differences of large values.
    assert_near(vectors, data["out/vector"], 2e-5)


def test_from_a_training_clip(model: ERes2NetV2, data: dict[str, mx.array]) -> None:
    """The whole way from `5-wav32k`; int16 and the floats it stands for are the same."""
    clip = np.array(data["in/wav32k"])
    ours = speaker_vector(model, clip, RATE, "a.wav")
    assert ours.shape == (1, model.config.sv_dim)
    assert ours.dtype == np.float32
    assert relative_l2(ours, data["out/clip_vector"]) < 2e-5  # from torchaudio's fp32 energies
    floats = speaker_vector(model, clip.astype(np.float32) / 32768, RATE, "a.wav")
    assert_near(floats, ours, 1e-6)


def test_time_does_not_matter(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A shift by whole frames of the last map shifts it; what is away from the ends is the same."""
    write_torch_archive(tmp_path / "small.ckpt", small)
    encoder = load_speaker_encoder(tmp_path / "small.ckpt")
    fbank = mx.array(np.random.default_rng(0).normal(size=(1, 480, MEL_BANDS)), mx.float32)
    whole, later = encoder.map_features(fbank), encoder.map_features(fbank[:, 160:])
    assert whole.shape == (1, 10, 60, 64)
    assert_near(later[:, :, 12:-1], whole[:, :, 32:-1], 1e-5)
    assert not np.allclose(later[:, :, 0], whole[:, :, 20], atol=1e-2)


def test_a_repeated_clip_is_the_same_speaker(model: ERes2NetV2, data: dict[str, mx.array]) -> None:
    clip = np.array(data["in/wav32k"])[4000:]
    once, twice, noise = (
        speaker_vector(model, wav, RATE, "a.wav")[0]
        for wav in (clip, np.tile(clip, 2), np.random.default_rng(0).normal(0, 0.1, len(clip)))
    )

    def distance(other: np.ndarray) -> float:
        return float(np.linalg.norm(other - once) / np.linalg.norm(once))

    assert distance(twice) < 0.15 < distance(noise)


def test_the_published_size() -> None:
    """Names and shapes of 3D-Speaker's own, and its number of parameters."""
    entries = values("speaker", "full_size.json")
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    trained = [shape for name, shape in shapes.items() if "running" not in name]
    assert sum(math.prod(shape) for shape in trained) == 53_513_632
    full = ERes2NetV2()
    assert full.config.sv_dim == 20480
    embedding = {"seg_1.weight", "seg_1.bias"}
    assert expected_shapes(full) == {n: s for n, s in shapes.items() if n not in embedding}


@pytest.mark.slow
def test_full_size_values(data: dict[str, mx.array]) -> None:
    meta = values("speaker", "meta.json")
    path = golden("speaker", "full_size.json")
    made = make_weights(path, meta["seed"], meta["rules"], own_seed=False)
    full = ERes2NetV2()
    load_state(full, {n: t for n, t in made.items() if n[:5] != "seg_1"}, source="full size")
    vectors = full.forward3(data["in/fbank"])
    assert vectors.shape == (2, 20480)
    # Sums of up to 9216 products, in another order.
    assert_near(vectors[:, :: meta["every"]], data["out/full_vector"], 1e-4)


def test_files_that_hold_the_same(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """fp16, as upstream may keep it, and safetensors; the sizes are read off the tensors."""
    halves = {name: tensor.astype(np.float16) for name, tensor in small.items()}
    write_torch_archive(tmp_path / "half.ckpt", halves)
    write_tensors(tmp_path / "same.safetensors", {n: mx.array(t) for n, t in halves.items()})
    encoders = [load_speaker_encoder(tmp_path / n) for n in ("half.ckpt", "same.safetensors")]
    for encoder in encoders:
        assert encoder.config == SpeakerEncoderConfig(4, 32, 2, 2, (1, 1, 1, 1))
        state = state_of(encoder)
        assert list(state) == list(small)
        assert all(np.array_equal(state[n], half) for n, half in halves.items())


def test_files_that_do_not_fit(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    lacking = {n: t for n, t in small.items() if n != "layer3.0.fuse_models.0.local_att.4.bias"}
    narrow = small | {"layer2.0.conv1.weight": np.zeros((8, 7, 1, 1), np.float32)}
    for content, words in (
        (lacking, r"lacks layer3\.0\.fuse_models\.0\.local_att\.4\.bias"),
        (narrow, r"layer2\.0\.conv1\.weight has shape \[8, 7, 1, 1\], this model needs"),
        (small | {"head.weight": np.zeros(3)}, r"tensors this model has not: head\.weight"),
        (small | {"layer1.0.bn1.bias": 3.0}, "layer1.0.bn1.bias.*is no tensor"),
        ({"weight": small, "config": {}}, "is not the speaker encoder of v2Pro and v2ProPlus"),
        (small | {"conv1.weight": np.zeros((0, 1, 3, 3))}, "is not the speaker encoder"),
        (small | {"conv1.weight": 1}, "is not the speaker encoder"),
        ([1, 2], r"other\.ckpt: is not the speaker encoder"),
    ):
        write_torch_archive(path, content)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_speaker_encoder(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_speaker_encoder(tmp_path / "absent.ckpt")
    path.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="is a web page, not a model"):
        load_speaker_encoder(path)


def test_clips_that_cannot_be_used(model: ERes2NetV2) -> None:
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32)
    shortest = FRAME_SAMPLES * 2
    holed = np.where(np.arange(RATE) == 99, np.nan, tone)
    for wav, words in (
        (tone[: shortest - 1], r"is too short for a speaker vector; 0\.025 s"),
        (tone[:0], "is too short"),
        (tone * 0, "is silent"),
        (np.zeros(RATE, np.int16), "is silent"),
        (holed, "holds samples that are not numbers"),
    ):
        with pytest.raises(DataError, match=rf"^clips/a\.wav: {words}"):
            speaker_vector(model, wav, RATE, Path("clips/a.wav"))
    assert np.isfinite(speaker_vector(model, tone[:shortest], RATE, "a.wav")).all()


def test_an_encoder_that_gives_no_numbers(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    broken = small | {"layer4.0.bn3.running_var": np.full(64, -1, np.float32)}
    write_torch_archive(tmp_path / "broken.ckpt", broken)
    encoder = load_speaker_encoder(tmp_path / "broken.ckpt")
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32)
    with pytest.raises(DataError, match=r"^a\.wav: the speaker encoder gives values that are not"):
        speaker_vector(encoder, tone, RATE, "a.wav")


def test_the_prepared_file(tmp_path: Path) -> None:
    """Upstream's tensor [1, V], fp32, which training reads."""
    vector = np.random.default_rng(1).normal(size=(1, 40))
    make_folder(tmp_path / SPEAKER_FOLDER)
    write_speaker_vector(tmp_path, "a.wav", vector)
    path = speaker_file(tmp_path, "a.wav")
    assert path == tmp_path / "7-sv_cn" / "a.wav.pt"
    held = read_torch_archive(path)
    assert held.shape == (1, 40)
    assert held.dtype == np.float32
    assert_close(read_speaker_vector(path, 40), vector[0], rtol=1e-6)
