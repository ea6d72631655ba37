"""Whether a good voice can be expected of this data, in words.

| verdict | when | exit status |
| --- | --- | --- |
| good | about a minute, and no problem | 0 |
| usable | it can be trained on, but something makes a worse voice | 0 |
| too little | under 30 s | 0 |
| broken | training would refuse it, or stop at a clip | 2 |

Thresholds on single clips are in `outliers.py` and `phonemes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_vits.preprocessing.language_check import ReadText, judge_languages
from mlx_vits.preprocessing.prepared import TEXT_FILE
from mlx_vits.preprocessing.recordings import LONGEST_CLIP_SECONDS
from mlx_vits.tools.check.facts import Verdict, VoiceFacts, Word
from mlx_vits.tools.check.phonemes import FASTEST, LEAST_CORRELATION, SLOWEST
from mlx_vits.tools.pages import Level, Remark, are, count, name_some, note, problem, problems_first

# GPT-SoVITS asks for one minute; the demo's voice has 58 s.
ENOUGH_SECONDS = 50.0
LITTLE_SECONDS = 30.0
# LJ Speech ends at 11 kHz, Kokoro's voices at 12, kathleen just below 16, where 32 kHz end.
DULL_HZ = 14000.0
VERY_DULL_HZ = 9000.0  # what was recorded at 16 kHz ends at 8
# A share of clips with one fault, above which it is the voice's own.
_MANY = 0.1
_UNKNOWN_SHARE = 0.01  # of phonemes
# A minute of a reader holds 36 to 38 of the 39 English phonemes, 20 s hold 31 to 36.
_FEW_PHONEMES = 33

_CANNOT, _CAN = 2, 0  # exit statuses


def judge(facts: VoiceFacts) -> Verdict:
    """Weigh everything that speaks for and against a good voice."""
    stops = list(_stops(facts))
    remarks = [*stops, *_on_amount(facts), *_on_sound(facts), *_on_rates(facts)]
    remarks += [*_on_texts(facts), *_on_duplicates(facts), *_on_clips(facts), *_on_versions(facts)]
    if facts.note:
        remarks.append(note(facts.note))
    word = _word(facts, bool(stops), any(remark.level == "problem" for remark in remarks))
    status = _CANNOT if word == "broken" else _CAN
    return Verdict(word, status, _summary(facts, word), tuple(problems_first(remarks)))


def _word(facts: VoiceFacts, stops: bool, has_problem: bool) -> Word:
    if stops:
        return "broken"
    if facts.training.seconds < LITTLE_SECONDS:
        return "too little"
    return "usable" if has_problem else "good"


def _summary(facts: VoiceFacts, word: Word) -> str:
    amount = words_for(facts.training.seconds)
    if word == "broken":
        return "Training would refuse it as it stands."
    if word == "too little":
        return f"{amount} of speech: expect the timbre to move toward the speaker, and no more."
    if word == "usable":
        return f"{amount} of speech to train on, with the reservations below."
    return f"{amount} of speech to train on, and nothing here stands in the way of a good voice."


def words_for(seconds: float) -> str:
    """Return a length of time as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _clips_are(names: Sequence[str], fault: str) -> str:
    """How many clips have a fault; `%s` in its words are the first of their names."""
    return f"{are(len(names), 'clip')} {fault % name_some(names)}"


def _level(number: int, of: int) -> Level:
    """A fault of many clips is a problem, of a few a note."""
    return "problem" if number > _MANY * of else "note"


def _stops(facts: VoiceFacts) -> Iterable[Remark]:
    """What keeps training from running to its end."""
    if not facts.training.clips:
        reason = f": {facts.left_out[0].words}" if facts.left_out else ""
        yield problem(f"No clip is left to train on{reason}.")
        return
    faulty = [clip for clip in facts.clips if clip.faults and clip.left_out is None]
    if faulty:
        clips = f"{count(len(faulty), 'clip')} ({name_some([clip.name for clip in faulty])})"
        yield problem(
            f"Training would stop at {clips}, for the reasons above. "
            f"Prepare the voice again, or take the lines out of {TEXT_FILE}."
        )
    widths = facts.alignment.widths if facts.alignment is not None else {}
    if len(widths) > 1:
        shown = ", ".join(f"{width} in {clips}" for width, clips in widths.items())
        yield problem(
            f"The features differ in width ({shown}), so they come from different content "
            "encoders; prepare the voice again with one base."
        )
    if facts.versions and all(facts.versions.values()):
        likely = facts.versions.get(facts.version or "v2") or next(iter(facts.versions.values()))
        is_loaders = any(clip.left_out is not None for clip in facts.clips)
        goes_on = " GPT-SoVITS leaves such clips out without a word." if is_loaders else ""
        yield problem(f"It cannot be trained on here: {likely.rstrip('.')}.{goes_on}")


def _on_amount(facts: VoiceFacts) -> Iterable[Remark]:
    seconds = facts.training.seconds
    if not facts.training.clips:
        return
    if seconds < ENOUGH_SECONDS:
        yield problem(
            f"{seconds:.0f} s are {'little' if seconds < LITTLE_SECONDS else 'a bit short'}: about "
            "a minute of clean speech makes a voice, and a few minutes a better one. Record more."
        )
    if not facts.held_out.clips:
        yield note(
            "No clip is held out, so the run can only be judged on clips that it was trained on."
        )
    long = [clip.name for clip in facts.clips if clip.seconds > LONGEST_CLIP_SECONDS]
    if long:
        clips = f"{count(len(long), 'clip')} of more than {LONGEST_CLIP_SECONDS:.0f} s"
        yield note(
            f"{clips} ({name_some(long)}): they take a lot of memory. Clips of 3 to 10 s work best."
        )


