"""Text to speech from end to end: sentences, T2S, decoding, and what is done to the sound.

With `compat` the result is upstream's to the sample, faults included; without it

* a sentence is decoded by itself, whatever else is in its batch,
* a sentence that T2S seems to have got wrong is drawn again from another seed (see `watch`),
* a sentence that is too loud lowers the level for good, so that no step is heard between two, and
  a click only its surroundings,
* sentences begin and end with a short fade,
* a streamed code is new in one chunk only, and the last chunk is joined as the others are,
* a streamed chunk is decoded with some of what precedes it, so that the overlap of two fits.

A code's noise depends on its seed and its place alone, so that a sentence sounds alike, streamed or
not.

Nothing is read from disk here and nothing printed: all parts are arguments of `Pipeline`.

Source: GPT-SoVITS `TTS_infer_pack/TTS.py`. Axes: N samples, K codes, L phonemes, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.config import BERT_CHANNELS
from mlx_vits.errors import CheckpointError
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis import generation
from mlx_vits.synthesis.buckets import batch_sentences
from mlx_vits.synthesis.generation import MUTE_CODE, Chunk, Generated
from mlx_vits.synthesis.joining import ChunkJoiner
from mlx_vits.synthesis.noise import draw_noise
from mlx_vits.synthesis.reference import SILENCE_CODES
from mlx_vits.synthesis.request import Piece, Prompt, Sentence, SpeechRequest
from mlx_vits.synthesis.sentences import FrontEnd, SentenceReader
from mlx_vits.synthesis.sound import Level, fade_ends
from mlx_vits.synthesis.text_split import finish_prompt
from mlx_vits.synthesis.verifying import GOOD_ENOUGH, Verify
from mlx_vits.synthesis.watch import Fault, find_fault, find_loop

if TYPE_CHECKING:
    from mlx_vits.synthesis.voice import Voice

NOISE_SCALE = 0.5
RETRIES = 2
_SHORT_CHUNK = 10  # codes; a shorter chunk is decoded with more of what precedes it
_CONTEXT = 6  # codes before the overlap that a chunk is decoded with

Noise = Callable[[tuple[int, ...], int], mx.array]


class Pipeline:
    """Speak texts with a voice and a T2S.

    Args:
        voice: decodes codes.
        t2s: draws codes.
        front_end: text and language to phonemes and features.
        prompt: of the reference.
        noise: `(shape, index)` to standard normal noise, `index` counting the decodings of a
            request; by default `draw_noise` of the sentence's seed.
        mute_code: the code of silence, at which streamed chunks are cut.
        compat: give upstream's result, see above.
        retries: how often a sentence is drawn again.
        verify: tells from a sentence's sound how much of it is misheard; not used in streaming.
        warn: told of a sentence that is left out because nothing in it can be spoken; without it,
            and with `compat`, such a sentence is an error.
    """

    def __init__(
        self,
        voice: Voice,
        t2s: Text2SemanticDecoder,
        front_end: FrontEnd,
        prompt: Prompt,
        *,
        noise: Noise | None = None,
        mute_code: int = MUTE_CODE,
        compat: bool = False,
        retries: int = RETRIES,
        verify: Verify | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        self._voice, self._t2s, self._front_end, self._prompt = voice, t2s, front_end, prompt
        self._given_noise, self._mute_code = noise, mute_code
        self._compat, self._retries = compat, 0 if compat else retries
        self._verify, self._warn = (None, None) if compat else (verify, warn)
        self._code_samples = voice.model.decoded_frames(1) * voice.config.data.hop_length
        self._level, self._decodings = Level(voice.sample_rate), 0

    def run(self, request: SpeechRequest) -> Iterator[Piece]:
        """Speak a text.

        Yields:
            One piece for the whole text; for each batch if `return_fragment`; for each chunk and
            each silence if `streaming_mode`. A silence after what is left out at the end is a piece
            of its own.

        Raises:
            UserError: an option is out of range, or the text has nothing to speak.
            DataError: a text cannot be read in its language.
            CheckpointError: a model computes NaN or infinity.
        """
        request.check()
        self._level = Level(self._voice.sample_rate, per_piece=self._compat)
        self._decodings = 0
        context = self._context(request)
        reader = SentenceReader(request, self._front_end, compat=self._compat, warn=self._warn)
        sentences = reader.read()
        if request.streaming_mode:
            for sentence in sentences:
                yield from self._stream(sentence, context)
        elif request.return_fragment:
            while batch := list(islice(sentences, request.batch_size)):
                parts = self._speak(batch, context)
                yield Piece(np.concatenate([self._finished(part) for part in parts]), batch)
        else:
            yield self._speak_whole(list(sentences), context)
        if reader.owed_pause:
            yield Piece(_silence(reader.owed_pause, self._voice.sample_rate), [])

    def _context(self, request: SpeechRequest) -> _Context:
        if self._prompt.codes is None or not request.prompt_text.strip():
            return _Context(request, [], None, None)
        text = finish_prompt(request.prompt_text, request.prompt_lang, compat=self._compat)
        reading = self._front_end(text, request.prompt_lang)
        return _Context(request, reading.ids, reading.features, mx.array(self._prompt.codes))

    def _speak_whole(self, sentences: list[Sentence], context: _Context) -> Piece:
        request = context.request
        batches = batch_sentences(
            [sentence.length for sentence in sentences],
            request.batch_size,
            threshold=request.batch_threshold,
            by_length=request.split_bucket and request.speed_factor == 1,
        )
        parts: dict[int, _Part] = {}
        for batch in batches:
            for number, part in zip(
                batch, self._speak([sentences[i] for i in batch], context), strict=True
            ):
                parts[number] = part
        self._level.foresee(parts[number].wav for number in range(len(sentences)))
        finished = [self._finished(parts[number]) for number in range(len(sentences))]
        return Piece(np.concatenate(finished or [np.zeros(0, np.float32)]), sentences)

    def _speak(self, batch: list[Sentence], context: _Context) -> list[_Part]:
        """Draw the codes of a batch, and decode them."""
        self._draw(batch, context)
        if self._compat and context.request.speed_factor == 1:
            wavs = self._decode_together(batch, context)
        else:
            wavs = [self._decode_verified(sentence, context) for sentence in batch]
        for sentence, wav in zip(batch, wavs, strict=True):
            sentence.samples = len(wav)
        return [_Part(wav, sentence) for wav, sentence in zip(wavs, batch, strict=True)]

    def _draw(self, batch: list[Sentence], context: _Context) -> None:
        """Draw the codes of each sentence, again while they seem wrong."""
        for sentence, drawn in zip(batch, self._drawn(batch, context), strict=True):
            tries = [_Try(drawn, sentence.seed, context.fault(sentence, drawn))]
            while tries[-1].fault and len(tries) <= self._retries:
                sentence.seed += 1
                (drawn,) = self._drawn([sentence], context)
                tries.append(_Try(drawn, sentence.seed, context.fault(sentence, drawn)))
            best = min(tries, key=lambda one: _BADNESS[one.fault.kind if one.fault else ""])
            sentence.codes, sentence.seed, sentence.fault = best.drawn.codes, best.seed, best.fault
            sentence.retries = len(tries) - 1

    def _drawn(self, batch: list[Sentence], context: _Context) -> list[Generated]:
        rows = [context.row(sentence) for sentence in batch]
        common = (context.prompt, context.request.sampling)
        one, all_ = generation.generate, generation.generate_batch
        try:
            if context.request.parallel_infer:
                return all_(self._t2s, rows, *common, compat=self._compat)
            return [one(self._t2s, row, *common, compat=self._compat) for row in rows]
        except FloatingPointError as error:
            raise self._damaged("its T2S model") from error

    def _decode(
        self, codes: np.ndarray, ids: Sequence[int], seed: int, context: _Context
    ) -> np.ndarray:
        speed = context.request.speed_factor
        wav = self._voice.decode(
            codes[None, None],
            np.array([ids], np.int32),
            self._prompt.style,
            sv_emb=self._prompt.vectors or None,
            noise=self._noise(len(codes), seed, speed),
            noise_scale=NOISE_SCALE,
            speed=speed,
        )
        return self._checked(wav)

    def _checked(self, wav: np.ndarray) -> np.ndarray:
        if not np.isfinite(wav).all():
            raise self._damaged("the voice")
        return wav

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._voice.name}: {what} computes NaN or infinity, its weights are damaged; copy "
            "or download it again, or take an earlier one"
        )

    def _decode_verified(self, sentence: Sentence, context: _Context) -> np.ndarray:
        """Decode a sentence; draw it again while it is misheard, and return the best one."""
        wav = self._decode(sentence.codes, sentence.ids, sentence.seed, context)
        if self._verify is None:
            return wav
        language = context.request.text_lang
        sentence.misheard = self._verify(wav, sentence.text, language)
        for _ in range(self._retries):
            if sentence.misheard <= GOOD_ENOUGH:
                break
            sentence.retries += 1
            # Not a seed of `_draw` again.
            other = replace(sentence, seed=context.request.seed + sentence.retries)
            (drawn,) = self._drawn([other], context)
            spoken = self._decode(drawn.codes, sentence.ids, other.seed, context)
            misheard = self._verify(spoken, sentence.text, language)
            if misheard < sentence.misheard:
                wav, sentence.misheard, sentence.seed = spoken, misheard, other.seed
                sentence.codes, sentence.fault = drawn.codes, context.fault(sentence, drawn)
        return wav

    def _decode_together(self, batch: list[Sentence], context: _Context) -> list[np.ndarray]:
        """Decode a batch as one utterance and cut it up, as upstream does."""
        codes = np.concatenate([sentence.codes for sentence in batch])
        ids = [number for sentence in batch for number in sentence.ids]
        wav = self._decode(codes, ids, context.request.seed, context)
        ends = np.cumsum([len(sentence.codes) * self._code_samples for sentence in batch])
        return np.split(wav, ends[:-1])

    def _context_codes(self, new: int) -> int:
        """Return how many codes before the overlap are decoded with a chunk, and cut off again."""
        return max(0 if self._compat else _CONTEXT, _SHORT_CHUNK - new)

    def _noise(self, codes: int, seed: int, speed: float, *, first_code: int = 0) -> mx.array:
        """Draw the noise `[1, C, T]` of codes; a code's is the same in whichever chunk it is."""
        model, channels = self._voice.model, self._voice.config.model.inter_channels
        frames = model.decoded_frames(codes, speed)
        if self._given_noise is not None:
            self._decodings += 1
            return self._given_noise((1, channels, frames), self._decodings - 1)
        first = int(model.decoded_frames(first_code) / speed)
        return draw_noise(channels, first, frames, seed)

    def _finished(self, part: _Part) -> np.ndarray:
        """Apply level and fades, and add the silence before and after a sentence."""
        rate, sentence = self._voice.sample_rate, part.sentence
        wav = self._level.apply(part.wav)
        if not self._compat:
            wav = fade_ends(wav, rate)
        return np.concatenate([_silence(sentence.lead, rate), wav, _silence(sentence.pause, rate)])

    def _stream(self, sentence: Sentence, context: _Context) -> Iterator[Piece]:
        """Speak a sentence in chunks, each decoded with all codes so far."""
        request, rate = context.request, self._voice.sample_rate
        speed, overlap = request.speed_factor, min(request.overlap_length, request.min_chunk_length)
        shared = math.ceil(overlap * self._code_samples / speed)
        joiner = ChunkJoiner(shared, joins_last=not self._compat)
        encoded: mx.array | None = None
        said: list[np.ndarray] = []
        if sentence.lead:
            yield Piece(_silence(sentence.lead, rate), [])
        for chunk in self._sound_chunks(sentence, context):
            if len(chunk.codes) == 0:
                wav = joiner.finish()
            else:
                said.append(chunk.codes)
                new = len(chunk.codes)
                known = sum(map(len, said)) - new
                extra = self._context_codes(new)
                again = min(known, overlap + extra)
                frames = self._voice.model.decoded_frames(again)
                decoded = self._voice.decode_chunk(
                    np.concatenate(said)[None, None],
                    np.array([sentence.ids], np.int32),
                    self._prompt.style,
                    tail_codes=new + again,
                    before=None if encoded is None else encoded[:, -frames:],
                    sv_emb=self._prompt.vectors or None,
                    noise=self._noise(new + again, sentence.seed, speed, first_code=known - again),
                    noise_scale=NOISE_SCALE,
                    speed=speed,
                )
                wav, encoded = self._checked(decoded.wav), decoded.encoded
                if known and extra:
                    wav = wav[-int((overlap + new) * self._code_samples / speed) :]
                wav = joiner.add(self._level.apply(wav), is_last=chunk.is_final)
            if not self._compat:
                wav = fade_ends(wav, rate, start=sentence.samples == 0, end=chunk.is_final)
            sentence.samples += len(wav)
            yield Piece(wav, [])
        sentence.codes = np.concatenate(said) if said else sentence.codes
        yield Piece(_silence(sentence.pause, rate), [sentence])

    def _sound_chunks(self, sentence: Sentence, context: _Context) -> Iterator[Chunk]:
        try:
            yield from self._chunks(sentence, context)
        except FloatingPointError as error:
            raise self._damaged("its T2S model") from error

    def _chunks(self, sentence: Sentence, context: _Context) -> Iterator[Chunk]:
        """Codes as T2S draws them; the last chunk comes early where it has begun to loop."""
        request = context.request
        said = np.zeros(0, np.int32)
        for chunk in generation.stream(
            self._t2s,
            context.row(sentence),
            context.prompt,
            request.sampling,
            chunk="fixed" if request.fixed_length_chunk else "pause",
            chunk_length=request.min_chunk_length,
            mute_code=self._mute_code,
            compat=self._compat,
        ):
            said = np.concatenate([said, chunk.codes])
            if self._compat:
                yield chunk
                continue
            is_over = chunk.is_final or find_loop(said) is not None
            if is_over:
                drawn = Generated(said, len(said) < generation.limit_of(self._t2s))
                sentence.fault = context.fault(sentence, drawn)
            yield chunk._replace(is_final=is_over)
            if is_over:
                return


