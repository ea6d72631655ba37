"""What was found out about a voice's data, as plain values.

The JSON output has the attributes of these classes for keys, which stay as they are; new ones may
come. Names are those of clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mlx_vits.tools.check.sound import SoundFacts
from mlx_vits.tools.pages import Remark

Word = Literal["good", "usable", "too little", "broken"]


class Spread(NamedTuple):
    """How one number varies over the clips."""

    lowest: float
    median: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(min(values), float(np.median(values)), max(values))


class FeatureFacts(NamedTuple):
    """The SSL features of one clip."""

    width: int  # channels
    frames: int
    spec_frames: int  # of the spectrogram that they go with
    is_finite: bool

    @property
    def is_aligned(self) -> bool:
        """GPT-SoVITS's features have as many frames as the spectrogram, or one fewer."""
        return self.spec_frames - self.frames in (0, 1)


class LeftOut(NamedTuple):
    """A clip that is not trained on."""

    name: str  # of the clip, or of its line
    rule: str  # that decided it, in a few words; clips are counted by it
    words: str  # the reason


@dataclass
class ClipFacts:
    """One clip, filled in as it is read."""

    name: str  # of the file
    held_out: bool  # whether it is only listened to
    text: str  # what is said; normalised where the clip is prepared
    language: str  # its code, "" where it is not known
    seconds: float = 0.0  # 0 where it cannot be read
    phonemes: int = 0  # marks included, as GPT-SoVITS counts them
    unknown: int = 0  # phonemes that are UNK
    guessed: tuple[str, ...] = ()  # words that neither dictionary nor rules can pronounce
    unspoken: tuple[str, ...] = ()  # parts of the text without phonemes; "()" once prepared
    sound: SoundFacts | None = None  # None where the recording cannot be read
    features: FeatureFacts | None = None  # None where there are none, or they cannot be read
    vector_width: int | None = None  # of the speaker vector; None as above
    vector_fault: str = ""  # what is wrong with it
    sampler_frames: int = 0  # as the sampler counts them, from the size of the prepared file
    digest: str = ""  # of the samples
    left_out: LeftOut | None = None  # why it is not trained on
    faults: tuple[str, ...] = ()  # what training would stop at
    likeness: float | None = None  # cosine of its speaker vector and the mean of all

    @property
    def phonemes_per_second(self) -> float:
        return self.phonemes / self.seconds if self.seconds else 0.0

    @property
    def is_trained_on(self) -> bool:
        return not self.held_out and self.left_out is None


class Bin(NamedTuple):
    """How many clips have a length within a range."""

    label: str
    clips: int


@dataclass(frozen=True)
class PartFacts:
    """The clips to train on, or those only to listen to."""

    clips: int
    seconds: float  # in all
    lengths: Spread | None
    histogram: tuple[Bin, ...]  # of the lengths


@dataclass(frozen=True)
class PhonemeFacts:
    """The phonemes of the clips to train on."""

    total: int
    symbols: int  # different ones
    version_symbols: int  # different ones that the version has
    inventory: int | None  # phonemes of the language, stress merged; None where not known here
    missing: tuple[str, ...]  # phonemes of it that never occur
    rare: tuple[str, ...]  # phonemes of it that occur once or twice
    unknown: int  # UNK among all
    unknown_in: tuple[str, ...]
    guessed: dict[str, int]  # words whose sound was guessed, with their counts
    unspoken: dict[str, int]  # parts of the texts without phonemes, with their counts


@dataclass(frozen=True)
class RateFacts:
    """How fast the clips of one language are spoken."""

    clips: int
    phonemes: Spread  # a second
    characters: Spread  # a second
    correlation: float | None  # of phonemes and seconds over the clips; None: it says nothing
    outliers: tuple[str, ...]  # far from the median
    outside: tuple[str, ...]  # dropped by GPT-SoVITS's GPT stage for their rate


@dataclass(frozen=True)
class SoundSummary:
    """The recordings to train on; `outliers.py` has the thresholds."""

    rates: dict[str, int]  # clips by sample rate
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
    one_channel: tuple[str, ...]  # of which one channel alone is read


@dataclass(frozen=True)
class AlignmentFacts:
    """Features against spectrograms, of a prepared folder."""

    widths: dict[str, int]  # clips by width of their features
    same: int  # clips with as many frames in both
    one_more: int  # clips whose spectrogram has one frame more, which is right too
    misaligned: tuple[str, ...]  # the others
    not_finite: tuple[str, ...]
    odd_files: tuple[str, ...]  # recordings in another form than 32 kHz mono 16-bit WAV


@dataclass(frozen=True)
class VectorSummary:
    """The speaker vectors of a prepared folder."""

    clips: int  # that have one
    widths: dict[str, int]  # clips by width
    mean_cosine: float | None  # of all pairs; None with fewer than two
    outliers: tuple[str, ...]  # unlike the others


class Duplicate(NamedTuple):
    """Clips that are the same."""

    what: Literal["recording", "text"]
    names: tuple[str, ...]
    same_text: bool  # whether those of one recording also have one text
    across: bool  # whether some are trained on and some held out


@dataclass(frozen=True)
class Verdict:
    """What to expect."""

    word: Word
    status: int  # that the command exits with: 0 where it can be trained on, else 2
    summary: str  # a sentence
    remarks: tuple[Remark, ...]  # problems first


@dataclass(frozen=True)
class VoiceFacts:
    """Everything about a voice's data."""

    path: str
    kind: str  # in words
    is_prepared: bool  # otherwise features and speaker vectors are still to be made
    version: str  # of the phonemes, "" where nothing states it
    content_encoder: str  # that made the features, "" where nothing states it
    batch_size: int  # clips a step
    epoch_steps: int
    versions: dict[str, str]  # why each cannot be trained on the folder, "" where it can
    training: PartFacts
    held_out: PartFacts
    phonemes: PhonemeFacts
    rates: dict[str, RateFacts]  # by language
    sound: SoundSummary | None  # None where no recording can be read
    alignment: AlignmentFacts | None  # None where the folder is not prepared
    vectors: VectorSummary | None  # None where the folder is not prepared
    clips: tuple[ClipFacts, ...]  # all that were looked at
    left_out: tuple[LeftOut, ...]
    duplicates: tuple[Duplicate, ...]
    note: str  # on the folder itself
