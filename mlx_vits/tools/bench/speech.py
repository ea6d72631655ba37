"""How fast a full-size voice speaks: T2S, synthesis, and both together.

Random weights, the same work on both sides: a text and a prompt of 100 phonemes and 100 codes are
read, then 125 codes drawn, 5 s of speech, with upstream's defaults (repetition penalty, top-k 15),
and decoded. EOS is made unlikely, so that no draw ends earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_vits import accel
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.synthesis.folding import fold_model
from mlx_vits.synthesis.generation import Request, generate_batch
from mlx_vits.synthesis.gpt import GPT
from mlx_vits.synthesis.sampling import Sampling
from mlx_vits.tools.bench.measure import TwinProcess, time_once
from mlx_vits.tools.bench.work import Work, make_step
from mlx_vits.tools.machine import describe_machine, device_kind

CODES_PER_SECOND = 25
FIRST_CODES = 18  # of a stream's first chunk: 16 and an overlap of 2
_SEED = 20742


@dataclass(frozen=True)
class SpeechWork:
    """What is spoken.

    Attributes:
        version: v1, v2, v2Pro or v2ProPlus.
        phonemes: of the prompt and the text.
        prompt: codes of the prompt.
        codes: to be drawn.
        together: texts at once, where they are batched.
    """

    version: str = "v2"
    phonemes: int = 100
    prompt: int = 100
    codes: int = 125
    together: int = 8

    @property
    def seconds(self) -> float:
        """Of the speech."""
        return self.codes / CODES_PER_SECOND

    @property
    def t2s(self) -> T2SConfig:
        return T2SConfig(phoneme_vocab_size=512 if self.version == "v1" else 732)

    @property
    def sovits(self) -> Work:
        return Work(self.version, 1, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class SpeechParts:
    """One voice, and the parts of speaking that are timed.

    `prefill` reads text and prompt and draws a code; `codes` draws those of the sentence after
    that, `together` those of several, `codes_8bit` those of one with weights of 8 bits; `first` is
    what a stream's first sound takes, `sentence` the whole of one.
    """

    def __init__(self, work: SpeechWork):
        self.work = work
        mx.random.seed(_SEED)
        self.gpt = _build_gpt(work)
        keys = mx.random.split(mx.random.key(_SEED), 4)
        config = work.t2s
        phones = mx.random.randint(0, config.phoneme_vocab_size, (work.phonemes,), key=keys[0])
        bert = mx.random.normal((work.phonemes, 1024), key=keys[1])
        self._requests = [Request(phones, bert, seed) for seed in range(work.together)]
        self._prompt = mx.random.randint(0, config.EOS, (work.prompt,), key=keys[2])
        sovits = work.sovits.config
        self._voice = fold_model(make_step(work.sovits).generator)
        self._decode = accel.inference(_decode)
        self._phones = phones[None] % sovits.reduced_dims.text_vocab
        self._style = mx.random.normal((1, 1, sovits.model.gin_channels), key=keys[3])
        mx.eval(self._voice.parameters(), self._phones, self._style)

    @cached_property
    def _gpt_8bit(self) -> GPT:
        return _build_gpt(self.work).quantize(8)

    def run(self, part: str) -> None:
        """Do a part, and wait for it."""
        work = self.work
        parts: dict[str, Callable[[], Any]] = {
            "prefill": lambda: self._draw(self.gpt, 1, 1),
            "codes": lambda: self._draw(self.gpt, 1, work.codes),
            "together": lambda: self._draw(self.gpt, work.together, work.codes),
            "codes_8bit": lambda: self._draw(self._gpt_8bit, 1, work.codes),
            "first": lambda: self._speak(FIRST_CODES),
            "sentence": lambda: self._speak(work.codes),
        }
        parts[part]()

    def _draw(self, gpt: GPT, count: int, codes: int) -> mx.array:
        requests, sampling = self._requests[:count], Sampling(top_k=15)
        drawn = generate_batch(gpt.model, requests, self._prompt, sampling, max_tokens=codes)
        if any(len(one.codes) != codes for one in drawn):
            raise RuntimeError("a draw ended before its time")
        return mx.array(drawn[0].codes)[None]

    def _speak(self, codes: int) -> None:
        drawn = self._draw(self.gpt, 1, codes)
        config = self._voice.config
        noise = mx.random.normal((1, 2 * codes, config.model.inter_channels))
        mx.eval(self._decode(self._voice, (drawn, self._phones, self._style, noise)))


def _decode(model: SynthesizerTrn, given: tuple[mx.array, ...]) -> mx.array:
    codes, phones, style, noise = given
    return model.decode(codes, phones, [style], noise=noise).wav


def _build_gpt(work: SpeechWork) -> GPT:
    model = Text2SemanticDecoder(work.t2s)
    weight = model.ar_predict_layer.weight
    # EOS, which is then never among the best.
    model.ar_predict_layer.weight = mx.concatenate([weight[:-1], mx.zeros_like(weight[-1:])])
    mx.eval(model.parameters())
    return GPT(model)


PARTS = ("prefill", "codes", "together", "codes_8bit", "first", "sentence")
_EIGHT_BITS = "codes_8bit"  # which the twin does not have


def measure_speech(
    work: SpeechWork, *, repetitions: int, warm_up: int = 1, compare: bool = False
) -> dict[str, Any]:
    """Measure each part, ours and PyTorch's in turn; medians are kept.

    Args:
        repetitions: counted ones.
        warm_up: repetitions before them.
        compare: whether PyTorch's twin runs along.

    Returns:
        What the JSON holds: `machine`, `work`, `mlx` and where compared `torch` with `ratios`, the
        medians of pairs: seconds by part, `codes_per_second`, `real_time_factor`, `peak_bytes`.
    """
    twin = TwinProcess("speech_twin", work.to_dict()) if compare else None
    mx.reset_peak_memory()
    parts = SpeechParts(work)
    # On a CPU MLX has no fast product for weights of 8 bits: a prompt takes a quarter of a minute.
    timed = [part for part in PARTS if part != _EIGHT_BITS or device_kind() == "gpu"]
    shared = [part for part in PARTS if part != _EIGHT_BITS]
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, Any]] = []
    try:
        for count in range(-warm_up, repetitions):
            found = time_once(parts.run, timed)
            told = {part: twin.ask(part) for part in shared} if twin else {}
            if count >= 0:
                ours.append(found)
                theirs.append(told)
    finally:
        if twin:
            twin.close()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "work": work.to_dict(),
        "repetitions": repetitions,
        "mlx": _summary(work, ours) | {"peak_bytes": mx.get_peak_memory()},
    }
    if twin:
        seconds = [{part: told[part]["seconds"] for part in shared} for told in theirs]
        peak = max(answer["peak_bytes"] for answer in theirs[-1].values())
        report["torch"] = twin.facts | _summary(work, seconds) | {"peak_bytes": peak}
        report["ratios"] = {
            part: median(a[part] / b[part] for a, b in zip(ours, seconds, strict=True))
            for part in shared
        }
    return report


def _summary(work: SpeechWork, found: list[dict[str, float]]) -> dict[str, Any]:
    seconds = {part: median(one[part] for one in found) for part in found[0]}
    drawn = {"codes": 1, "codes_8bit": 1, "together": work.together}
    return {
        "seconds": seconds,
        "codes_per_second": {
            part: rows * work.codes / seconds[part]  # reading of text and prompt included
            for part, rows in drawn.items()
            if part in seconds
        },
        "real_time_factor": seconds["sentence"] / work.seconds,
    }
