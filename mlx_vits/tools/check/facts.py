"""What was found out about a voice's data, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mlx_vits.tools.check.sound import SoundFacts

Level = Literal["problem", "note"]
Word = Literal["good", "usable", "too little", "broken"]


class Spread(NamedTuple):
    """Of one number per clip."""

    lowest: float
    median: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        """None where there are no values."""
        if not values:
            return None
        return cls(min(values), float(np.median(values)), max(values))


class FeatureFacts(NamedTuple):
    """The SSL features of one clip.

    Attributes:
        width: channels.
        frames: of the features.
        spec_frames: of the spectrogram that they go with.
        is_finite: whether all are numbers.
    """

    width: int
    frames: int
    spec_frames: int
    is_finite: bool

    @property
    def is_aligned(self) -> bool:
        """GPT-SoVITS's features have as many frames, or one fewer."""
        return self.spec_frames - self.frames in (0, 1)


class LeftOut(NamedTuple):
    """A clip that is not trained on.

    Attributes:
        name: of the clip, or of the line.
        rule: that decided it, in a few words; clips are counted by it.
        words: the reason.
    """

    name: str
    rule: str
    words: str


@dataclass(frozen=True)
class ClipFacts:
    """One clip.

    Attributes:
        name: of the file.
        held_out: whether it is only listened to.
        text: what is said; as it is read aloud where the clip is prepared.
        language: its code, "" where it is not known.
        seconds: its length, 0 where it cannot be read.
        phonemes: how many, marks included, as GPT-SoVITS counts them.
        unknown: how many of them are UNK.
        guessed: words whose sound neither dictionary nor rules know.
        unspoken: parts of the text that the phonemes do not say; known before it is prepared.
        sound: None where the recording cannot be read.
        features: None where there are none, or they cannot be read.
        vector_width: of the speaker vector; None where there is none, or it cannot be read.
        vector_fault: what is wrong with it, or "".
        sampler_frames: as the sampler counts them, from the size of the prepared file.
        digest: of the samples.
        left_out: why it is not trained on; None where it is.
        faults: what stops training when it comes to the clip, in sentences.
        likeness: cosine of its speaker vector and the mean of all, None where there is none.
    """

    name: str
    held_out: bool
    text: str
    language: str
    seconds: float = 0.0
    phonemes: int = 0
    unknown: int = 0
    guessed: tuple[str, ...] = ()
    unspoken: tuple[str, ...] = ()
    sound: SoundFacts | None = None
    features: FeatureFacts | None = None
    vector_width: int | None = None
    vector_fault: str = ""
    sampler_frames: int = 0
    digest: str = ""
    left_out: LeftOut | None = None
    faults: tuple[str, ...] = ()
    likeness: float | None = None

    @property
    def phonemes_per_second(self) -> float:
        return self.phonemes / self.seconds if self.seconds else 0.0


class Bin(NamedTuple):
    """Of a histogram: how many clips have lengths of such a range."""

    label: str
    clips: int


@dataclass(frozen=True)
class PartFacts:
    """The clips to train on, or those only to listen to.

    Attributes:
        clips: how many.
        seconds: in all.
        lengths: of one, in seconds.
        histogram: of the lengths.
    """

    clips: int
    seconds: float
    lengths: Spread | None
    histogram: tuple[Bin, ...]


@dataclass(frozen=True)
class PhonemeFacts:
    """The phonemes of the clips to train on.

    Attributes:
        total: how many.
        symbols: how many different ones.
        version_symbols: how many different ones the version knows.
        inventory: how many different phonemes the language has, stress merged; None where that is
            not known here.
        missing: those that never occur.
        rare: those that occur once or twice.
        unknown: how many are UNK.
        unknown_in: names of the clips with UNK.
        guessed: words whose sound was guessed, and how often they occur.
        unspoken: parts of the texts that the phonemes do not say, and how often they occur.
    """

    total: int
    symbols: int
    version_symbols: int
    inventory: int | None
    missing: tuple[str, ...]
    rare: tuple[str, ...]
    unknown: int
    unknown_in: tuple[str, ...]
    guessed: dict[str, int]
    unspoken: dict[str, int]


