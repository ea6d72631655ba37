"""A voice to speak with: what `mlx_vits.load` returns.

Inputs and outputs are in PyTorch's axes, as upstream's: [batch, channels, time]. Axes: B batch,
K semantic codes, L phonemes, T spectrogram frames, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import read_speech, resample
from mlx_vits.checkpoints.base import load_content_encoder
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.preprocessing.features import speech_features
from mlx_vits.synthesis.arguments import Array
from mlx_vits.synthesis.companions import Companions, check_content_encoder
from mlx_vits.synthesis.decoder import Decoder
from mlx_vits.synthesis.request import SpeechRequest
from mlx_vits.synthesis.sampling import Sampling
from mlx_vits.synthesis.speaking import Speaker, Speech, ask, speak, stream
from mlx_vits.text import clean_text, phonemes_to_ids

Reference = str | Path | Array

_features = on_lasting_thread(speech_features)


@on_lasting_thread
def _read_content_encoder(folder: Path, ssl_dim: int, name: str) -> HubertModel:
    encoder = load_content_encoder(folder)
    check_content_encoder(encoder.config, ssl_dim, name)
    mx.eval(encoder.parameters())  # for other threads
    return encoder


class Voice(Decoder):
    """A generator with its configuration and what it needs to be used.

    Any thread may use it; threads take turns. On a CPU, so may a forked process.

    Args:
        model: the generator.
        info: how far it was trained, in upstream's words.
        name: for messages and files.
        content_encoder: in place of the companions'.
        reference: a recording of the voice, the default style of `convert`; that of `speak` is in
            `companions`.
        speaker_vector: `(1, V)` of that recording, for v2Pro and v2ProPlus.
        companions: finds what `speak` and `convert` need beside all that, when one of them does.

    Raises:
        CheckpointError: the content encoder gives features of another width than the model takes.

    Example:
        >>> import mlx_vits, soundfile
        >>> voice = mlx_vits.load("demo")
        >>> wav, rate = soundfile.read("weights/demo/voice/LJ001-0010.ogg")
        >>> text = "Now, as all books not primarily intended as picture-books consist"
        >>> spoken = voice.convert(wav, rate, text)
        >>> soundfile.write("spoken.wav", spoken, voice.sample_rate)
    """

    def __init__(
        self,
        model: SynthesizerTrn,
        *,
        info: str = "",
        name: str = "voice",
        content_encoder: HubertModel | None = None,
        reference: Path | None = None,
        speaker_vector: np.ndarray | None = None,
        companions: Callable[[], Companions] = Companions,
    ):
        if content_encoder is not None:
            check_content_encoder(content_encoder.config, model.config.reduced_dims.ssl_dim, name)
        super().__init__(model)
        self.info, self.name = info, name
        self._given_encoder, self.reference = content_encoder, reference
        self.speaker_vector = speaker_vector
        self._find_companions = companions

    @cached_property
    def speaker(self) -> Speaker:
        """What `speak` and `stream` work with; built when it is first asked for.

        The two refer to each other: a voice without one, as those that score a training, frees its
        weights as soon as it is dropped.
        """
        return Speaker(self, self.companions)

    @cached_property
    def companions(self) -> Companions:
        """The files that this voice speaks with; found when they are first asked for."""
        return self._find_companions()

    @cached_property
    def content_encoder(self) -> HubertModel | None:
        """What hears recordings, read when it is first asked for; None where there is none.

        Raises:
            CheckpointError: it is damaged, or gives features of another width than the model takes.
        """
        if self._given_encoder is not None:
            return self._given_encoder
        folder, ssl_dim = self.companions.content_encoder, self.config.reduced_dims.ssl_dim
        return None if folder is None else _read_content_encoder(folder, ssl_dim, self.name)

    def require_content_encoder(self) -> HubertModel:
        """Return the content encoder.

        Raises:
            CheckpointError: there is none, or as `content_encoder`.
        """
        if self.content_encoder is None:
            raise CheckpointError(
                f"{self.name}: has no content encoder, with which recordings are heard; fetch it "
                f"with `mlx-vits download {self.version}`, or give its folder: --content-encoder "
                "FOLDER, or mlx_vits.load(..., content_encoder=FOLDER)"
            )
        return self.content_encoder

    def __repr__(self) -> str:
        return f"Voice({self.name!r}, version={self.version!r}, info={self.info!r})"

    def convert(
        self,
        wav: Array,
        sample_rate: int,
        text: str,
        *,
        language: str = "en",
        refer: Reference | Sequence[Reference] | None = None,
        sv_emb: Array | Sequence[Array] | None = None,
        noise_scale: float = 0.5,
        speed: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Speak a recording again in this voice.

        Args:
            wav: `(N,)` mono, full scale 1.0.
            sample_rate: of `wav`, in Hz.
            text: what is said in it.
            language: of the text.
            refer: a recording's path or a linear spectrogram [1, 1025, T] that sets the style, or
                several, whose styles are averaged; by default the run's own reference, otherwise
                the input.
            sv_emb: speaker vector [1, sv_dim] of each reference, for v2Pro and v2ProPlus; a run's
                own reference brings its own.
            noise_scale, speed: see `decode`.
            seed: of the noise.

        Returns:
            `(samples,)` float32 at `sample_rate` of the voice, neither normalised nor clipped.

        Raises:
            CheckpointError: the voice has no content encoder, lacks a speaker vector, or speaks
                NaN or infinity.
            DataError: the recording is silent or too short, or the text cannot be spoken.
        """
        encoder = self.require_content_encoder()
        if sv_emb is None and self.config.model.is_pro:
            sv_emb = self._own_vector(refer)
        audio = np.asarray(wav, dtype=np.float32)
        if audio.ndim != 1 or not np.isfinite(audio).all():
            raise DataError("the recording is not one channel of numbers; give an array (N,)")
        # By way of the voice's rate, as preparation goes, so that both hear the same.
        audio = resample(audio, sample_rate, self.sample_rate)
        features = _features(encoder, audio, self.sample_rate, "the recording")
        phonemes = clean_text(text, language, self.version).phonemes
        spoken = self.speak_features(
            features,
            phonemes_to_ids(phonemes, self.version),
            self._references(refer, audio),
            sv_emb=sv_emb,
            noise_scale=noise_scale,
            speed=speed,
            seed=seed,
        )
        if not np.isfinite(spoken).all():
            raise CheckpointError(
                f"{self.name}: speaks NaN or infinity, its weights are damaged; copy or download "
                "the voice again, or take an earlier one"
            )
        return spoken

    @on_lasting_thread
    def speak(
        self,
        text: str,
        *,
        language: str | None = None,
        reference: str | Path | None = None,
        reference_text: str | None = None,
        reference_language: str | None = None,
        aux_references: Sequence[str | Path] = (),
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        temperature: float = Sampling.temperature,
        repetition_penalty: float = Sampling.repetition_penalty,
        speed: float = 1.0,
        pause: float = SpeechRequest.fragment_interval,
        split: str = SpeechRequest.text_split_method,
        batch_size: int = 1,
        seed: int = 0,
        compat: bool = False,
    ) -> Speech:
        """Read a text aloud.

        Args:
            text: of any length; `[pause 0.8s]` within it is a silence.
            language: "en", or "zh", "ja", "ko", "yue", with English words in it; "all_zh" and its
                like read numbers beside them in that language; "auto" or "auto_yue" where the
                language changes, see `text.segments`; by default that of the voice's own reference.
            reference: a recording of 3 to 10 s to speak like; by default the voice's own.
            reference_text: what it says; without it only its timbre is used.
            reference_language: by default that of the text.
            aux_references: further recordings, whose timbre is averaged with the reference's.
            top_k, top_p, temperature, repetition_penalty: of the draws, see `Sampling`.
            speed: 2.0 halves the length.
            pause: seconds of silence after each sentence.
            split: "cut0" to "cut5", how the text is cut into sentences; see `text_split`.
            batch_size: sentences whose codes are drawn at once.
            seed: the same seed gives the same sound.
            compat: give upstream's result, faults included; see `synthesis/pipeline.py`.

        Raises:
            UserError: something that is needed is missing or damaged, or the text cannot be
                spoken; the message names it and the cure.
        """
        asked = ask(
            self.speaker,
            text,
            language=language,
            reference=reference,
            reference_text=reference_text,
            reference_language=reference_language,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            speed=speed,
            pause=pause,
            split=split,
            seed=seed,
            batch_size=batch_size,
        )
        return speak(self.speaker, *asked, aux_references, compat=compat)

    def stream(
        self,
        text: str,
        *,
        language: str | None = None,
        reference: str | Path | None = None,
        reference_text: str | None = None,
        reference_language: str | None = None,
        aux_references: Sequence[str | Path] = (),
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        temperature: float = Sampling.temperature,
        repetition_penalty: float = Sampling.repetition_penalty,
        speed: float = 1.0,
        pause: float = SpeechRequest.fragment_interval,
        split: str = SpeechRequest.text_split_method,
        seed: int = 0,
        chunk: Literal["pause", "fixed"] = "pause",
        min_chunk: int = SpeechRequest.min_chunk_length,
        overlap: int = SpeechRequest.overlap_length,
        compat: bool = False,
        warn: Callable[[str], None] = lambda _: None,
    ) -> Iterator[np.ndarray]:
        """Read a text aloud, each sentence while it is being made.

        Args:
            chunk: "pause" cuts where speech is most like silence, "fixed" every `min_chunk` codes.
            min_chunk: codes of a chunk, at least; 25 are a second.
            overlap: codes that are decoded again to join two chunks, at most `min_chunk`.
            warn: told in a sentence of what may be wrong, as `Speech.warnings`.
            (others): see `speak`.

        Yields:
            `(N,)` float32 at `sample_rate`.

        Raises:
            UserError: as `speak`; at once where an option is out of range, otherwise from the
                iterator.
        """
        if chunk not in ("pause", "fixed"):
            raise UserError(f"chunk is {chunk!r}; it has to be 'pause' or 'fixed'")
        asked = ask(
            self.speaker,
            text,
            language=language,
            reference=reference,
            reference_text=reference_text,
            reference_language=reference_language,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            speed=speed,
            pause=pause,
            split=split,
            seed=seed,
            streaming_mode=True,
            fixed_length_chunk=chunk == "fixed",
            min_chunk_length=min_chunk,
            overlap_length=overlap,
        )
        asked.request.check()
        pieces = stream(self.speaker, *asked, aux_references, compat=compat, warn=warn)
        return (piece.wav for piece in pieces)

    def _own_vector(self, refer: Any) -> Array:
        if refer is None and self.reference is not None and self.speaker_vector is not None:
            return self.speaker_vector
        raise CheckpointError(
            f"{self.name}: is a {self.version} voice, which needs a speaker vector for its "
            "reference; give sv_emb (--speaker-vector), as in a prepared voice's 7-sv_cn/"
        )

    def _references(self, refer: Any, audio: np.ndarray) -> list[Array]:
        given = list(refer) if isinstance(refer, (list, tuple)) else [refer]
        return [self._reference(one, audio) for one in given]

    def _reference(self, refer: Any, audio: np.ndarray) -> Array:
        if refer is None and self.reference is not None:
            refer = self.reference
        if refer is None:
            return self.reference_spectrogram(audio)
        if isinstance(refer, (str, Path)):
            return self.reference_spectrogram(read_speech(refer, self.sample_rate))
        return refer

    @on_lasting_thread
    def save(self, path: str | Path) -> Path:
        """Write the voice, every tensor under upstream's name and in PyTorch's axes.

        Args:
            path: `.pth` gives the file that GPT-SoVITS opens (fp16, without the posterior
                encoder), `.safetensors` one file with metadata, anything else a folder.

        Returns:
            The path.

        Raises:
            UserError: the file cannot be written.
        """
        path = Path(path)
        write_voice(path, state_of(self.model), self.config, info=self.info, name=self.name)
        return path
