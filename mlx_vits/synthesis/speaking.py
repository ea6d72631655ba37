"""A voice that reads a text aloud: what `Voice.speak` and `Voice.stream` do.

Everything that a voice needs beside its own weights (T2S, content encoder, speaker encoder, BERT)
is read when it is first needed, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.bert_file import find_bert, read_bert
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL, load_recogniser
from mlx_vits.synthesis.companions import (
    Companions,
    StoredReference,
)
from mlx_vits.synthesis.fitting import (
    check_fits,
    check_language,
    language_of,
    mute_code,
)
from mlx_vits.synthesis.gpt import GPT, load_gpt
from mlx_vits.synthesis.hearing import References
from mlx_vits.synthesis.pipeline import Pipeline
from mlx_vits.synthesis.reference import (
    SILENCE_CODES,
)
from mlx_vits.synthesis.request import Piece, Sentence, SpeechRequest
from mlx_vits.synthesis.verifying import Verify, verifier
from mlx_vits.synthesis.watch import CODES_PER_SECOND, PHONEMES_PER_SECOND
from mlx_vits.text.cleaner import resolve_language
from mlx_vits.text.front_end import Reading, read
from mlx_vits.text.lexicon import NO_WORDS, Lexicon, read_lexicon
from mlx_vits.text.segments import segment

if TYPE_CHECKING:
    from mlx_vits.synthesis.voice import Voice

Warn = Callable[[str], None]


@dataclass
class Speech:
    """A spoken text.

    Attributes:
        wav: `(N,)` float32 at `sample_rate`, within full scale.
        sample_rate: Hz.
        sentences: with their phonemes, codes and lengths.
        warnings: sentences about what may be wrong: signs that were not spoken, a sentence that
            seems to lack words, a transcript that does not fit the reference.
    """

    wav: np.ndarray
    sample_rate: int
    sentences: list[Sentence]
    warnings: list[str] = field(default_factory=list)


class Speaker:
    """What `voice` speaks with.

    Args:
        voice: decodes codes.
        companions: where the rest is.

    Attributes:
        lexicon: the user's own pronunciations, see `use_lexicon`.
        references: the recordings that it has spoken like.
    """

    def __init__(self, voice: Voice, companions: Companions):
        self.voice, self.companions = voice, companions
        self.lexicon: Lexicon = NO_WORDS
        self.references = References(voice, companions)
        self._verify: Verify | None = None

    def verify_with_whisper(self, model: str = DEFAULT_MODEL) -> None:
        """Have each sentence checked by Whisper, and said again where it is misheard.

        Raises:
            UserError: the extra `asr` is not installed, or the model cannot be had.
        """
        self._verify = verifier(load_recogniser(model), self.voice.sample_rate)

    def use_lexicon(self, path: str | Path) -> None:
        """Read words that are to be pronounced in the user's own way; see `text.lexicon`.

        Raises:
            DataError: the file cannot be read, or a line of it cannot.
        """
        self.lexicon = read_lexicon(Path(path))

    @cached_property
    def gpt(self) -> GPT:
        """The T2S model, read when first asked for.

        Raises:
            CheckpointError: there is none, it belongs to another version or codebook, or its
                weights cannot be held in the bits that were asked for.
        """
        if self.companions.gpt is None:
            cure = f"fetch one with `mlx-vits download {self.voice.version}`, or give it with --gpt"
            if self.voice.config.is_reduced:
                cure = "give that of the base that the voice was made from, with --gpt"
            raise CheckpointError(
                f"{self.voice.name}: has no T2S model, which turns text into speech; {cure}"
            )
        gpt = load_gpt(self.companions.gpt, version=self.voice.version)
        check_fits(gpt.config, self.voice.model, self.voice.name, self.companions.gpt)
        if self.companions.gpt_bits is None:
            return gpt
        try:
            return gpt.quantize(self.companions.gpt_bits)
        except ValueError as error:
            raise CheckpointError(
                f"{self.companions.gpt}: {error}; leave out --bits (bits in Python)"
            ) from error

    @cached_property
    def _bert(self) -> Any:
        return read_bert(find_bert(self.voice.version))

    def _characters_to_features(self, text: str) -> mx.array:
        features: mx.array = self._bert(text)
        return features

    def _read(self, warn: Warn, text: str, language: str) -> Reading:
        reading = read(
            text,
            language,
            self.voice.version,
            segment=segment,
            characters_to_features=self._characters_to_features,
            lexicon=self.lexicon,
        )
        if reading.unspoken:
            signs = " ".join(dict.fromkeys(reading.unspoken))
            warn(f"not spoken: {signs} (in {_shortened(text)!r})")
        return reading

    def _check_transcript(self, reference: StoredReference, codes: np.ndarray, warn: Warn) -> None:
        try:
            phonemes = len(self._read(warn, reference.text, reference.language).ids)
        except DataError as error:
            raise DataError(
                f"{reference.audio}: what it says cannot be read as {reference.language!r} "
                f"({error}); give --reference-text and --reference-language"
            ) from error
        rate = phonemes * CODES_PER_SECOND / max(1, len(codes) - SILENCE_CODES)
        fewest, most = PHONEMES_PER_SECOND
        if not fewest <= rate <= most:
            warn(
                f"{reference.audio}: {rate:.1f} phonemes a second would be said, too "
                f"{'few' if rate < fewest else 'many'}; check that the text is "
                "what the recording says, all of it and no more"
            )

    def begin(
        self,
        request: SpeechRequest,
        reference: StoredReference | None,
        auxiliary: Sequence[str | Path],
        *,
        compat: bool,
        warn: Warn,
    ) -> Iterator[Piece]:
        """Speak a request piece by piece.

        Args:
            reference: in place of the voice's own.
            auxiliary: further recordings, whose timbre is averaged with the reference's.
            warn: told in a sentence of what may be wrong, as `Speech.warnings`; of each once.

        Raises:
            UserError: something is missing or cannot be read; the message names it and the cure.
        """
        request.check()
        warn = _once(warn)
        language = resolve_language(request.text_lang, self.voice.version)
        request = replace(request, text_lang=language)
        reference = reference or self.companions.reference
        if reference is None:
            raise UserError(
                f"{self.voice.name}: has no reference to speak like; give a recording of 3 to 10 s "
                "and what it says: --reference WAV --reference-text TEXT"
            )
        if self._verify is not None and request.streaming_mode:
            raise UserError("a sentence is checked as a whole; leave out either verify or stream")
        check_language(self.gpt, language, self.voice.name)
        if reference.text.strip():
            spoken = language_of(reference, self.voice.version)
            check_language(self.gpt, spoken, reference.audio, of="the reference's language")
        prompt = self.references.prompt(reference, auxiliary, warn)
        if prompt.codes is not None:
            self._check_transcript(reference, prompt.codes, warn)
        pipeline = Pipeline(
            self.voice,
            self.gpt.model,
            partial(self._read, warn),
            prompt,
            mute_code=mute_code(self.gpt),
            compat=compat,
            verify=self._verify,
            warn=warn,
        )
        return pipeline.run(request.with_prompt(reference.text, reference.language))


def speak(
    speaker: Speaker,
    request: SpeechRequest,
    reference: StoredReference | None,
    auxiliary: Sequence[str | Path],
    *,
    compat: bool,
) -> Speech:
    """Speak a request as a whole."""
    noticed: list[str] = []
    pieces = list(speaker.begin(request, reference, auxiliary, compat=compat, warn=noticed.append))
    sentences = [sentence for piece in pieces for sentence in piece.sentences]
    wav = np.concatenate([piece.wav for piece in pieces] or [np.zeros(0, np.float32)])
    warnings = [*noticed, *_faults(sentences)]
    return Speech(wav, speaker.voice.sample_rate, sentences, warnings)


def stream(
    speaker: Speaker,
    request: SpeechRequest,
    reference: StoredReference | None,
    auxiliary: Sequence[str | Path],
    *,
    compat: bool = False,
    warn: Warn = lambda _: None,
) -> Iterator[Piece]:
    """Speak a request piece by piece, from whichever thread asks for the next one."""
    begin = on_lasting_thread(speaker.begin)
    pieces = begin(request, reference, auxiliary, compat=compat, warn=warn)
    advance = on_lasting_thread(lambda: next(pieces, None))
    while (piece := advance()) is not None:
        for words in _faults(piece.sentences):
            warn(words)
        yield piece


class Asked(NamedTuple):
    """What a user asks for: a request, and the reference in place of the voice's own."""

    request: SpeechRequest
    reference: StoredReference | None


