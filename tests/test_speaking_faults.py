"""What a voice says of things that it cannot speak with: one sentence, with the cure."""

from __future__ import annotations

import gc
import multiprocessing
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.synthesis.companions import Companions
from mlx_vits.synthesis.speaking import Speaker
from mlx_vits.synthesis.voice import Voice
from tests.support.tiny import RATE, hum
from tests.support.tiny_speech import change_json, make_speaking_base, write_tiny_gpt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_base(tmp_path_factory.mktemp("speaking") / "base")


@pytest.fixture(scope="module")
def voice(base: Path) -> Voice:
    return mlx_vits.load(base)


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """The base, to be damaged."""
    return shutil.copytree(base, tmp_path / "base")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": None}, "text is None; give it as a text"),
        ({"text": "caf\udce9"}, "not Unicode, at '.udce9'; write it in UTF-8"),
        ({"text": "[pause 1s]"}, "nothing to speak; give at least one word"),
        ({"text": "\u4f60\u597d"}, "has no word that English can read"),
        ({"text": "a" * 505}, "at most 500 can be read"),
        ({"language": "fr"}, "'fr' is not supported; supported: 'en'"),
        ({"seed": -1}, "between 0 and 4294967295"),
        ({"seed": 2**32}, "between 0 and 4294967295"),
        ({"seed": 1.5}, "seed is 1.5; it has to be a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it has to be a whole number"),
        ({"speed": 0.24}, "between 0.25 and 4.0"),
        ({"speed": 4.1}, "between 0.25 and 4.0"),
        ({"speed": float("nan")}, "speed is nan"),
        ({"pause": float("nan")}, "pause is nan"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": "1"}, "top_p is 1"),
    ],
)
def test_what_is_asked_for_in_vain(voice: Voice, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        voice.speak(**({"text": "Hello."} | options))


def test_chinese_without_its_bert(
    voice: Voice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pypinyin")
    pytest.importorskip("jieba")
    monkeypatch.setenv("MLX_VITS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"lacks chinese-roberta.*`mlx-vits download v2`"):
        voice.speak("\u4f60\u597d", language="zh")


def test_pauses_in_a_row_add_up(voice: Voice) -> None:
    one = voice.speak("[pause 1s] Hello. [pause 1s] Hello.")
    two = voice.speak("[pause 1s][pause 1s] Hello. [pause 1s] [pause 500ms] Hello.")
    assert len(two.wav) - len(one.wav) == int(1.5 * RATE)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_sentence_that_cannot_be_spoken_is_left_out_and_named(
    voice: Voice, streamed: bool
) -> None:
    text = f"Hello.\n{'x' * 505}\nGood day."
    noticed: list[str] = []
    if streamed:
        spoken = np.concatenate(list(voice.stream(text, warn=noticed.append)))
        assert len(spoken) > 2 * 0.8 * RATE
    else:
        speech = voice.speak(text)
        assert [sentence.text for sentence in speech.sentences] == ["Hello.", "Good day."]
        noticed = speech.warnings
    assert any("left out" in words and "506 characters" in words for words in noticed)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Hello.\n{}[pause 0.8s]\nGood day.", 0.8),
        ("[pause 0.8s]{}[pause 0.5s]Hello.\nGood day.", 1.3),
        ("Hello.\nGood day.[pause 0.3s]{}[pause 0.8s]", 0.8),
        ("Hello.\n{}\nGood day.", 0.0),
    ],
)
def test_the_pauses_of_a_sentence_that_is_left_out_stay(
    voice: Voice, streamed: bool, text: str, seconds: float
) -> None:
    def samples(text: str) -> int:
        return sum(map(len, voice.stream(text))) if streamed else len(voice.speak(text).wav)

    assert samples(text.format("x" * 505)) - samples("Hello.\nGood day.") == int(seconds * RATE)


def test_warnings_belong_to_the_request_that_caused_them(voice: Voice) -> None:
    other = voice.stream("Hello \U0001f389 there.")
    next(other)
    assert not any("\U0001f389" in words for words in voice.speak("Hello.").warnings)
    other.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reference_text": "\u4f60\u597d"}, "cannot be read as 'en'.*--reference-language"),
        ({"reference_text": "?!"}, "cannot be read as 'en'"),
        ({"reference_language": "xx"}, "'xx' is not supported"),
        ({"reference": "no\0where.wav"}, "null byte"),
        ({"reference": "nowhere.wav"}, "nowhere.wav: cannot be read"),
        ({"aux_references": ["nowhere.wav"]}, "nowhere.wav: cannot be read"),
    ],
)
def test_references_that_do_not_serve(voice: Voice, base: Path, options: Any, words: str) -> None:
    given = {"reference": base / "reference.wav", "reference_text": "Some words."} | options
    with pytest.raises(DataError, match=words):
        voice.speak("Hello.", **given)


