"""Semantic codes to sound: the half of `Voice` that hears no recording and reads no text.

Inputs and outputs are in PyTorch's axes, as upstream's: [batch, channels, time]. Axes: B batch,
K semantic codes, L phonemes, T spectrogram frames, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits import accel
from mlx_vits.audio.spectrogram import spectrogram
from mlx_vits.config import Config
from mlx_vits.errors import DataError
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.layout import channels_last
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.synthesis.arguments import Array, floats, integers
from mlx_vits.synthesis.decoding import Request, decode, decode_chunk
from mlx_vits.synthesis.folding import Folding
from mlx_vits.synthesis.reference import lowered

_DEFAULT_SEED = 0


class Chunk(NamedTuple):
    """A decoded chunk: samples `(N,)` float32, and the encoding that the next one fades from."""

    wav: np.ndarray
    encoded: mx.array


class Decoder:
    """A generator that decodes semantic codes.

    Any thread may use it; threads take turns. On a CPU, so may a forked process.

    Args:
        model: the generator.
    """

    def __init__(self, model: SynthesizerTrn):
        mx.eval(model.parameters())  # for other threads
        self.model = model
        self._folding = Folding(model)
        self._decode, self._decode_chunk = accel.inference(decode), accel.inference(decode_chunk)

    @property
    def config(self) -> Config:
        """Upstream's keys, frozen."""
        return self.model.config

    @property
    def version(self) -> str:
        """ "v1", "v2", "v2Pro" or "v2ProPlus"."""
        return self.config.version

    @property
    def sample_rate(self) -> int:
        """Of everything this voice speaks, in Hz."""
        return self.config.data.sampling_rate

    @on_lasting_thread
    def decode(
        self,
        codes: Array,
        text: Array,
        refer: Array | Sequence[Array],
        *,
        sv_emb: Array | Sequence[Array] | None = None,
        noise: Array | None = None,
        noise_scale: float = 0.5,
        speed: float = 1.0,
    ) -> np.ndarray:
        """Synthesize speech from semantic codes and phonemes, in the style of a reference.

        Args:
            codes: [1, 1, K] integers.
            text: [1, L] phoneme ids.
            refer: linear spectrogram [1, 1025, T], or several, whose styles are averaged.
            sv_emb: speaker vector [1, sv_dim] of each reference, for v2Pro and v2ProPlus.
            noise: [1, inter_channels, frames], standard normal; drawn from a fixed seed if None.
                Frames are 2 K, or int(2 K / speed) + 1 where speed is not 1.
            noise_scale: 0 speaks the most likely way.
            speed: 2.0 halves the length.

        Returns:
            `(640 frames,)` float32, neither normalised nor clipped.

        Raises:
            ValueError: an array has another shape, or a code or phoneme does not exist.
        """
        codes = self._checked_codes(codes)
        frames = self._frames(codes.shape[-1], speed)
        request = self._request(codes, text, refer, sv_emb, noise, noise_scale, frames)
        wav = self._decode(self._folding.model(), request, speed)
        return np.array(wav[0, :, 0], dtype=np.float32)

    @on_lasting_thread
    def decode_chunk(
        self,
        codes: Array,
        text: Array,
        refer: Array | Sequence[Array],
        *,
        tail_codes: int,
        before: mx.array | None = None,
        sv_emb: Array | Sequence[Array] | None = None,
        noise: Array | None = None,
        noise_scale: float = 0.5,
        speed: float = 1.0,
    ) -> Chunk:
        """Decode the end of an utterance that is still growing.

        Args:
            codes: [1, 1, K] integers, all so far.
            text, refer, sv_emb, noise_scale, speed: see `decode`.
            tail_codes: how many of the last codes are decoded.
            before: `(1, N, hidden)`, the last frames of the former chunk's `encoded`, with which
                this one begins; None for the first.
            noise: [1, inter_channels, frames] of what is decoded; drawn from a fixed seed if None.

        Returns:
            `wav` `(N,)` float32, neither normalised nor clipped, and `encoded`, `(1, F, hidden)`,
            two frames a code.

        Raises:
            ValueError: as `decode`, or there are not so many codes.
        """
        codes = self._checked_codes(codes)
        if not 1 <= tail_codes <= codes.shape[-1]:
            raise ValueError(f"tail_codes is {tail_codes} of {codes.shape[-1]} codes")
        kept, frames = self._frames(tail_codes), self._frames(tail_codes, speed)
        request = self._request(codes, text, refer, sv_emb, noise, noise_scale, frames)
        request = request._replace(before=() if before is None else (before,))
        wav, encoded = self._decode_chunk(self._folding.model(), request, speed, kept)
        mx.eval(wav, encoded)
        return Chunk(np.array(wav[0, :, 0], dtype=np.float32), encoded)

    def _checked_codes(self, codes: Array) -> mx.array:
        return integers(codes, (1, 1, None), "codes", self.config.reduced_dims.codebook_size)

    def _frames(self, codes: int, speed: float = 1.0) -> int:
        if not speed > 0:
            raise ValueError(f"speed is {speed}; it has to be above 0")
        return self.model.decoded_frames(codes, speed)

    def _request(
        self,
        codes: mx.array,
        text: Array,
        refer: Any,
        sv_emb: Any,
        noise: Array | None,
        noise_scale: float,
        frames: int,
    ) -> Request:
        text = integers(text, (1, None), "text", self.config.reduced_dims.text_vocab)
        shape = (1, self.config.model.inter_channels, frames)
        if noise is None:
            noise = mx.random.normal(shape, key=mx.random.key(_DEFAULT_SEED))
        specs, vectors = self._styles(refer, sv_emb)
        return Request(
            codes[0],
            text,
            channels_last(floats(noise, shape, "noise")),
            mx.array(noise_scale, mx.float32),
            specs,
            vectors,
        )

    def _styles(self, refer: Any, sv_emb: Any) -> tuple[list[mx.array], list[mx.array]]:
        """Spectrograms `(1, T, 1025)`, and as many speaker vectors where the version has them."""
        references = list(refer) if isinstance(refer, (list, tuple)) else [refer]
        if not references:
            raise ValueError("refer is an empty list; give one spectrogram at least")
        vectors: list[mx.array] = []
        if self.config.model.is_pro:
            if sv_emb is None:
                raise ValueError(f"{self.version} needs sv_emb, a speaker vector per reference")
            given = list(sv_emb) if isinstance(sv_emb, (list, tuple)) else [sv_emb]
            if len(given) != len(references):
                raise ValueError(f"{len(references)} references but {len(given)} speaker vectors")
            shape = (1, self.config.reduced_dims.sv_dim)
            vectors = [floats(vector, shape, "sv_emb") for vector in given]
        bins = self.config.data.spec_channels
        specs = [channels_last(floats(one, (1, bins, None), "refer")) for one in references]
        return specs, vectors

    @on_lasting_thread
    def extract_codes(self, ssl: Array) -> np.ndarray:
        """Quantize SSL features to semantic codes.

        Args:
            ssl: [B, ssl_dim, T].

        Returns:
            [B, 1, T // 2] int32.

        Raises:
            ValueError: the features have another shape.
        """
        features = floats(ssl, (None, self.config.reduced_dims.ssl_dim, None), "ssl")
        codes = self.model.extract_latent(channels_last(features))
        return np.array(codes, dtype=np.int32)[:, None]

    @on_lasting_thread
    def speak_features(
        self,
        features: np.ndarray,
        phoneme_ids: Sequence[int],
        refer: Array | Sequence[Array],
        *,
        sv_emb: Array | Sequence[Array] | None = None,
        noise_scale: float = 0.5,
        speed: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Do what `Voice.convert` does once features and phonemes are known.

        Args:
            features: `(S, ssl_dim)`, from `preprocessing.features`.
            phoneme_ids: of what is said.
            refer, sv_emb: see `decode`.
            noise_scale, speed, seed: see `Voice.convert`.

        Returns:
            `(samples,)` float32.
        """
        codes = self.extract_codes(features.T[None])
        frames = self._frames(codes.shape[-1], speed)
        shape = (1, self.config.model.inter_channels, frames)
        return self.decode(
            codes,
            np.array([phoneme_ids], dtype=np.int32),
            refer,
            sv_emb=sv_emb,
            noise=mx.random.normal(shape, key=mx.random.key(seed)),
            noise_scale=noise_scale,
            speed=speed,
        )

    @on_lasting_thread
    def reference_spectrogram(self, wav: np.ndarray) -> mx.array:
        """Compute the spectrogram of a reference, for `decode`.

        Args:
            wav: `(N,)` at the voice's rate; it is `lowered` first.

        Returns:
            [1, 1025, T].

        Raises:
            DataError: the recording is too short.
        """
        try:
            spec = spectrogram(mx.array(lowered(wav))[None], self.config.data)
        except ValueError as error:
            raise DataError(f"the reference is too short: {error}") from error
        spec = spec.swapaxes(1, 2)
        mx.eval(spec)
        return spec
