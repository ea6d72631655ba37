"""The whole of synthesis against the Python original's `TTS.run()`.

Tokens are exact, a float of a decode is within 1e-4, an int16 sample within 2. Samples near full
scale are left out: the network is loud, and a float of exactly 1.0 wraps upstream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.base import load_generator
from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import T2SConfig
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis.pipeline import Pipeline
from mlx_vits.synthesis.reference import prompt_codes, read_reference
from mlx_vits.synthesis.request import Piece, Prompt, SpeechRequest
from mlx_vits.synthesis.sound import to_int16
from mlx_vits.synthesis.voice import Voice
from tests.support.goldens import golden, tensors, values
from tests.support.recipe import array_by_name, make_weights

VERSIONS = ("v2", "v2Pro")
SCENARIOS = [
    "one",
    "three_batch3",
    "three_batch1",
    "three_batch2_nobucket",
    "speed08",
    "naive",
    "aux",
    "noprompt",
    "fragments",
    "fragments2",
    "stream_mute",
    "stream_fixed",
    "stream_short",
    "stream_two",
    "stream_speed",
    "english",
]
LOUD = 32760


class Reading(NamedTuple):
    phones: list[str]
    ids: list[int]
    norm_text: str
    features: mx.array | None


class Setup(NamedTuple):
    meta: dict[str, Any]
    voice: Voice
    t2s: Text2SemanticDecoder
    encoder: HubertModel
    run: dict[str, mx.array]


@cache
def setup(version: str) -> Setup:
    meta = values("tts", version, "meta.json")
    voice_file = golden("tts", version) / meta["sovits"]
    if not voice_file.exists():
        voice_file = golden(f"sovits_{version}", Path(meta["sovits"]).name)
    voice = Voice(load_generator(read_voice(voice_file)))
    config = values("t2s", "config.json")
    config["data"] = {"max_sec": meta["t2s_early_stop_num"] / 50}
    t2s = Text2SemanticDecoder(T2SConfig.from_dict(config))
    weights = tensors("t2s", "weights.safetensors")
    row = tensors("tts", "eos_row.safetensors")["in/eos_row"]
    last = weights["ar_predict_layer.weight"]
    weights["ar_predict_layer.weight"] = mx.concatenate([last[:-1], row[None]])
    load_state(t2s, {name: np.array(a) for name, a in weights.items()}, source="t2s")
    settings = values("hubert", "config.json") | meta["hubert_config"]
    encoder = HubertModel(HubertConfig.from_dict(settings))
    made = make_weights(
        golden("tts", version, "hubert_state_dict.json"),
        meta["hubert_config"]["seed"],
        meta["hubert_rules"],
    )
    load_state(encoder, made, source="hubert")
    return Setup(meta, voice, t2s, encoder, tensors("tts", version, "run.safetensors"))


def front_end(meta: dict[str, Any], *, zeros: bool = False) -> Callable[[str, str], Reading]:
    """The stand-in that the golden was made with, whose English has zeros or nothing."""

    def read(text: str, language: str) -> Reading:
        known = meta["frontend"][text]
        ids, shape = known["phones"], (1024, len(known["phones"]))
        features = mx.zeros(shape) if zeros else None
        if known["bert"] != "zeros":
            features = mx.array(0.5 * array_by_name(known["bert"], meta["seed"], shape))
        return Reading([str(number) for number in ids], ids, known["norm_text"], features)

    return read


@cache
def prompt(version: str, *names: str) -> Prompt:
    """Of the reference `names[0]`, the others being auxiliary."""
    _, voice, _, encoder, run = setup(version)

    def encode(wav: np.ndarray) -> np.ndarray:
        return voice.extract_codes(encoder(mx.array(wav)[None]).swapaxes(1, 2)).ravel()

    references = [read_reference(golden("tts", name), voice.sample_rate) for name in names]
    vectors = []
    if voice.config.model.is_pro:
        vectors = [np.array(run[f"in/sv_emb{number}"]) for number in range(len(names))]
    specs = [voice.reference_spectrogram(one.for_style) for one in references]
    return Prompt(prompt_codes(references[0], encode), specs, vectors)


class Spoken(NamedTuple):
    pieces: list[Piece]
    codes: list[np.ndarray]


def speak(version: str, scenario: str, *, zeros: bool = False, **changes: Any) -> Spoken:
    meta, voice, t2s, _, _ = setup(version)
    inputs = dict(meta["scenarios"][scenario]["inputs"]) | changes
    references = [inputs.pop("ref_audio_path"), *inputs.pop("aux_ref_audio_paths")]
    pipeline = Pipeline(
        voice,
        t2s,
        front_end(meta, zeros=zeros),
        prompt(version, *references),
        noise=lambda shape, index: mx.array(
            array_by_name(f"{scenario}/noise{index}", meta["seed"], shape)
        ),
        mute_code=meta["mute_token"],
        compat=True,
    )
    pieces = list(pipeline.run(SpeechRequest(**inputs)))
    return Spoken(pieces, [s.codes for piece in pieces for s in piece.sentences])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_upstream_says(version: str, scenario: str) -> None:
    meta, _, _, _, run = setup(version)
    spoken = speak(version, scenario)
    lengths = meta["scenarios"][scenario]["yield_lengths"]
    assert [len(piece.wav) for piece in spoken.pieces] == lengths
    theirs = [run[name] for name in sorted(run) if name.startswith(f"{scenario}/tokens/")]
    if not scenario.startswith("stream"):
        for codes in theirs:
            assert any(np.array_equal(codes, ours) for ours in spoken.codes)
    for index, piece in enumerate(spoken.pieces):
        expected = np.array(run[f"{scenario}/audio{index}"], np.int32)
        if expected.size == 0:
            expected = np.zeros(lengths[index], np.int32)
        ours = to_int16(piece.wav, compat=True).astype(np.int32)
        heard = np.abs(expected) < LOUD
        assert np.abs(ours - expected)[heard].max(initial=0) <= 2


def test_english_after_a_chinese_prompt_is_as_with_zeros() -> None:
    inputs = setup("v2").meta["scenarios"]["one"]["inputs"]
    prompt = {name: inputs[name] for name in ("prompt_text", "prompt_lang")}
    one, other = (speak("v2", "english", zeros=zeros, **prompt) for zeros in (False, True))
    assert all(np.array_equal(*codes) for codes in zip(one.codes, other.codes, strict=True))