def test_a_reference_of_two_channels_and_one_that_is_far_too_short(
    voice: Voice, tmp_path: Path
) -> None:
    mono = hum(4.0)
    soundfile.write(tmp_path / "two.wav", np.stack([mono, mono], 1), RATE)
    write_wav(tmp_path / "one.wav", mono, RATE)
    words = {"reference_text": "Now, as all books."}
    both = [voice.speak("Hello.", reference=tmp_path / f"{n}.wav", **words) for n in ("one", "two")]
    assert np.array_equal(both[0].sentences[0].codes, both[1].sentences[0].codes)
    write_wav(tmp_path / "short.wav", hum(0.01), RATE)
    with pytest.raises(DataError, match=r"short\.wav: lasts 0\.01 s"):
        voice.speak("Hello.", reference=tmp_path / "short.wav")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"languages": 5}, "languages .* is 5, which is no list"),
        ({"languages": "english"}, "is no list of languages"),
        ({"languages": [["en"]]}, "is no list of languages"),
        ({"languages": ["ja"]}, "has heard ja alone, and the language is 'en'"),
        ({"mute_code": True}, "mute_code .* is True, which is no code"),
        ({"mute_code": 32}, "put one of 0 to 31 there"),
        ({"codebook_sha256": 5}, "trained with another codebook"),
        ({"data": {"max_sec": "long"}}, "max_sec is 'long'"),
        ({"data": 5}, "`data` of the configuration is not a table"),
    ],
)
def test_a_broken_configuration_of_t2s(copy: Path, values: Any, words: str) -> None:
    change_json(copy / "gpt" / "config.json", **values)
    with pytest.raises(UserError, match=words):
        mlx_vits.load(copy).speak("Hello.")