class _Part(NamedTuple):
    wav: np.ndarray
    sentence: Sentence


class _Try(NamedTuple):
    drawn: Generated
    seed: int
    fault: Fault | None


# Of tries that all seem wrong the least bad is kept: a long one at least says every word.
_BADNESS = {"": 0, "endless": 1, "repeated": 2, "omitted": 3}


class _Context(NamedTuple):
    """A request, and the phonemes, features and codes that precede every sentence."""

    request: SpeechRequest
    ids: list[int]
    features: mx.array | None
    prompt: mx.array | None

    def row(self, sentence: Sentence) -> generation.Request:
        features = None
        if self.features is not None or sentence.features is not None:
            both = ((self.features, self.ids), (sentence.features, sentence.ids))
            known = [mx.zeros((BERT_CHANNELS, len(ids))) if f is None else f for f, ids in both]
            features = mx.concatenate(known, axis=1).T
        phones = mx.array([*self.ids, *sentence.ids], mx.int32)
        return generation.Request(phones, features, sentence.seed)

    def fault(self, sentence: Sentence, drawn: Generated) -> Fault | None:
        pace = None
        if self.prompt is not None and self.ids:
            pace = max(1, len(self.prompt) - SILENCE_CODES) / len(self.ids)
        return find_fault(drawn.codes, len(sentence.ids), has_ended=drawn.ended, pace=pace)


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(int(seconds * rate), np.float32)