def _on_sound(facts: VoiceFacts) -> Iterable[Remark]:
    sound = facts.sound
    if sound is None:
        return
    highest = sound.bandwidth_hz.median
    if highest < DULL_HZ:
        very = highest < VERY_DULL_HZ
        yield Remark(
            "problem" if very else "note",
            f"There is nothing above {highest / 1000:.1f} kHz, where 32 kHz audio reaches 16: the "
            f"voice will sound {'muffled' if very else 'as dull as these recordings'}. "
            "Record or export at 44.1 or 48 kHz, without strong compression.",
        )
    for names, fault in (
        (sound.noisy, "noisy (%s): noise is learned like the voice; record where it is quiet."),
        (sound.clipped, "clipped (%s): that is learned too; record at a lower level."),
        (sound.wrapped, "crackling (%s): samples ran over 16 bits; export at a lower level."),
    ):
        if names:
            level = _level(len(names), facts.training.clips)
            yield Remark(level, _clips_are(names, fault))
    for names, fault in (
        (sound.narrow, "duller than the others (%s): recorded or compressed another way?"),
        (sound.off_level, "much louder or quieter than the others (%s): from another session?"),
        (sound.offset, "off centre (%s), a DC offset: a cheap sound card, usually harmless."),
        (
            sound.one_channel,
            "read from one channel alone (%s): the average of all would lose most of the voice.",
        ),
    ):
        if names:
            yield note(_clips_are(names, fault))


def _on_rates(facts: VoiceFacts) -> Iterable[Remark]:
    for language, rate in facts.rates.items():
        where = f" in {language}" if len(facts.rates) > 1 else ""
        if rate.correlation is not None and rate.correlation < LEAST_CORRELATION:
            yield problem(
                f"The transcripts{where} do not fit the recordings: long texts belong to short "
                f"clips (correlation {rate.correlation:.2f}, where right ones reach 0.9). Check "
                "whether lines were shifted or mixed up."
            )
        if rate.outliers:
            speeds = {clip.name: clip.phonemes_per_second for clip in facts.clips}
            named = [f"{name} at {speeds[name]:.1f}" for name in rate.outliers]
            usual = f"{rate.phonemes.median:.1f} phonemes a second{where}"
            fault = f"far from the usual {usual} (%s): listen, and check the transcript."
            yield Remark(_level(len(named), rate.clips), _clips_are(named, fault))
        if rate.outside:
            usual = f"{SLOWEST:.0f} to {FASTEST:.0f} phonemes a second"
            fault = f"outside of {usual} (%s): GPT-SoVITS's GPT stage leaves them out."
            yield note(_clips_are(rate.outside, fault))


def _on_texts(facts: VoiceFacts) -> Iterable[Remark]:
    texts = [
        ReadText(clip.name, clip.text, clip.language, len(clip.guessed))
        for clip in facts.clips
        if clip.is_trained_on and clip.language
    ]
    for finding in judge_languages(texts):
        yield Remark(finding.level, finding.words)
    spoken = facts.phonemes
    if spoken.unknown:
        yield Remark(
            "problem" if spoken.unknown > _UNKNOWN_SHARE * spoken.total else "note",
            f"{count(spoken.unknown, 'sound')} unknown (UNK), in "
            f"{name_some(spoken.unknown_in)}: write what is said there in letters of the language.",
        )
    if spoken.unspoken:
        yield note(
            f"The phonemes leave out {name_some(list(spoken.unspoken))}: write it as it is said."
        )
    if spoken.inventory is not None and spoken.inventory - len(spoken.missing) < _FEW_PHONEMES:
        yield note(
            f"{len(spoken.missing)} of {spoken.inventory} English phonemes never occur; the voice "
            "keeps the base's way of saying them. More varied sentences would help."
        )


def _on_duplicates(facts: VoiceFacts) -> Iterable[Remark]:
    texts = [same for same in facts.duplicates if same.what == "text"]
    for same in facts.duplicates:
        if same.what == "recording":
            words = f"{name_some(same.names)} are the same recording"
            if not same.same_text:
                yield problem(f"{words} with different texts: one of them is wrong.")
            elif same.across:
                yield problem(
                    f"{words}, trained on and held out: the score would be better than the voice. "
                    "Take one out."
                )
            else:
                yield note(f"{words}; one of them is enough.")
    if texts:
        yield note(
            f"{count(len(texts), 'sentence')} said more than once "
            f"({name_some([name for same in texts for name in same.names])}): right if recorded "
            "more than once, else a transcript is wrong."
        )


def _on_clips(facts: VoiceFacts) -> Iterable[Remark]:
    if facts.left_out and facts.training.clips:
        names = [left_out.name for left_out in facts.left_out]
        yield Remark(
            _level(len(names), facts.training.clips + facts.held_out.clips),
            _clips_are(names, "left out (%s); the reasons are above."),
        )
    vectors = facts.vectors
    if vectors is not None and vectors.outliers:
        fault = "unlike the others by the speaker vectors (%s): listen for another speaker."
        yield note(_clips_are(vectors.outliers, fault))


def _on_versions(facts: VoiceFacts) -> Iterable[Remark]:
    reason = facts.versions.get(facts.version, "")
    vectors = facts.vectors
    if reason and not all(facts.versions.values()):
        yield problem(
            f"It was prepared for {facts.version}, which cannot be trained on it: {reason}."
        )
    elif vectors is not None and 0 < vectors.clips < len(facts.clips):
        yield note(
            f"{vectors.clips} of {len(facts.clips)} clips have a whole speaker vector; v2Pro and "
            "v2ProPlus need one for each."
        )