def test_a_reference_in_a_language_that_t2s_has_not_heard(copy: Path) -> None:
    change_json(copy / "gpt" / "config.json", languages=["en"])
    change_json(copy / "reference.json", language="zh")
    with pytest.raises(DataError, match="heard en alone, and the reference's language is 'zh'"):
        mlx_vits.load(copy).speak("Hello.", language="en")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"audio": 5}, "audio is 5, not text"),
        ({"audio": "../reference.wav"}, "leads out of"),
        ({"audio": "gone.wav"}, "gone.wav: cannot be read"),
        ({"text": None}, "text is null, not text"),
        ({"language": ["en"]}, "language is .*, not text"),
        ({"language": "xx"}, "reference.wav: .*'xx' is not supported"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_a_broken_reference_file(copy: Path, values: Any, words: str) -> None:
    change_json(copy / "reference.json", **values)
    with pytest.raises(UserError, match=words):
        mlx_vits.load(copy).speak("Hello.")


@pytest.mark.parametrize(
    ("codes", "phonemes", "words"),
    [
        (40, 732, "has 40 codes, and the codebook of base has 32"),
        (32, 512, "is a GPT of v1, with 512 phonemes, but the voice is v2; give a GPT of v2"),
        (32, 322, "knows 322 phonemes, and v2 has 732"),
    ],
)
def test_a_t2s_of_other_sizes(
    copy: Path, tmp_path: Path, codes: int, phonemes: int, words: str
) -> None:
    gpt = write_tiny_gpt(tmp_path / "gpt", {}, codes=codes, phonemes=phonemes)
    with pytest.raises(CheckpointError, match=words):
        mlx_vits.load(copy, gpt=gpt).speak("Hello.")


def test_files_of_the_other_stage(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"SoVITS stage.*not a GPT; give a \.ckpt"):
        mlx_vits.load(base, gpt=base / "generator.safetensors").speak("Hello.")
    with pytest.raises(CheckpointError, match=r"GPT stage.*not a voice; give the \.pth"):
        mlx_vits.load(base / "gpt")
    with pytest.raises(CheckpointError, match=r"without its config\.json; give the folder of both"):
        mlx_vits.load(base, gpt=base / "gpt" / "weights.safetensors").speak("Hello.")


@pytest.mark.parametrize("bits", [3, "8", 16])
def test_bits_that_weights_cannot_have(base: Path, bits: Any) -> None:
    with pytest.raises(UserError, match="it has to be 8 or 4"):
        mlx_vits.load(base, bits=bits)


def test_a_t2s_whose_width_cannot_be_quantized(base: Path, tmp_path: Path) -> None:
    sha256 = codebook_sha256(mlx_vits.load(base).model)
    gpt = write_tiny_gpt(tmp_path / "gpt", {CODEBOOK_KEY: sha256}, hidden=48)
    with pytest.raises(CheckpointError, match=r"gpt: .* 32 does not divide; leave out --bits"):
        mlx_vits.load(base, gpt=gpt, bits=8).speak("Hello.")


def test_a_voice_without_its_base() -> None:
    config = SimpleNamespace(is_reduced=False)
    alone: Any = SimpleNamespace(name="me", version="v2Pro", config=config)
    with pytest.raises(CheckpointError, match=r"me: has no T2S.*`mlx-vits download v2Pro`.*--gpt"):
        _ = Speaker(alone, Companions()).gpt
    config.is_reduced = True  # no published T2S fits
    with pytest.raises(CheckpointError, match="that of the base that the voice was made from"):
        _ = Speaker(alone, Companions()).gpt


@pytest.mark.parametrize("part", ["voice", "T2S"])
def test_weights_that_give_no_numbers(copy: Path, part: str) -> None:
    voice = mlx_vits.load(copy)
    if part == "voice":
        voice.model.dec.conv_post.weight *= mx.nan
    else:
        voice.speaker.gpt.model.ar_predict_layer.weight *= mx.nan
    for speak in (voice.speak, lambda text: list(voice.stream(text))):
        with pytest.raises(CheckpointError, match=f"{part}.* NaN or infinity.*damaged; copy"):
            speak("Hello.")


class TestThreads:
    """A stream may be read from anywhere, left at any time, and mixed with others."""

    TEXT = "Hello there. Good day."

    def test_two_streams_at_once_from_two_threads(self, voice: Voice) -> None:
        alone = np.concatenate(list(voice.stream(self.TEXT)))
        heard: dict[int, np.ndarray] = {}

        def listen(number: int) -> None:
            heard[number] = np.concatenate(list(voice.stream(self.TEXT)))

        threads = [threading.Thread(target=listen, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.array_equal(heard[0], alone)
        assert np.array_equal(heard[1], alone)

    def test_one_stream_begun_in_one_thread_and_ended_in_another(self, voice: Voice) -> None:
        alone = np.concatenate(list(voice.stream(self.TEXT)))
        chunks = voice.stream(self.TEXT)
        heard = [next(chunks)]
        thread = threading.Thread(target=lambda: heard.extend(chunks))
        thread.start()
        thread.join()
        assert np.array_equal(np.concatenate(heard), alone)

    def test_a_stream_that_is_left_early(self, voice: Voice) -> None:
        alone = voice.speak(self.TEXT).wav
        chunks = voice.stream(self.TEXT)
        next(chunks)
        thread = threading.Thread(target=chunks.close)
        thread.start()
        thread.join()
        del chunks
        gc.collect()
        assert np.array_equal(voice.speak(self.TEXT).wav, alone)

    def test_an_interrupt_leaves_the_voice_as_it_was(
        self, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = voice.speak(self.TEXT).wav
        with monkeypatch.context() as patch:
            patch.setattr(voice, "_decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                voice.speak(self.TEXT)
        assert np.array_equal(voice.speak(self.TEXT).wav, alone)

    @pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU does not outlive a fork")
    def test_a_forked_process_speaks(self, voice: Voice) -> None:
        alone = voice.speak(self.TEXT).wav
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=lambda: theirs.send(voice.speak(self.TEXT).wav))
        process.start()
        assert ours.poll(60)
        assert np.array_equal(ours.recv(), alone)
        process.join()