def ask(
    speaker: Speaker,
    text: str,
    *,
    language: str | None,
    reference: str | Path | None,
    reference_text: str | None,
    reference_language: str | None,
    speed: float,
    pause: float,
    split: str,
    **others: Any,
) -> Asked:
    """Build a request from the options of `Voice.speak`, where they are described.

    Args:
        others: further fields of `SpeechRequest`.

    Raises:
        UserError: a reference's text is given without its recording.
    """
    if reference is None and reference_text is not None:
        raise UserError("reference_text is given without a reference; give its recording as well")
    language = language or own_language(speaker)
    given = None
    if reference is not None:
        spoken = reference_language or language
        given = StoredReference(str(reference), reference_text or "", spoken)
    request = SpeechRequest(
        text,
        language,
        speed_factor=speed,
        fragment_interval=pause,
        text_split_method=split,
        **others,
    )
    return Asked(request, given)


def _faults(sentences: Sequence[Sentence]) -> list[str]:
    """Describe what still seems wrong with sentences, after they were tried again."""
    return [
        f"{_shortened(sentence.text)!r} {sentence.fault.words}"
        for sentence in sentences
        if sentence.fault is not None
    ]


def own_language(speaker: Speaker) -> str:
    """Return the language that a voice's reference speaks, "en" where it has none."""
    stored = speaker.companions.reference
    return "en" if stored is None else language_of(stored, speaker.voice.version)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _once(warn: Warn) -> Warn:
    """Wrap `warn` so that it is told of nothing twice: a reference is read more often than once."""
    told: set[str] = set()

    def warn_once(words: str) -> None:
        if words not in told:
            told.add(words)
            warn(words)

    return warn_once