@dataclass(frozen=True)
class RateFacts:
    """How fast the clips of one language are spoken.

    Attributes:
        clips: how many.
        phonemes: a second.
        characters: a second.
        correlation: of phonemes and seconds over the clips; None where it says nothing.
        outliers: names of clips far from the median.
        outside: names of clips that the GPT stage of GPT-SoVITS drops for their rate.
    """

    clips: int
    phonemes: Spread
    characters: Spread
    correlation: float | None
    outliers: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class SoundSummary:
    """The recordings to train on.

    Attributes:
        rates: how many clips have which sample rate.
        clipped, noisy, narrow, off_level, offset, wrapped: names of clips, see `outliers.py`.
        one_channel: names of clips of which one channel alone is read.
    """

    rates: dict[str, int]
    peak: Spread
    rms_db: Spread
    range_db: Spread
    noise_db: Spread
    dc_offset: Spread
    bandwidth_hz: Spread
    clipped: tuple[str, ...]
    noisy: tuple[str, ...]
    narrow: tuple[str, ...]
    off_level: tuple[str, ...]
    offset: tuple[str, ...]
    wrapped: tuple[str, ...]
    one_channel: tuple[str, ...]


@dataclass(frozen=True)
class AlignmentFacts:
    """Features against spectrograms, of a prepared folder.

    Attributes:
        widths: how many clips have features how wide.
        same: clips with as many frames in both.
        one_more: clips whose spectrogram has one frame more, which is as it should be too.
        misaligned: names of the others.
        not_finite: names of clips whose features hold something that is no number.
        odd_files: names of recordings in another form than 32 kHz mono 16-bit WAV.
    """

    widths: dict[str, int]
    same: int
    one_more: int
    misaligned: tuple[str, ...]
    not_finite: tuple[str, ...]
    odd_files: tuple[str, ...]


@dataclass(frozen=True)
class VectorSummary:
    """The speaker vectors of a prepared folder.

    Attributes:
        clips: how many have one.
        widths: how many clips have vectors how wide.
        mean_cosine: of all pairs; None with fewer than two.
        outliers: names of clips unlike the others.
    """

    clips: int
    widths: dict[str, int]
    mean_cosine: float | None
    outliers: tuple[str, ...]


class Duplicate(NamedTuple):
    """Clips that are the same.

    Attributes:
        what: "recording" or "text".
        names: of the clips.
        same_text: whether those of one recording also have one text.
        across: whether some are trained on and some held out.
    """

    what: Literal["recording", "text"]
    names: tuple[str, ...]
    same_text: bool
    across: bool


class Remark(NamedTuple):
    """One or two sentences.

    Attributes:
        level: a problem makes a worse voice; a note does not, or not by much.
        words: with what to do.
    """

    level: Level
    words: str


@dataclass(frozen=True)
class Verdict:
    """What to expect.

    Attributes:
        word: in one word.
        status: that the command exits with: 0 where it can be trained on, else 2.
        summary: a sentence.
        remarks: problems first.
    """

    word: Word
    status: int
    summary: str
    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class VoiceFacts:
    """Everything about a voice's data.

    Attributes:
        path: as it was found.
        kind: in words.
        is_prepared: otherwise features and speaker vectors are still to be made.
        version: of the phonemes, "" where nothing states it.
        content_encoder: that made the features, "" where nothing states it.
        batch_size: clips a step.
        epoch_steps: steps of one epoch at that batch size.
        versions: whether each can be trained from the folder: "" or the reason why not.
        training, held_out: the two parts.
        sound: None where no recording can be read.
        alignment, vectors: None where the folder is not prepared.
        clips: all that were looked at.
        left_out: those that are not trained on.
        duplicates: clips that are the same.
        note: what is to be said of the folder itself, or "".
    """

    path: str
    kind: str
    is_prepared: bool
    version: str
    content_encoder: str
    batch_size: int
    epoch_steps: int
    versions: dict[str, str]
    training: PartFacts
    held_out: PartFacts
    phonemes: PhonemeFacts
    rates: dict[str, RateFacts]
    sound: SoundSummary | None
    alignment: AlignmentFacts | None
    vectors: VectorSummary | None
    clips: tuple[ClipFacts, ...]
    left_out: tuple[LeftOut, ...]
    duplicates: tuple[Duplicate, ...]
    note: str = ""
