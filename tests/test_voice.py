"""The Python API: decode, extract_codes, convert."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.models.vits import SynthesizerTrn
from tests.support.goldens import generator, golden, tensors
from tests.support.repeating import same
from tests.support.tiny import RATE, TEXTS, hum, make_base, tiny_config

DATA = tensors("sovits_v2", "decode.safetensors")


@pytest.fixture(scope="module")
def golden_voice() -> mlx_vits.Voice:
    return mlx_vits.load(golden("sovits_v2", "golden_v2_e8_s64.pth"))


@pytest.fixture(scope="module")
def tiny_voice(tmp_path_factory: Any) -> mlx_vits.Voice:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_base(folder)
    return mlx_vits.load(folder)


def _decode(voice: mlx_vits.Voice, **changes: Any) -> np.ndarray:
    given = {"codes": DATA["in/codes"], "text": DATA["in/text"], "refer": DATA["in/refer0"]}
    given |= changes
    codes, text, refer = (given.pop(name) for name in ("codes", "text", "refer"))
    return voice.decode(codes, text, refer, **given)


def test_decode_gives_a_mono_waveform_at_the_voices_rate(golden_voice: mlx_vits.Voice) -> None:
    wav = _decode(golden_voice)
    codes = DATA["in/codes"].shape[-1]
    assert wav.shape == (codes * 2 * 640,)
    assert wav.dtype == np.float32
    assert golden_voice.sample_rate == 32000
    frames = int(2 * codes / 1.25) + 1
    assert _decode(golden_voice, speed=1.25).shape == (frames * 640,)


def test_decode_takes_numpy_and_mlx_and_repeats_itself(golden_voice: mlx_vits.Voice) -> None:
    first = _decode(golden_voice)
    assert np.array_equal(first, _decode(golden_voice))  # a fixed seed without noise
    again = _decode(
        golden_voice,
        codes=np.array(DATA["in/codes"]).astype(np.int64),
        text=np.array(DATA["in/text"]),
        refer=[np.array(DATA["in/refer0"])],
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, _decode(golden_voice, noise_scale=0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codes": DATA["in/codes"][0]}, r"codes has shape .* \[1, 1, any\] is needed"),
        ({"codes": DATA["in/codes"] + 1000}, "codes reaches"),
        ({"text": DATA["in/text"].astype(mx.float32)}, "integers are needed"),
        ({"text": DATA["in/text"] * 0 + 732}, "text reaches"),
        ({"refer": DATA["in/refer0"][:, :704]}, r"refer has shape .* \[1, 1025, any\]"),
        ({"refer": []}, "refer is an empty list"),
        ({"noise": DATA["in/noise_s1.25"]}, "noise has shape"),
        ({"speed": 0.0}, "speed is 0.0"),
    ],
)
def test_wrong_input_is_named(golden_voice: mlx_vits.Voice, changes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _decode(golden_voice, **changes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tail_codes": 0}, "tail_codes is 0"),
        ({"tail_codes": 1000}, "tail_codes is 1000"),
        ({"tail_codes": 2, "speed": 0.0}, "speed is 0.0"),
    ],
)
def test_no_chunk_is_longer_than_the_codes(
    golden_voice: mlx_vits.Voice, options: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        golden_voice.decode_chunk(DATA["in/codes"], DATA["in/text"], DATA["in/refer0"], **options)


def test_extract_codes(golden_voice: mlx_vits.Voice) -> None:
    data = tensors("sovits_v2", "forward.safetensors")
    voice = mlx_vits.Voice(generator("sovits_v2"))
    codes = voice.extract_codes(data["in/ssl"])
    assert codes.dtype == np.int32
    assert np.array_equal(codes, np.array(data["out/extract_latent"]))
    odd = voice.extract_codes(np.array(data["in/ssl"])[..., :41])
    assert odd.shape == (2, 1, 20)
    with pytest.raises(ValueError, match="ssl has shape"):
        voice.extract_codes(np.zeros((1, 3, 10)))


def test_a_pro_voice_asks_for_its_speaker_vector() -> None:
    voice = mlx_vits.load(golden("sovits_v2Pro", "golden_v2Pro_e8_s64.pth"))
    data = tensors("sovits_v2Pro", "decode.safetensors")
    with pytest.raises(ValueError, match="v2Pro needs sv_emb"):
        voice.decode(data["in/codes"], data["in/text"], data["in/refer0"])
    refer = [data["in/refer0"], data["in/refer1"]]
    with pytest.raises(ValueError, match="2 references but 1 speaker"):
        voice.decode(data["in/codes"], data["in/text"], refer, sv_emb=data["in/sv_emb0"])


def test_convert_speaks_a_recording_again(tiny_voice: mlx_vits.Voice, tmp_path: Path) -> None:
    wav = hum(1.5)
    spoken = tiny_voice.convert(wav, RATE, TEXTS[0])
    frames = (len(wav) // 2 - 400) // 320 + 1  # of the content encoder, two to a code
    assert spoken.shape == (frames // 2 * 2 * 640,)
    assert spoken.dtype == np.float32
    assert same(spoken, tiny_voice.convert(wav, RATE, TEXTS[0]))
    assert not np.array_equal(spoken, tiny_voice.convert(wav, RATE, TEXTS[0], seed=1))
    reference = tmp_path / "reference.wav"
    write_wav(reference, hum(1.0, 220.0), RATE)
    styled = tiny_voice.convert(wav, RATE, TEXTS[0], refer=reference)
    assert not np.array_equal(spoken, styled)
    spec = tiny_voice.reference_spectrogram(np.asarray(mlx_read(reference)))
    assert same(styled, tiny_voice.convert(wav, RATE, TEXTS[0], refer=spec))


def mlx_read(path: Path) -> np.ndarray:
    from mlx_vits.audio.files import read_audio

    return read_audio(path).wav


def test_convert_resamples(tiny_voice: mlx_vits.Voice) -> None:
    wav = hum(1.5, rate=22050)
    spoken = tiny_voice.convert(wav, 22050, TEXTS[0])
    assert abs(len(spoken) / 32000 - 1.5) < 0.06


def test_what_convert_cannot_use_is_named(tiny_voice: mlx_vits.Voice) -> None:
    wav = hum(1.5)
    for given, words in (
        ((np.zeros(RATE, np.float32), RATE, "yes"), "is silent"),
        ((np.stack([wav, wav]), RATE, "yes"), "not one channel"),
        ((wav * np.nan, RATE, "yes"), "not one channel of numbers"),
        ((wav[:600], RATE, "yes"), "too short"),
        ((wav, RATE, "   "), "transcript is empty"),
    ):
        with pytest.raises(DataError, match=words):
            tiny_voice.convert(*given)
    with pytest.raises(DataError, match="xx"):
        tiny_voice.convert(wav, RATE, "yes", language="xx")


def test_without_a_content_encoder_one_sentence_says_how_to_give_one(
    golden_voice: mlx_vits.Voice,
) -> None:
    with pytest.raises(CheckpointError, match="content_encoder=FOLDER"):
        golden_voice.convert(hum(1.5), RATE, TEXTS[0])


def test_a_content_encoder_can_be_given(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tiny")
    path = mlx_vits.load(tmp_path / "tiny").save(tmp_path / "voice.safetensors")
    assert mlx_vits.load(path).content_encoder is None
    voice = mlx_vits.load(path, content_encoder=base.content_encoder)
    assert isinstance(voice.content_encoder, HubertModel)
    assert voice.convert(hum(1.5), RATE, TEXTS[0]).size


def test_a_pth_converts_with_the_content_encoder_of_its_version_s_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path / "weights"))
    make_base(tmp_path / "weights" / "v2")
    voice = mlx_vits.load("v2")
    spoken = voice.convert(hum(1.5), RATE, TEXTS[0])
    alone = mlx_vits.load(voice.save(tmp_path / "me.safetensors"))
    assert np.array_equal(alone.convert(hum(1.5), RATE, TEXTS[0]), spoken)


def test_a_damaged_content_encoder_does_not_keep_a_voice_from_decoding(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tiny")
    (base.content_encoder / "weights.safetensors").write_bytes(b"nothing")
    voice = mlx_vits.load(tmp_path / "tiny")
    assert voice.sample_rate == RATE
    with pytest.raises(CheckpointError, match=r"content_encoder/weights\.safetensors"):
        voice.convert(hum(1.5), RATE, TEXTS[0])


def test_a_content_encoder_that_is_given_is_looked_at_when_the_voice_is_loaded(
    tmp_path: Path,
) -> None:
    make_base(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="holds no content encoder"):
        mlx_vits.load(tmp_path / "tiny", content_encoder=tmp_path)


def test_a_content_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path / "tiny")
    other = make_base(tmp_path / "wide", ssl_dim=32)
    with pytest.raises(CheckpointError, match="32 wide, and the voice needs 16"):
        mlx_vits.load(tmp_path / "tiny", content_encoder=other.content_encoder)


def test_a_voice_frees_its_weights_when_it_is_dropped() -> None:
    """Each score of a training builds a voice: the memory must not wait for the collector."""
    mx.random.seed(1)
    voice = mlx_vits.Voice(SynthesizerTrn(tiny_config("v2")))
    weights = weakref.ref(voice.model)
    gc.disable()
    try:
        del voice
        assert weights() is None
    finally:
        gc.enable()


def test_a_loaded_voice_frees_its_weights_as_soon_as_it_is_dropped() -> None:
    """It knows what to speak with, but refers to nothing that refers back to it."""
    voice = mlx_vits.load("demo")
    weights = weakref.ref(voice.model)
    gc.disable()
    try:
        del voice
        assert weights() is None
    finally:
        gc.enable()


def test_configuration_is_frozen(golden_voice: mlx_vits.Voice) -> None:
    with pytest.raises(AttributeError):
        golden_voice.config.model.hidden_channels = 3  # type: ignore[misc]
    assert golden_voice.config.model.upsample_rates == (10, 8, 2, 2, 2)
