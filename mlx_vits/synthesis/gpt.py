"""A GPT to choose semantic codes with: what `mlx_vits.load_gpt` returns.

Inputs and outputs are in PyTorch's axes, as upstream's: [batch, channels, time]. Axes: L phonemes,
P codes of a prompt, N codes that are generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits import accel
from mlx_vits.checkpoints.base import find_base, weights_home
from mlx_vits.checkpoints.gpt_file import find_gpt, load_gpt_model, read_gpt
from mlx_vits.checkpoints.run_info import RunInfo, find_run, is_run
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE
from mlx_vits.config import BERT_CHANNELS, T2SConfig
from mlx_vits.errors import CheckpointError
from mlx_vits.models.t2s import SelfAttention, Text2SemanticDecoder
from mlx_vits.nn.threads import on_lasting_thread
from mlx_vits.synthesis import generation
from mlx_vits.synthesis.arguments import Array, floats, integers
from mlx_vits.synthesis.generation import MUTE_CODE, Chunk, Generated, Request
from mlx_vits.synthesis.sampling import Sampling
from mlx_vits.system.files import given_path

BITS = (8, 4)  # that weights can be held in
_LARGEST_GROUP = 64


class GPT:
    """A GPT with its configuration.

    Any thread may use it; threads take turns.

    Args:
        model: the GPT.
        info: how far it was trained, in upstream's words.
        name: for messages.

    Example:
        >>> import mlx_vits
        >>> gpt = mlx_vits.load_gpt("GPT_weights_v2/NAME-e15.ckpt")
        >>> codes = gpt.generate(phones, bert=bert, prompt=prompt)
    """

    def __init__(self, model: Text2SemanticDecoder, *, info: str = "", name: str = "gpt"):
        mx.eval(model.parameters())  # for other threads
        self.model, self.info, self.name = accel.apply(model, inference=True), info, name
        self.bits: int | None = None

    @property
    def config(self) -> T2SConfig:
        """Upstream's keys, frozen."""
        return self.model.config

    @property
    def version(self) -> str:
        """ "v1", or "v2" for all later ones: whose phonemes it reads."""
        return self.config.version

    def __repr__(self) -> str:
        return f"GPT({self.name!r}, version={self.version!r}, info={self.info!r})"

    @on_lasting_thread
    def generate(
        self,
        phones: Array,
        *,
        bert: Array | None = None,
        prompt: Array | None = None,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        temperature: float = Sampling.temperature,
        repetition_penalty: float = Sampling.repetition_penalty,
        max_tokens: int | None = None,
        seed: int = 0,
        noise: Array | None = None,
        compat: bool = False,
    ) -> np.ndarray:
        """Generate the semantic codes of a text.

        Args:
            phones: [1, L] ids, those of the prompt's words before those of the text.
            bert: [1, 1024, L]; None stands for zeros, as for every language but Chinese.
            prompt: [1, P] codes of the reference recording; None for none.
            top_k, top_p, temperature, repetition_penalty: see `Sampling`.
            max_tokens: ends the sequence where EOS or the GPT's own limits have not.
            seed: of the draws; the same seed gives the same codes on one machine.
            noise: [steps, 1, V] drawn from Exp(1), in place of the seed.
            compat: upstream's result, faults and all; see `synthesis/generation.py`.

        Returns:
            `(N,)` int32, without prompt and EOS.

        Raises:
            ValueError: an array has another shape, a code or phoneme does not exist, or a setting
                has no meaning.
        """
        result = generation.generate(
            self.model,
            self._request(phones, bert, seed),
            self._prompt(prompt),
            Sampling(top_k, top_p, temperature, repetition_penalty),
            max_tokens=_count(max_tokens),
            noise=self._noise(noise, 1),
            compat=compat,
        )
        return result.codes

    @on_lasting_thread
    def generate_batch(
        self,
        phones: Sequence[Array],
        *,
        bert: Sequence[Array | None] | None = None,
        prompt: Array | None = None,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        temperature: float = Sampling.temperature,
        repetition_penalty: float = Sampling.repetition_penalty,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        noise: Array | None = None,
        compat: bool = False,
    ) -> list[Generated]:
        """Generate the semantic codes of several texts at once.

        Args:
            phones: [1, L] of each text; lengths may differ.
            bert: [1, 1024, L] or None for each; None for none at all.
            prompt: [1, P], that of all.
            seeds: one for each text; 0, 1, 2, ... by default. A text's codes depend on its own
                alone, not on the rest of the batch.
            noise: [steps, B, V] drawn from Exp(1), in place of the seeds.
            top_k, top_p, temperature, repetition_penalty, max_tokens, compat: see `generate`.

        Returns:
            Codes and whether EOS ended them, for each text.

        Raises:
            ValueError: as `generate`, or the lists differ in length.
        """
        count = len(phones)
        features = [None] * count if bert is None else list(bert)
        own_seeds = list(range(count)) if seeds is None else list(seeds)
        if not count or len(features) != count or len(own_seeds) != count:
            raise ValueError(
                f"{count} texts, {len(features)} BERT features and {len(own_seeds)} seeds; as many "
                "of each are needed, and at least one"
            )
        rows = zip(phones, features, own_seeds, strict=True)
        return generation.generate_batch(
            self.model,
            [self._request(*row) for row in rows],
            self._prompt(prompt),
            Sampling(top_k, top_p, temperature, repetition_penalty),
            max_tokens=_count(max_tokens),
            noise=self._noise(noise, count),
            compat=compat,
        )

    def stream(
        self,
        phones: Array,
        *,
        bert: Array | None = None,
        prompt: Array | None = None,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        temperature: float = Sampling.temperature,
        repetition_penalty: float = Sampling.repetition_penalty,
        max_tokens: int | None = None,
        seed: int = 0,
        chunk: Literal["pause", "fixed"] = "pause",
        chunk_length: int = 16,
        threshold: float = 0.0,
        mute_code: int = MUTE_CODE,
        compat: bool = False,
    ) -> Iterator[Chunk]:
        """Generate the semantic codes of a text, chunk by chunk.

        Args:
            phones, bert, prompt, top_k, top_p, temperature, repetition_penalty, max_tokens, seed,
                compat: see `generate`.
            chunk, chunk_length, threshold, mute_code: see `generation.stream`.

        Yields:
            Chunks of codes; the last is marked, and may be empty.

        Raises:
            ValueError: as `generate`.
        """
        if chunk not in ("pause", "fixed"):
            raise ValueError(f"chunk is {chunk!r}; it has to be 'pause' or 'fixed'")
        if chunk == "pause" and not 0 <= mute_code < self.config.EOS:
            raise ValueError(f"mute_code is {mute_code}; only 0 to {self.config.EOS - 1} exist")
        if chunk_length < 1:
            raise ValueError(f"chunk_length is {chunk_length}; it has to be 1 at least")
        chunks = generation.stream(
            self.model,
            *self._stream_inputs(phones, bert, prompt, seed),
            Sampling(top_k, top_p, temperature, repetition_penalty),
            chunk=chunk,
            chunk_length=chunk_length,
            threshold=threshold,
            mute_code=mute_code,
            max_tokens=_count(max_tokens),
            compat=compat,
        )
        return _advanced(chunks)

    @on_lasting_thread
    def _stream_inputs(
        self, phones: Array, bert: Array | None, prompt: Array | None, seed: int
    ) -> tuple[Request, mx.array | None]:
        inputs = self._request(phones, bert, seed), self._prompt(prompt)
        mx.eval(inputs)  # another thread may ask for the first chunk
        return inputs

    @on_lasting_thread
    def logits(self, phones: Array, codes: Array, *, bert: Array | None = None) -> np.ndarray:
        """Compute the logits of every code of a sequence, given those before it.

        Args:
            phones: [1, L] ids.
            codes: [1, T] ids.
            bert: [1, 1024, L]; None stands for zeros.

        Returns:
            `(T + 1, V)` float32; row t predicts `codes[0, t]`, the last one what follows.

        Raises:
            ValueError: an array has another shape, or a code or phoneme does not exist.
        """
        request = self._request(phones, bert, 0)
        given = integers(codes, (1, None), "codes", self.config.vocab_size)
        features = None if request.bert is None else request.bert[None]
        return np.array(self.model(request.phones[None], given, features)[0], dtype=np.float32)

    @on_lasting_thread
    def quantize(self, bits: int = 8) -> GPT:
        """Hold the weights of all linear layers in 8 or 4 bits: less memory to read for each code.

        What it gains and costs is in docs/speaking.md; a Linux CPU takes twice as long.

        Returns:
            The same GPT, which can be neither trained nor saved from here on.

        Raises:
            ValueError: it is quantized already, or its width cannot be.
        """
        if self.bits is not None or bits not in BITS:
            raise ValueError(
                f"{self.name} is quantized to {self.bits} bits already"
                if self.bits
                else f"bits is {bits}; it has to be 4 or 8"
            )
        width = self.config.hidden_dim
        group = next((size for size in (_LARGEST_GROUP, 32) if width % size == 0), None)
        if group is None:
            raise ValueError(f"{self.name} has a width of {width}, which 32 does not divide")
        for module in self.model.modules():
            if isinstance(module, SelfAttention):
                module.quantize_projection(group, bits)
        nn.quantize(
            self.model, group, bits, class_predicate=lambda _, layer: type(layer) is nn.Linear
        )
        mx.eval(self.model.parameters())
        self.bits = bits
        return self

    def _request(self, phones: Array, bert: Array | None, seed: int) -> Request:
        ids = integers(phones, (1, None), "phones", self.config.phoneme_vocab_size)[0]
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; it has to lie between 0 and 2^64 - 1")
        features = None
        if bert is not None:
            features = floats(bert, (1, BERT_CHANNELS, len(ids)), "bert")[0].T
        return Request(ids, features, seed)

    def _prompt(self, prompt: Array | None) -> mx.array | None:
        return None if prompt is None else integers(prompt, (1, None), "prompt", self.config.EOS)[0]

    def _noise(self, noise: Array | None, rows: int) -> mx.array | None:
        if noise is None:
            return None
        return floats(noise, (None, rows, self.config.vocab_size), "noise")


