"""Which clips the GPT is trained on, in which batches, and how they are padded and spoiled."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.codes import CodeLine, write_code_lines
from mlx_vits.preprocessing.prepared import TextLine, write_text_lines
from mlx_vits.training import t2s_rows
from mlx_vits.training.rejected import DELETE, REPEAT, Rejection, draw_rejections, reject
from mlx_vits.training.t2s_batches import (
    T2SBatch,
    T2SPadding,
    T2SUtterance,
    T2SVoice,
    pad_utterances,
)
from mlx_vits.training.t2s_order import (
    batch_size_for,
    epoch_order,
    upstream_buckets,
    upstream_order,
)
from mlx_vits.training.t2s_rows import count_reasons, read_rows
from tests.support.goldens import golden, tensors, values

REASONS = {
    "name not in 2-name2text (or its line has not 4 columns)": t2s_rows.NO_TEXT,
    "more than 1350 tokens": t2s_rows.TOO_LONG,
    "more than 540 phones": t2s_rows.TOO_MANY_PHONEMES,
    "phone not in the symbol table": t2s_rows.UNKNOWN_PHONEME,
    "more than 25 phones a second": t2s_rows.TOO_FAST,
    "fewer than 3 phones a second": t2s_rows.TOO_SLOW,
}


@pytest.fixture(scope="module")
def data() -> Any:
    return values("t2s_train", "data", "data.json")


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden("t2s_train", "data", "data.json").parent


def test_the_clips_of_the_original_are_kept_and_the_others_for_its_reasons(
    data: Any, folder: Path
) -> None:
    voice = T2SVoice(folder, "v2", compat=True)
    assert [item.name for item in voice.items] == data["kept_once"]
    assert len(voice.repeated()) == data["dataset_len"]
    kept = [row for row in data["rows"] if row["kept"]]
    assert [(len(item.codes), len(item.ids)) for item in voice.items] == [
        (row["tokens"], row["phones"]) for row in kept
    ]
    expected = [(row["name"], REASONS[row["reason"]]) for row in data["rows"] if not row["kept"]]
    found = [clip for clip in voice.left_out if clip.reason != t2s_rows.DAMAGED]
    assert found == expected


def test_bert_features_of_the_wrong_length_leave_a_clip_out_before_training(
    data: Any, folder: Path
) -> None:
    voice = T2SVoice(folder, "v2")
    assert [item.name for item in voice.items] == [
        name for name in data["kept_once"] if name != "zh_badbert"
    ]
    assert ("zh_badbert", t2s_rows.BAD_BERT) in voice.left_out
    upstream = T2SVoice(folder, "v2", compat=True)
    (item,) = (item for item in upstream.items if item.name == "zh_badbert")
    with pytest.raises(DataError, match=r"zh_badbert\.pt: .*15 phonemes"):
        upstream.read(item)


def test_the_order_is_that_of_the_original_sampler(data: Any, folder: Path) -> None:
    voice = T2SVoice(folder, "v2", compat=True)
    items = voice.repeated()
    index = {id(item): number for number, item in reversed(list(enumerate(items)))}
    for run in data["sampler_full"]:
        assert upstream_buckets([item.seconds for item in items]) == run["buckets"]
        for epoch, expected in run["epochs"].items():
            plan = voice.plan(run["batch_size"], 1234, int(epoch) + 1)
            assert [[index[id(item)] for item in batch] for batch in plan] == [
                [number % len(voice.items) for number in batch]
                for batch in expected["batches_of_the_loader"]
            ]
    lengths = data["sampler_lengths"]
    for run in lengths["runs"]:
        replicas, rank = run.get("replicas", 1), run.get("rank", 0)
        assert upstream_buckets(lengths["seconds"]) == run["buckets"]
        for epoch, expected in run["epochs"].items():
            batches = upstream_order(
                lengths["seconds"], run["batch_size"], int(epoch), replicas=replicas, rank=rank
            )
            assert batches == expected["batches_of_the_loader"]
            assert [index for batch in batches for index in batch] == expected["indices"]


def test_a_batch_is_that_of_the_original_collate(data: Any, folder: Path) -> None:
    voice = T2SVoice(folder, "v2", compat=True)
    expected = tensors("t2s_train", "data", "collate.safetensors")
    utterances = [voice.read(voice.items[index]) for index in data["collate_ids"]]
    fields = pad_utterances(utterances, compat=True)
    names = {
        "phones": "phoneme_ids",
        "phone_lengths": "phoneme_ids_len",
        "codes": "semantic_ids",
        "code_lengths": "semantic_ids_len",
    }
    for ours, theirs in names.items():
        np.testing.assert_array_equal(fields[ours], np.array(expected[theirs]))
    bert = fields["bert"].swapaxes(1, 2)
    assert list(bert.shape) == data["collate_bert_shape"]
    np.testing.assert_array_equal(bert[:, :4], np.array(expected["bert_feature_row0_3"]))
    sums = np.array(expected["bert_feature_colsum"])
    np.testing.assert_allclose(bert.sum(axis=1), sums, atol=1e-4)


def test_the_batch_size_is_that_of_the_original(data: Any) -> None:
    for rule in data["batch_size_rule"]:
        assert batch_size_for(rule["n"], rule["batch_size"], dpo=rule["if_dpo"]) == rule["used"]


PHONEMES = ["AA1", "B", "SH", "n", "a", "."] * 2


def write_folder(
    folder: Path, clips: dict[str, int], phonemes: dict[str, list[str]] | None = None
) -> Path:
    """Write texts and codes of clips, whose numbers of codes are given."""
    folder.mkdir(exist_ok=True)
    texts = [TextLine(name, (phonemes or {}).get(name, PHONEMES), "text") for name in clips]
    write_text_lines(folder / "2-name2text.txt", texts, [None] * len(texts))
    lines = [
        CodeLine(name, [(7 * place + 13 * number) % 1024 for place in range(count)])
        for number, (name, count) in enumerate(clips.items())
    ]
    write_code_lines(folder / "6-name2semantic.tsv", lines)
    return folder


def test_few_clips_are_repeated_as_the_original_does(data: Any, tmp_path: Path) -> None:
    for case in data["repetition"]:
        clips = {f"n{number}": 50 for number in range(case["items"])}
        path = write_folder(tmp_path, clips) / "6-name2semantic.tsv"
        if not case["header"]:
            path.write_text(path.read_text().partition("\n")[2])
        repeated = T2SVoice(tmp_path, "v2", compat=True).repeated()
        assert len(repeated) == case["dataset_len"]
        assert repeated[0].name == case["first"]
        assert read_rows(tmp_path, "v2").items[0].name == "n0"  # is not taken for a header


def test_names_that_are_numbers_find_their_texts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"001": 50, "2": 50})
    assert [item.name for item in T2SVoice(folder, "v2").items] == ["001", "2"]
    with pytest.raises(DataError, match=r"2 clips left out \(001, 2\): a number for a name"):
        T2SVoice(folder, "v2", compat=True)


def test_each_reason_is_a_sentence_with_its_clips(tmp_path: Path) -> None:
    clips = {f"slow{number}": 400 for number in range(7)} | {"good": 50, "strange": 50, "high": 50}
    folder = write_folder(tmp_path, clips, {"strange": ["NOTASYMBOL"] * 12})
    path = folder / "6-name2semantic.tsv"
    path.write_text(path.read_text() + "lonely\t1 2 3\nbroken\t1 x 3\n")
    path.write_text(path.read_text().replace("high\t", "high\t1024 "))
    with (folder / "2-name2text.txt").open("a") as file:
        file.write("unheard\tB AA1\tNone\tba\n")
    rows = read_rows(folder, "v2")
    assert [item.name for item in rows.items] == ["good"]
    sentences = count_reasons(rows.left_out)
    assert len(sentences) == 6
    for expected in (
        "7 clips left out (slow0, slow1, slow2, slow3, slow4, ...): fewer than 3 phonemes a second",
        "1 clip left out (strange): phonemes that the version lacks",
        "1 clip left out (lonely): no text in 2-name2text.txt",
        "1 clip left out (unheard): no codes in 6-name2semantic.tsv",
        "1 clip left out (high): codes that the GPT lacks",
        "1 clip left out (6-name2semantic.tsv: line 13 is not a name, a tab and codes): a damaged",
    ):
        assert any(sentence.startswith(expected) for sentence in sentences), expected


def test_a_folder_without_codes_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 50})
    (tmp_path / "6-name2semantic.tsv").unlink()
    with pytest.raises(DataError, match=r"6-name2semantic\.tsv: cannot be read .*codes"):
        T2SVoice(tmp_path, "v2")
    write_code_lines(tmp_path / "6-name2semantic.tsv", [])
    with pytest.raises(DataError, match="holds no clip to train the GPT on"):
        T2SVoice(tmp_path, "v2")


@pytest.fixture(scope="module")
def voice(tmp_path_factory: Any) -> T2SVoice:
    """Twelve clips of 1 to 3.2 seconds, one of them with BERT features."""
    folder = tmp_path_factory.mktemp("t2s") / "voice"
    lengths = {f"c{number}.wav": 25 + 5 * number for number in range(12)}
    phonemes = {name: PHONEMES[: 12 - place % 3] for place, name in enumerate(lengths)}
    write_folder(folder, lengths, phonemes)
    (folder / "3-bert").mkdir()
    features = np.random.default_rng(0).normal(size=(1024, 11)).astype(np.float32)
    write_torch_archive(folder / "3-bert" / "c1.wav.pt", features)
    return T2SVoice(folder, "v2", dpo=True)


def test_every_clip_is_in_an_epoch_once_for_each_repeat(voice: T2SVoice) -> None:
    plan = voice.plan(8, seed=1, epoch=1)
    assert Counter(item.name for batch in plan for item in batch) == dict.fromkeys(
        (item.name for item in voice.items), 8
    )
    assert sorted(map(len, plan)) == [8] * 12  # 96 clips
    assert plan != voice.plan(8, seed=1, epoch=2) != voice.plan(8, seed=2, epoch=2)


def test_batches_have_clips_of_similar_length() -> None:
    seconds = [0.1 * number for number in range(400)]
    for batch in epoch_order(seconds, 10, seed=3, epoch=1):
        lengths = [seconds[index] for index in batch]
        assert max(lengths) - min(lengths) <= 2.0


def test_a_resumed_epoch_goes_on_as_if_it_had_never_stopped(voice: T2SVoice) -> None:
    """Over the end of an epoch of 12 batches, with spoiled codes and BERT features."""
    through = list(islice(voice.endless(8, seed=5, epoch=1), 16))
    resumed = list(islice(voice.endless(8, seed=5, epoch=1, start=7), 9))
    for ours, theirs in zip(resumed, through[7:], strict=True):
        assert set(ours) == set(theirs) == set(T2SBatch._fields)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], name)
    batch = next(voice.batches(8, seed=5, epoch=1, start=7))
    np.testing.assert_array_equal(np.array(batch.rejected), resumed[0]["rejected"])


def test_rows_are_padded_where_attention_and_loss_do_not_look(voice: T2SVoice) -> None:
    with_bert = next(item for item in voice.items if item.has_bert)
    utterances = [voice.read(item) for item in (with_bert, *voice.items[-2:])]
    fields = pad_utterances(utterances, padding=T2SPadding(8, 10))
    assert fields["phones"].shape == (3, 16)
    assert fields["codes"].shape == (3, 80)
    assert fields["rejected"].shape == (3, 0)
    for row, utterance in enumerate(utterances):
        phones, codes = fields["phone_lengths"][row], fields["code_lengths"][row]
        np.testing.assert_array_equal(fields["phones"][row, -phones:], utterance.phones)
        np.testing.assert_array_equal(fields["codes"][row, :codes], utterance.codes)
        assert not fields["phones"][row, :-phones].any()
        assert (fields["codes"][row, codes:] == 1024).all()
    np.testing.assert_array_equal(fields["bert"][0, -11:], utterances[0].bert)
    assert not fields["bert"][0, :-11].any()
    assert not fields["bert"][1:].any()


def test_few_shapes_occur(voice: T2SVoice) -> None:
    shapes = {
        tuple(fields[name].shape for name in ("phones", "codes", "bert"))
        for fields in islice(voice.endless(8, seed=5, epoch=1), 12)
    }
    assert len(shapes) <= 2


def test_a_voice_without_bert_features_takes_no_room_for_them(tmp_path: Path) -> None:
    voice = T2SVoice(write_folder(tmp_path, {"a": 50, "b": 60}), "v2")
    assert next(voice.batches(2, seed=0, epoch=1)).bert.shape == (2, 32, 0)


def test_rows_are_spoiled_as_by_the_original() -> None:
    forward = tensors("t2s_train", "forward.safetensors")
    codes, ranges = np.array(forward["in/semantic_ids"]), np.array(forward["in/reject_range"])
    ops = np.array(forward["in/reject_op"])
    lengths = np.array(forward["in/semantic_ids_len"])
    utterances = [_utterance(row[:length]) for row, length in zip(codes, lengths, strict=True)]
    rejections = [
        Rejection(int(op), int(first), int(last))
        for op, (first, last) in zip(ops, ranges, strict=True)
    ]
    fields = pad_utterances(utterances, eos=64, rejections=rejections, compat=True)
    np.testing.assert_array_equal(fields["rejected"], np.array(forward["in/reject_y"]))
    np.testing.assert_array_equal(fields["rejected_lengths"], np.array(forward["in/reject_y_lens"]))


def _utterance(codes: np.ndarray) -> T2SUtterance:
    return T2SUtterance(np.arange(1, 4, dtype=np.int32), codes)


def test_a_stretch_is_said_twice_or_left_out() -> None:
    assert reject([1, 2, 3, 4, 5], Rejection(REPEAT, 1, 3)).tolist() == [1, 2, 3, 2, 3, 4, 5]
    assert reject([1, 2, 3, 4, 5], Rejection(DELETE, 1, 3)).tolist() == [1, 4, 5]
    assert reject([1, 2, 3], Rejection(DELETE, 2, 3)).tolist() == [1, 2]


def test_every_row_is_spoiled_within_its_own_codes() -> None:
    random = np.random.default_rng(0)
    lengths = [1, 2, 9, 30] * 100
    drawn = draw_rejections(lengths, random)
    for length, how in zip(lengths, drawn, strict=True):
        assert 0 <= how.start < how.end <= length
        row = list(range(length))
        assert reject(row, how).tolist() != row
    assert 140 < sum(how.op == REPEAT for how in drawn) < 260
    again = draw_rejections(lengths, np.random.default_rng(0))
    assert again == drawn


def test_batches_are_arrays_of_mlx(voice: T2SVoice) -> None:
    batch = next(voice.batches(4, seed=0, epoch=1))
    assert all(isinstance(array, mx.array) for array in batch)
