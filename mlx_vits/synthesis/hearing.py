"""Recordings that a voice speaks like, as the models take them: codes, spectrum, speaker vector."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.speaker import load_speaker_encoder
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.speaker_encoder import ERes2NetV2
from mlx_vits.preprocessing.prepared import read_speaker_vector
from mlx_vits.preprocessing.speakers import speaker_vector
from mlx_vits.synthesis.companions import Companions, StoredReference, vector_beside
from mlx_vits.synthesis.reference import Reference, lowered, prompt_codes, read_reference
from mlx_vits.synthesis.request import Prompt
from mlx_vits.system.files import given_path

if TYPE_CHECKING:
    from mlx_vits.synthesis.voice import Voice

_KEPT_REFERENCES = 8


class Heard(NamedTuple):
    """A reference as the models take it; `codes` are None where it is not of 3 to 10 s."""

    reference: Reference
    codes: np.ndarray | None
    spec: mx.array
    vector: np.ndarray | None


class References:
    """References of a voice; the last ones are kept, so that each is read once.

    Args:
        voice: whose content encoder hears them.
        companions: where the speaker encoder and the voice's own reference are.
    """

    def __init__(self, voice: Voice, companions: Companions):
        self._voice, self._companions = voice, companions
        self._heard: OrderedDict[tuple[str, int, int, bool], Heard] = OrderedDict()

    def prompt(
        self,
        reference: StoredReference,
        auxiliary: Sequence[str | Path],
        warn: Callable[[str], None],
    ) -> Prompt:
        """Hear what is to be spoken like.

        Args:
            reference: whose manner is taken where its text is known.
            auxiliary: recordings whose timbre is averaged with its.
            warn: told that the text is not known.

        Raises:
            DataError: a recording cannot be read, or does not serve.
            CheckpointError: an encoder is missing or damaged.
        """
        heard = [self.hear(reference.audio, as_prompt=bool(reference.text.strip()))]
        heard += [self.hear(path, as_prompt=False) for path in auxiliary]
        vectors = [one.vector for one in heard if one.vector is not None]
        if not reference.text.strip():
            warn(
                f"{reference.audio}: its text is not known, so only its timbre is used and not its "
                "manner; give a recording of 3 to 10 s with --reference and --reference-text"
            )
        return Prompt(heard[0].codes, [one.spec for one in heard], vectors)

    def hear(self, path: str | Path, *, as_prompt: bool) -> Heard:
        """Read a recording, or take what was read of it before if the file is still the same.

        Args:
            path: the recording.
            as_prompt: whether its codes are needed.

        Raises:
            DataError: it cannot be read, or does not serve.
            CheckpointError: an encoder is missing or damaged.
        """
        path = given_path(path, DataError)
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give a recording of 3 to 10 s as the "
                "reference"
            ) from error
        key = (str(path.resolve()), state.st_mtime_ns, state.st_size, as_prompt)
        if key not in self._heard:
            reference = read_reference(path, self._voice.sample_rate)
            vector = None
            if self._voice.config.model.is_pro:
                vector = self._speaker_vector(path, reference)
            spec = self._voice.reference_spectrogram(reference.for_style)
            codes = prompt_codes(reference, self._encode) if as_prompt else None
            self._heard[key] = Heard(reference, codes, spec, vector)
            while len(self._heard) > _KEPT_REFERENCES:
                self._heard.popitem(last=False)
        self._heard.move_to_end(key)
        return self._heard[key]

    def _speaker_vector(self, path: Path, reference: Reference) -> np.ndarray:
        """Return the vector `(1, V)` that a run keeps beside its own reference, or compute it."""
        own, kept = self._companions.reference, vector_beside(path)
        if own is not None and path == Path(own.audio) and kept.is_file():
            return read_speaker_vector(kept, self._voice.config.reduced_dims.sv_dim)[None]
        return speaker_vector(
            self._speaker_encoder, lowered(reference.for_style), self._voice.sample_rate, path
        )

    @cached_property
    def _speaker_encoder(self) -> ERes2NetV2:
        if self._companions.speaker_encoder is None:
            version = self._voice.version
            raise CheckpointError(
                f"{self._voice.name}: {version} needs the speaker encoder; fetch it with "
                f"`mlx-vits download {version}`"
            )
        return load_speaker_encoder(self._companions.speaker_encoder)

    def _encode(self, wav: np.ndarray) -> np.ndarray:
        features = self._voice.require_content_encoder()(mx.array(wav)[None])
        return self._voice.extract_codes(features.swapaxes(1, 2)).ravel()
