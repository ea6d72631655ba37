"""Train the demo's T2S, upstream's architecture reduced, with the project's own trainer.

    python scripts/demo_t2s.py prepare CORPUS data.npz
    python scripts/demo_t2s.py train data.npz WORK --minutes 9     # again, until it says so
    python scripts/demo_t2s.py write WORK weights/demo/base/gpt

CORPUS has `rows.tsv` (columns id, voice, text_id, text), `codes.npz` (ids, lengths, codes; made
with the demo base's own content encoder and codebook) and `audio_0.tar` of Opus clips. `train`
goes on from the state in WORK, as if it had not stopped.

A prompted T2S continues a voice: its input is the reference's text and codes, and the new text. So
half of the training rows are several sentences of one voice, joined, with the codes of a short
silence in between, as the silence that is appended to a reference has them.
"""

from __future__ import annotations

import csv
import io
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import typer

import mlx_vits
from mlx_vits.audio.files import resample
from mlx_vits.checkpoints.codebook import CODEBOOK_KEY, codebook_sha256
from mlx_vits.checkpoints.gpt_file import load_gpt_model, read_gpt, write_gpt
from mlx_vits.checkpoints.run import T2S_PARTS, read_run_state, write_run_state
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.synthesis.fitting import LANGUAGES_KEY, MUTE_KEY
from mlx_vits.text import clean_text, phonemes_to_ids
from mlx_vits.training.t2s_batches import Fields, T2SUtterance, pad_utterances
from mlx_vits.training.t2s_footprint import T2SClips
from mlx_vits.training.t2s_step import T2SBatch, score_codes
from mlx_vits.training.t2s_trainer import T2STrainer, T2STrainingConfig

import mlx.core as mx
import soundfile

MUTE_CODE = 742  # of the codes of silence the one that is most like the others
TAIL_CODES = 15  # of 0.6 s of silence
TAILS = 150  # clips whose trailing silence is encoded
SIZES = {"embedding_dim": 256, "hidden_dim": 256, "head": 4, "n_layer": 6}
POSITIONS_PER_BATCH = 16384  # phonemes and codes
LARGEST_CODES = 500  # of a joined row, 20 s
HELD_OUT = 40  # one text in so many
SAVE_EVERY = 250
TRAINING = T2STrainingConfig(
    steps=7000,
    accumulate=1,
    optimizer="adamw",
    lr=1e-3,
    warm_up=300,
    last_share=0.02,
    replaced=0.05,
    pretrained_reg_strength=0.0,
)

app = typer.Typer(add_completion=False)


@app.command()
def prepare(corpus: Path, output: Path) -> None:
    """Write phonemes, codes and voices of all sentences, and the codes of trailing silences."""
    with (corpus / "rows.tsv").open(encoding="utf-8", newline="") as file:
        table = {r["id"]: r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    stored = np.load(corpus / "codes.npz")
    names = [f"{number:05d}" for number in stored["ids"]]
    read = [clean_text(table[name]["text"], "en", "v2").phonemes for name in names]
    phones = [phonemes_to_ids(symbols, "v2") for symbols in read]
    _, voices = np.unique([table[name]["voice"] for name in names], return_inverse=True)
    _, texts = np.unique([table[name]["text_id"] for name in names], return_inverse=True)
    np.savez(
        output,
        phones=np.concatenate(phones).astype(np.int16),
        phone_counts=np.array([len(row) for row in phones]),
        codes=stored["codes"],
        code_counts=stored["lengths"],
        voices=voices,
        texts=texts,
        tails=_silences(corpus / "audio_0.tar"),
    )


def _silences(archive: Path) -> np.ndarray:
    """Codes `(TAILS, TAIL_CODES)` of the 0.6 s of silence that follow a clip."""
    voice = mlx_vits.load("demo")
    encoder = voice.content_encoder
    assert encoder is not None
    found: list[np.ndarray] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".opus") else None
            if file is None:
                continue
            wav, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32")
            wav = np.concatenate([resample(wav, rate, 16000), np.zeros(9600, np.float32)])
            features = encoder(mx.array(wav[None])).swapaxes(1, 2)
            found.append(voice.extract_codes(features).ravel()[-TAIL_CODES:])
            if len(found) == TAILS:
                break
    return np.stack(found).astype(np.int16)


