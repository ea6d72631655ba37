"""How well a GPT foretells the codes of a voice's clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.errors import DataError
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.report.verdict import CODES_FORETOLD, Finding
from mlx_vits.training.t2s_batches import T2SVoice, pad_utterances
from mlx_vits.training.t2s_step import CodeScore, T2SBatch, score_codes

_FEW = 8  # training clips to score on where none was held out


class GPTJudge:
    """Scores a GPT on held-out clips; where there are none, on some that it is trained on.

    Args:
        voice: the clips that it is trained on.
        version: of the phoneme symbols.

    Attributes:
        are_held_out: whether the clips are.
        names: of the clips.
        base_score: of the base, from `score_base`.
    """

    base_score: CodeScore

    def __init__(self, voice: T2SVoice, version: str):
        held_out = _held_out(voice.folder / layout.HELD_OUT_FOLDER, version, voice.eos)
        self.are_held_out = held_out is not None
        self._voice = held_out or voice
        self._items = self._voice.items if held_out else voice.items[:_FEW]
        self.names = [item.name for item in self._items]

    def score(self, model: Text2SemanticDecoder) -> CodeScore:
        """Score the present weights of a GPT."""
        return score_codes(model, map(self._batch, range(len(self._items))))

    def _batch(self, index: int) -> T2SBatch:
        voice = self._voice
        utterance = voice.read(self._items[index])
        fields = pad_utterances([utterance], bert_width=voice.bert_width, eos=voice.eos)
        return T2SBatch(**{name: mx.array(array) for name, array in fields.items()})

    def finding(self, final: CodeScore) -> Finding:
        """Compare a GPT, of which this is the score, with its base."""
        base, clips = self.base_score, "held-out clips"
        if not self.are_held_out:
            clips = "training clips, as none was held out"
        words = (
            f"The GPT foretells the codes of the {clips} with a cross-entropy of {final.ce:.3f}, "
            f"the base's {base.ce:.3f} ({final.ce / base.ce - 1:+.1%}); {final.top3_accuracy:.0%} "
            f"of them are among its first three guesses, with the base {base.top3_accuracy:.0%}."
        )
        return Finding(CODES_FORETOLD, final.ce < base.ce, words)


def gpt_score_record(step: int, epoch: int, score: CodeScore) -> dict[str, Any]:
    """Convert a score for `gpt_scores.jsonl` and `verdict.json`."""
    return {"step": step, "epoch": epoch, "ce": score.ce, "top3_accuracy": score.top3_accuracy}


def _held_out(folder: Path, version: str, eos: int) -> T2SVoice | None:
    if not layout.is_prepared(folder):
        return None
    try:
        return T2SVoice(folder, version, eos=eos)
    except DataError:  # none was held out, or none of them fits
        return None