def _advanced(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    advance = on_lasting_thread(lambda: next(chunks, None))
    while (chunk := advance()) is not None:
        yield chunk


def _count(max_tokens: int | None) -> int | None:
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it has to be 1 at least")
    return max_tokens


@on_lasting_thread
def load_gpt(name_or_path: str | Path, *, version: str | None = None) -> GPT:
    """Load a GPT.

    Args:
        name_or_path: a `.ckpt` of GPT-SoVITS, a folder of `config.json` and `weights.safetensors`,
            the name or the folder of a base that has one, or a run's folder: its own GPT, else
            that of its base.
        version: of the voice that it is for, one of `VERSIONS`; None takes any.

    Returns:
        The GPT.

    Raises:
        CheckpointError: there is no such GPT, its files are damaged or of an unknown kind, or it
            is of another version.

    Example:
        >>> import mlx_vits
        >>> mlx_vits.load_gpt("GPT_weights_v2/NAME-e15.ckpt").version
        'v2'
    """
    path = find_gpt_path(name_or_path)
    file = read_gpt(path, version=version)
    return GPT(load_gpt_model(file, consume=True), info=file.info, name=Path(name_or_path).stem)


def find_gpt_path(name_or_path: str | Path) -> Path:
    """Find the file or folder of a GPT; see `load_gpt`.

    Raises:
        CheckpointError: there is none.
    """
    given = str(name_or_path)
    path = given_path(given, CheckpointError)
    if is_run(path):
        return find_gpt(path) or _gpt_of_base(path)
    is_name = len(path.parts) == 1 and not path.suffix and (weights_home() / path).is_dir()
    if is_name or (path / GENERATOR_FILE).is_file():
        found = find_base(given).gpt
        if found is None:
            raise CheckpointError(f"{given}: this base has no GPT; give the .ckpt of one")
        return found
    if is_run(run := find_run(path)):
        return find_gpt(run) or _gpt_of_base(run)
    if not path.exists():
        raise CheckpointError(
            f"{given}: there is no such GPT; give a .ckpt of GPT-SoVITS, a folder, or a base under "
            f"{weights_home()}"
        )
    return (find_gpt(path) or path) if path.is_dir() else path


def _gpt_of_base(run: Path) -> Path:
    """Find the GPT of the base that a run was started from: where that was, or by its name.

    Raises:
        CheckpointError: there is none.
    """
    info = RunInfo.read(run)
    for base in filter(None, (info.generator, info.base)):
        try:
            found = find_base(base).gpt
        except CheckpointError:  # a generator of its own, or no longer there
            continue
        if found is not None:
            return found
    raise CheckpointError(
        f"{run}: neither the run nor its base {info.base} has a GPT; give the .ckpt of one"
    )