class Corpus:
    """The prepared sentences as the `T2SVoice` of a trainer: every epoch joins others."""

    dpo = compat = False

    def __init__(self, path: Path):
        data = np.load(path)
        phones = np.split(data["phones"], np.cumsum(data["phone_counts"])[:-1])
        codes = np.split(data["codes"], np.cumsum(data["code_counts"])[:-1])
        self._rows = [T2SUtterance(p, c) for p, c in zip(phones, codes, strict=True)]
        self._tails, self._voices = data["tails"], data["voices"]
        is_held_out = data["texts"] % HELD_OUT == 0
        self.held_out = [self._rows[i] for i in np.flatnonzero(is_held_out)]
        self._training = np.flatnonzero(~is_held_out)
        self._of_voice: dict[int, list[int]] = defaultdict(list)
        for index in self._training:
            self._of_voice[int(self._voices[index])].append(int(index))
        self.plan = lru_cache(maxsize=2)(self._plan)

    def batch_size(self, asked: int) -> int:
        return asked  # without effect: batches are as large as `POSITIONS_PER_BATCH` allows

    def largest_batch(self, batch_size: int) -> T2SClips:
        return T2SClips(batch_size, LARGEST_CODES // 2, LARGEST_CODES)

    def _plan(self, batch_size: int, seed: int, epoch: int) -> list[list[T2SUtterance]]:
        """Every training sentence once or more, alone or after others, in rows of like length."""
        random = np.random.default_rng([seed, epoch])
        rows = [self._join(int(i), random) for i in random.permutation(self._training)]
        groups = _grouped(rows)
        return [groups[i] for i in random.permutation(len(groups))]

    def endless(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Fields]:
        while True:
            for rows in self.plan(batch_size, seed, epoch)[start:]:
                yield pad_utterances(rows, bert_width=0)
            epoch, start = epoch + 1, 0

    def _join(self, index: int, random: np.random.Generator) -> T2SUtterance:
        row, others = self._rows[index], self._of_voice[int(self._voices[index])]
        if len(others) < 2 or random.random() < 0.4:
            return row
        for other in random.permutation(others)[: random.integers(1, 4)]:
            before, tail = self._rows[int(other)], self._tails[random.integers(len(self._tails))]
            tail = tail[: random.integers(TAIL_CODES + 1)]
            if len(before.codes) + len(row.codes) + len(tail) > LARGEST_CODES or other == index:
                continue
            row = T2SUtterance(
                np.concatenate([before.phones, row.phones]),
                np.concatenate([before.codes, tail, row.codes]),
            )
        return row


def _grouped(rows: list[T2SUtterance]) -> list[list[T2SUtterance]]:
    groups: list[list[T2SUtterance]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.codes)):
        width = -(-len(row.codes) // 64) * 64 + -(-len(row.phones) // 32) * 32
        if groups[-1] and (len(groups[-1]) + 1) * width > POSITIONS_PER_BATCH:
            groups.append([])
        groups[-1].append(row)
    return groups


@app.command()
def train(data: Path, work: Path, minutes: float = 9.0, steps: int = TRAINING.steps or 0) -> None:
    """Train for so long at most, from the last state, and keep the best weights."""
    begun, corpus = time.monotonic(), Corpus(data)
    config = replace(TRAINING, steps=steps)
    mx.random.seed(config.seed)
    model = Text2SemanticDecoder(T2SConfig(**SIZES, max_sec=54))
    model.bert_proj.weight = mx.zeros_like(model.bert_proj.weight)  # English has no features
    trainer = T2STrainer(model, corpus, config)
    state = work / "state.safetensors"
    if state.is_file():
        trainer.restore(read_run_state(state, parts=T2S_PARTS), str(state))
    print(f"{len(corpus.held_out)} sentences held out; from step {trainer.place.step} on")
    held_out = [
        T2SBatch(**{k: mx.array(a) for k, a in pad_utterances(rows, bert_width=0).items()})
        for rows in _grouped(corpus.held_out)
    ]
    for record in trainer.steps(lambda step: step % SAVE_EVERY == 0 or step == steps):
        if trainer.is_ahead:
            continue
        score = score_codes(model, held_out)
        if trainer.note_score(score.ce):
            write_gpt(
                work / "best", state_of(model), model.config, info=f"step {record.place.step}"
            )
        write_run_state(state, trainer.trees(), trainer.place)
        passed = (time.monotonic() - begun) / 60
        losses = f"loss {record.values['ce']:.3f}  held out {score.ce:.3f}"
        print(f"{passed:4.1f} min  step {record.place.step}/{steps}  {losses}", flush=True)
        if passed > minutes and record.place.step < steps:
            print("not finished: run it again")
            return


@app.command()
def write(work: Path, output: Path) -> None:
    """Write the best weights, in fp16, with what `speak` wants to know of a T2S."""
    best = read_gpt(work / "best")
    stated = {
        CODEBOOK_KEY: codebook_sha256(mlx_vits.load("demo").model),
        LANGUAGES_KEY: ["en"],
        MUTE_KEY: MUTE_CODE,
    }
    config = replace(best.config, extra=dict(best.config.extra) | stated)
    halves = {
        name: array.astype(mx.float16) for name, array in state_of(load_gpt_model(best)).items()
    }
    write_gpt(output, halves, config, info=best.info)


if __name__ == "__main__":
    app()
