"""A request's text as sentences to speak: cut, with the silence around them, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import mlx.core as mx

from mlx_vits.errors import DataError
from mlx_vits.synthesis.pauses import Pause, split_pauses
from mlx_vits.synthesis.request import Sentence, SpeechRequest
from mlx_vits.synthesis.text_marks import TextError, collapse_marks
from mlx_vits.synthesis.text_split import pre_segment


class Reading(Protocol):
    """What the front end makes of a text: see `text.front_end.Reading`."""

    @property
    def phones(self) -> list[str]: ...

    @property
    def ids(self) -> list[int]: ...

    @property
    def norm_text(self) -> str: ...

    @property
    def features(self) -> mx.array | None: ...


FrontEnd = Callable[[str, str], Reading]


class SentenceReader:
    """Cut a request's text into sentences, and read them.

    Args:
        request: with the text.
        front_end: text and language to phonemes and features.
        compat: cut as upstream, without written pauses.
        warn: told of a sentence that is left out; without it such a sentence is an error.

    Attributes:
        owed_pause: seconds of silence, written beside sentences that were left out, that no
            sentence has taken over: what follows the last one when all are read.
    """

    def __init__(
        self,
        request: SpeechRequest,
        front_end: FrontEnd,
        *,
        compat: bool,
        warn: Callable[[str], None] | None,
    ):
        self._request, self._front_end = request, front_end
        self._compat, self._warn = compat, warn
        self.owed_pause = 0.0

    def read(self) -> Iterator[Sentence]:
        """Read each sentence when it is asked for; one that cannot be spoken is left out.

        Pauses that are written beside it stay.

        Raises:
            DataError: one cannot be read and there is no `warn`, or none can be read.
        """
        request = self._request
        fault: DataError | None = None
        is_spoken = False
        for index, sentence in enumerate(self._with_pauses()):
            try:
                reading = self._front_end(sentence.text, request.text_lang)
            except DataError as error:
                if self._warn is None:
                    raise
                fault = fault or error
                self._warn(f"left out: {error}")
                self.owed_pause += sentence.lead
                self.owed_pause += sentence.pause if sentence.has_own_pause else 0.0
                continue
            is_spoken = True
            sentence.lead, self.owed_pause = sentence.lead + self.owed_pause, 0.0
            sentence.phonemes, sentence.ids = reading.phones, reading.ids
            sentence.features, sentence.length = reading.features, len(reading.norm_text)
            sentence.index, sentence.seed = index, request.seed
            yield sentence
        if not (is_spoken or self._compat):
            raise fault or TextError("the text has nothing to speak; give at least one word")

    def _with_pauses(self) -> Iterator[Sentence]:
        """Cut the text into sentences with the silence before and after each."""
        request = self._request
        pause = max(0.0, request.fragment_interval)
        text, method = request.text, request.text_split_method
        if self._compat:
            if not (request.return_fragment or request.streaming_mode):
                text = collapse_marks(text, compat=True)
            for piece in pre_segment(text, request.text_lang, method, compat=True):
                yield Sentence(piece, pause=pause)
            return
        lead, last = 0.0, None
        for part in split_pauses(text):
            if isinstance(part, Pause):
                if last is None:
                    lead += part.seconds
                else:
                    last.pause = part.seconds + (last.pause if last.has_own_pause else 0.0)
                    last.has_own_pause = True
                continue
            for piece in pre_segment(part, request.text_lang, method):
                if last is not None:
                    yield last
                last, lead = Sentence(piece, pause=pause, lead=lead), 0.0
        if last is not None:
            yield last
