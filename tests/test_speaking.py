"""Texts read aloud by the demo's voice."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.audio.spectrogram import mel_spectrogram
from mlx_vits.errors import UserError
from mlx_vits.synthesis import generation
from mlx_vits.synthesis.generation import Generated
from mlx_vits.synthesis.request import SpeechRequest
from mlx_vits.synthesis.speaking import stream
from mlx_vits.synthesis.voice import Voice
from mlx_vits.synthesis.watch import find_fault
from tests.support.tiny import hum

SENTENCE = "The weather is fine, and we are going to the park."
SHORT = "Can you hear me?"


@pytest.fixture(scope="module")
def voice() -> Voice:
    return mlx_vits.load("demo")


@pytest.fixture(scope="module")
def speech(voice: Voice):
    return voice.speak(SENTENCE, split="cut0")


def test_a_sentence(voice: Voice, speech) -> None:
    (sentence,) = speech.sentences
    assert speech.sample_rate == 32000
    assert speech.wav.dtype == np.float32
    assert 1.5 < sentence.samples / speech.sample_rate < 6
    assert len(speech.wav) == sentence.samples + int(0.3 * 32000)
    assert sentence.samples == 1280 * len(sentence.codes)
    assert np.abs(speech.wav).max() > 0.1
    assert np.abs(speech.wav).max() <= 1
    assert not speech.wav[-9600:].any()
    assert sentence.phonemes[:2] == ["DH", "AH0"]
    assert speech.warnings == []


@pytest.fixture(scope="module")
def short(voice: Voice):
    return voice.speak(SHORT)


def test_the_same_seed_gives_the_same_sound(voice: Voice, short) -> None:
    assert np.array_equal(voice.speak(SHORT).wav, short.wav)
    other = voice.speak(SHORT, seed=7)
    assert not np.array_equal(other.sentences[0].codes, short.sentences[0].codes)


def test_a_sentence_does_not_depend_on_the_others(voice: Voice, short) -> None:
    second = voice.speak(f"I am glad to hear it.\n{SHORT}", batch_size=2).sentences[1]
    assert np.array_equal(second.codes, short.sentences[0].codes)


def test_pauses_and_speed(voice: Voice, short) -> None:
    paused = voice.speak(f"[pause 0.5s]{SHORT}[pause 250ms]{SHORT}", pause=0.1, speed=2.0)
    own = paused.sentences[0].samples
    assert own == pytest.approx(short.sentences[0].samples / 2, abs=1280)
    assert len(paused.wav) == int(0.5 * 32000) + own + int(0.25 * 32000) + own + int(0.1 * 32000)
    assert not paused.wav[: int(0.5 * 32000)].any()


def test_a_language_code_in_capitals(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(voice.speaker, "_verify", lambda wav, text, code: asked.append(code) or 0.0)
    (sentence,) = voice.speak("Can you hear me", language="EN").sentences
    assert sentence.text == "Can you hear me."
    assert asked == ["en"]


def test_sentences_begin_and_end_in_silence(speech) -> None:
    spoken = speech.wav[: speech.sentences[0].samples]
    assert abs(spoken[0]) < 1e-3
    assert abs(spoken[-1]) < 1e-3


class TestStreaming:
    def chunks(self, voice: Voice, **options):
        request = SpeechRequest(
            SENTENCE, "en", text_split_method="cut0", streaming_mode=True, **options
        )
        return list(stream(voice.speaker, request, None, ()))

    @pytest.mark.parametrize("fixed", [False, True])
    def test_says_what_the_whole_says(self, voice: Voice, speech, fixed: bool) -> None:
        pieces = self.chunks(voice, fixed_length_chunk=fixed)
        (sentence,) = [s for piece in pieces for s in piece.sentences]
        assert np.array_equal(sentence.codes, speech.sentences[0].codes)
        spoken = np.concatenate([piece.wav for piece in pieces])
        joins = len(pieces) - 2  # the last piece is silence
        assert joins >= 1
        assert 0 <= len(speech.wav) - len(spoken) <= 320 * joins

    def test_joins_do_not_click(self, voice: Voice) -> None:
        pieces = [piece.wav for piece in self.chunks(voice, fixed_length_chunk=True)]
        spoken = np.concatenate(pieces)
        ends = np.cumsum([len(piece) for piece in pieces[:-2]])
        steps = np.abs(np.diff(spoken))
        assert steps[ends - 1].max() < 0.5 * steps.max()

    def test_chunks_shorter_than_the_overlap(self, voice: Voice, short) -> None:
        pieces = voice.stream(SHORT, chunk="fixed", min_chunk=5, overlap=100)
        spoken = np.concatenate(list(pieces))
        assert len(spoken) == pytest.approx(len(short.wav), rel=0.25)
        assert abs(spoken[0]) < 1e-3

    def test_is_nearer_to_the_whole_than_another_noise(self, voice: Voice, speech) -> None:
        spoken = np.concatenate([piece.wav for piece in self.chunks(voice)])
        one, codes = speech.sentences[0], speech.sentences[0].codes
        prompt = voice.speaker.companions.reference
        spec = voice.reference_spectrogram(
            voice.speaker.references.hear(prompt.audio, as_prompt=False).reference.for_style
        )
        wholes = [
            voice.decode(codes[None, None], np.array([one.ids]), spec, noise=noise)
            for noise in (
                np.random.default_rng(seed).standard_normal(
                    (1, voice.config.model.inter_channels, 2 * len(codes))
                )
                for seed in (1, 2)
            )
        ]
        mels = [self.mel(voice, wav) for wav in (speech.wav, spoken, *wholes)]
        streamed, noisy = self.distance(mels[0], mels[1]), self.distance(mels[2], mels[3])
        print(f"log-mel distance: streamed to whole {streamed:.3f}, two noises {noisy:.3f}")
        assert streamed < noisy

    def mel(self, voice: Voice, wav: np.ndarray) -> np.ndarray:
        return np.array(mel_spectrogram(mx.array(wav)[None], voice.config.data))[0]

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        count = min(len(a), len(b))
        return float(np.abs(a[:count] - b[:count]).mean())


class TestWatch:
    CODES = np.random.default_rng(0).integers(0, 1024, 80)

    def test_good_speech_is_left_alone(self) -> None:
        assert find_fault(self.CODES, 40, pace=2.0) is None

    def test_a_phrase_that_comes_back(self) -> None:
        looping = np.concatenate([self.CODES[:30], np.tile(self.CODES[30:50], 4)])
        assert find_fault(looping, 60, pace=2.0).kind == "repeated"
        humming = np.concatenate([self.CODES[:30], np.full(60, 5)])
        assert find_fault(humming, 60, pace=2.0).words == "holds a sound for 2 s"

    def test_words_left_out(self) -> None:
        assert find_fault(self.CODES[:30], 40, pace=2.0).kind == "omitted"

    def test_no_end(self) -> None:
        assert find_fault(self.CODES, 40, has_ended=False).kind == "endless"
        assert find_fault(self.CODES, 15, pace=2.0).kind == "endless"

    def test_a_faulty_sentence_is_drawn_again(
        self, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = generation.generate_batch

        def faulty(model, requests, *rest, **options):
            return [
                Generated(drawn.codes[:20], True) if request.seed == 0 else drawn
                for request, drawn in zip(
                    requests, whole(model, requests, *rest, **options), strict=True
                )
            ]

        monkeypatch.setattr(generation, "generate_batch", faulty)
        (sentence,) = voice.speak(SENTENCE, split="cut0").sentences
        assert sentence.retries == 1
        assert sentence.seed == 1
        assert sentence.fault is None

    def test_a_fault_that_stays_is_said(
        self, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def short(model, requests, *rest, **options):
            return [Generated(self.CODES[:20].astype(np.int32), True) for _ in requests]

        monkeypatch.setattr(generation, "generate_batch", short)
        spoken = voice.speak(SENTENCE, split="cut0")
        assert "words may be missing" in spoken.warnings[0]

    def test_a_stream_that_does_not_end(
        self, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(generation, "limit_of", lambda *_: 12)
        request = SpeechRequest("Hello.", "en", streaming_mode=True)
        (sentence,) = [s for piece in stream(voice.speaker, request, None, ()) for s in piece[1]]
        assert sentence.fault.kind == "endless"

    def test_a_misheard_sentence_is_never_drawn_from_a_seed_again(
        self, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds: list[int] = []

        def short(model, requests, *rest, **options):
            seeds.extend(request.seed for request in requests)
            return [Generated(self.CODES[:20].astype(np.int32), True) for _ in requests]

        monkeypatch.setattr(generation, "generate_batch", short)
        monkeypatch.setattr(voice.speaker, "_verify", lambda wav, text, language: 1.0)
        (sentence,) = voice.speak(SENTENCE, split="cut0").sentences
        assert len(set(seeds)) == len(seeds) == 1 + sentence.retries


class TestReferences:
    def test_without_text_only_the_timbre_is_used(self, voice: Voice, tmp_path: Path) -> None:
        write_wav(tmp_path / "hum.wav", hum(4.0), 32000)
        spoken = voice.speak(SHORT, reference=tmp_path / "hum.wav")
        assert "its text is not known" in spoken.warnings[0]

    def test_a_transcript_that_does_not_fit(self, voice: Voice, tmp_path: Path) -> None:
        write_wav(tmp_path / "hum.wav", hum(9.0), 32000)
        spoken = voice.speak("Hello.", reference=tmp_path / "hum.wav", reference_text="One.")
        assert any("check that the text" in warning for warning in spoken.warnings)

    @pytest.mark.parametrize(
        ("seconds", "words"), [(1.0, "lasts 1.0 s"), (60.0, "lasts 60.0 s"), (None, "no such file")]
    )
    def test_what_cannot_be_a_prompt(
        self, voice: Voice, tmp_path: Path, seconds: float | None, words: str
    ) -> None:
        path = tmp_path / "reference.wav"
        if seconds is not None:
            write_wav(path, hum(seconds), 32000)
        with pytest.raises(UserError, match=r"reference\.wav") as caught:
            voice.speak("Hello.", reference=path, reference_text="Some words that are said.")
        assert words in str(caught.value).lower()

    def test_silence(self, voice: Voice, tmp_path: Path) -> None:
        write_wav(tmp_path / "silent.wav", np.zeros(32000 * 4, np.float32), 32000)
        with pytest.raises(UserError, match="silent"):
            voice.speak("Hello.", reference=tmp_path / "silent.wav", reference_text="Nothing.")

    def test_a_file_that_was_replaced_is_read_again(self, voice: Voice, tmp_path: Path) -> None:
        path = tmp_path / "reference.wav"
        write_wav(path, hum(4.0), 32000)
        before = voice.speak(SHORT, reference=path)
        write_wav(path, hum(5.0, pitch=260.0), 32000)
        assert not np.array_equal(voice.speak(SHORT, reference=path).wav, before.wav)

    def test_a_loud_one_is_lowered_once(self, voice: Voice, tmp_path: Path) -> None:
        loud = 3 * hum(4.0) / np.abs(hum(4.0)).max()
        for name, wav in (("loud", loud), ("half", loud / 2), ("full", loud / 3)):
            soundfile.write(tmp_path / f"{name}.wav", wav, 32000, subtype="FLOAT")
        specs = {
            name: voice.speaker.references.hear(tmp_path / f"{name}.wav", as_prompt=False).spec
            for name in ("loud", "half", "full")
        }
        assert mx.allclose(specs["loud"], 1.5 * specs["full"], rtol=0.02, atol=0.05).item()
        assert mx.allclose(specs["half"], specs["full"], rtol=0.02, atol=0.05).item()

    def test_none_at_all(self, tmp_path: Path) -> None:
        voice = mlx_vits.load("demo")
        voice.save(tmp_path / "voice.safetensors")
        alone = mlx_vits.load(tmp_path / "voice.safetensors", gpt="demo")
        with pytest.raises(UserError, match="--reference WAV --reference-text TEXT"):
            alone.speak("Hello.")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "nothing to speak"),
        ("?!...", {}, "nothing to speak"),
        ("Hello.", {"language": "fr"}, "fr"),
        ("Hello.", {"language": "zh"}, "has heard en alone"),
        ("Hello.", {"split": "cut9"}, "cut9"),
        ("Hello.", {"speed": 0.0}, "speed is 0.0"),
        ("Hello.", {"top_k": 0}, "top_k is 0"),
        ("Hello.", {"batch_size": 0}, "batch_size is 0"),
        ("Hello.", {"reference_text": "words"}, "without a reference"),
        ("Hello [pause 100s] there.", {}, "longer than 60"),
    ],
)
def test_what_cannot_be_said(voice: Voice, text: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        voice.speak(text, **options)


def test_signs_that_are_not_spoken_are_named(voice: Voice) -> None:
    assert any("🎉" in warning for warning in voice.speak("Hello there 🎉.").warnings)


def test_a_stream_warns_of_each_thing_once(voice: Voice, tmp_path: Path) -> None:
    write_wav(tmp_path / "hum.wav", hum(4.0), 32000)
    noticed: list[str] = []
    said = {"reference": tmp_path / "hum.wav", "reference_text": "Some words 🎉 that are said."}
    list(voice.stream(SHORT, **said, warn=noticed.append))
    assert [("🎉" in words) for words in noticed].count(True) == 1


@pytest.mark.parametrize("options", [{"chunk": "word"}, {"speed": 9.0}, {"reference_text": "a"}])
def test_a_stream_that_cannot_be_is_refused_at_once(voice: Voice, options: dict) -> None:
    with pytest.raises(UserError):
        voice.stream(SHORT, **options)


def test_a_t2s_of_another_codebook_is_refused(voice: Voice, tmp_path: Path) -> None:
    folder = Path(voice.speaker.companions.gpt)
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    config = (folder / "config.json").read_text().replace("6d690a", "000000")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="another codebook"):
        mlx_vits.load("demo", gpt=tmp_path).speak("Hello.")


def test_weights_of_eight_bits(voice: Voice, short) -> None:
    light = mlx_vits.load("demo", bits=8)
    spoken = light.speak(SHORT)
    assert light.speaker.gpt.bits == 8
    assert spoken.sentences[0].fault is None
    assert len(spoken.wav) == pytest.approx(len(short.wav), rel=0.5)


def test_a_stream_passes_from_thread_to_thread(voice: Voice) -> None:
    text = f"[pause 0.1s]{SHORT}"
    pieces = voice.stream(text)
    taken = [next(pieces)]  # the pause
    rest = threading.Thread(target=lambda: taken.extend(pieces))
    rest.start()
    rest.join()
    assert np.array_equal(np.concatenate(taken), np.concatenate(list(voice.stream(text))))
