"""A GPT as a caller uses it: seeds, batches, limits, streams, bad arguments, quantized weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_vits
from mlx_vits.models.t2s import TransformerEncoderLayer
from mlx_vits.nn.checkpointing import checkpoint_blocks, checkpointing
from tests.support.goldens import golden, tensors
from tests.support.tiny_gpt import EOS, tiny_gpt

PROMPT = np.array([[3, 1, 4, 1, 5]])
LENGTHS = (9, 17, 4)


def phones(length: int) -> np.ndarray:
    return (np.arange(length) * 37 % 732)[None]


def bert(length: int) -> np.ndarray:
    return np.sin(np.arange(1024 * length, dtype=np.float32)).reshape(1, 1024, length)


@pytest.fixture(scope="module")
def gpt() -> mlx_vits.GPT:
    return mlx_vits.GPT(tiny_gpt())


def say(gpt: mlx_vits.GPT, length: int = 9, **options: Any) -> list[int]:
    options = {"prompt": PROMPT, "bert": bert(length), "max_tokens": 40} | options
    codes = gpt.generate(phones(length), **options)
    assert codes.dtype == np.int32
    assert ((codes >= 0) & (codes < EOS)).all()
    return codes.tolist()


def test_the_same_seed_gives_the_same_codes(gpt: mlx_vits.GPT) -> None:
    assert say(gpt, seed=3) == say(gpt, seed=3)
    assert len({tuple(say(gpt, seed=seed)) for seed in range(4)}) == 4


def test_any_thread_gets_the_same_codes(gpt: mlx_vits.GPT) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda seed: say(gpt, seed=seed), (1, 2))) == [
            say(gpt, seed=1),
            say(gpt, seed=2),
        ]


@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_a_row_is_what_it_is_alone(prompt: np.ndarray | None, gpt: mlx_vits.GPT) -> None:
    """Whatever else is in the batch, whenever that ends, and wherever the row stands in it."""
    features = [bert(LENGTHS[0]), None, bert(LENGTHS[2])]
    options: dict[str, Any] = {"prompt": prompt, "max_tokens": 60}
    rows = gpt.generate_batch(
        [phones(n) for n in LENGTHS], bert=features, seeds=(7, 8, 9), **options
    )
    alone = [
        say(gpt, n, bert=own, seed=seed, **options)
        for n, own, seed in zip(LENGTHS, features, (7, 8, 9), strict=True)
    ]
    assert [row.codes.tolist() for row in rows] == alone
    assert [row.ended for row in rows] == [len(codes) < 60 for codes in alone]
    assert len({len(codes) for codes in alone}) > 1
    other = gpt.generate_batch(
        [phones(n) for n in LENGTHS[1:]], bert=features[1:], seeds=(8, 9), **options
    )
    assert [row.codes.tolist() for row in other] == alone[1:]


def test_a_limit_takes_no_code_away(gpt: mlx_vits.GPT) -> None:
    whole = say(gpt, max_tokens=40, seed=3)
    assert say(gpt, max_tokens=10, seed=3) == whole[:10]
    assert say(gpt, max_tokens=1, seed=3) == whole[:1]
    # Upstream loses the first of one row, and the last of each row of a batch.
    assert say(gpt, max_tokens=10, seed=3, compat=True) == whole[1:10]
    options: dict[str, Any] = {"prompt": PROMPT, "bert": [bert(9)], "seeds": [3], "max_tokens": 10}
    [row] = gpt.generate_batch([phones(9)], compat=True, **options)
    assert row.codes.tolist() == whole[:9]
    assert not row.ended


def test_codes_of_the_longest_sequence_are_those_of_a_cache_that_grew() -> None:
    """Past the cache's first blocks a step gives what the whole sequence at once gives."""
    gpt = mlx_vits.GPT(tiny_gpt(max_sec=6.0))
    noise = np.ones((400, 1, EOS + 1), np.float32)
    noise[..., EOS] = np.inf  # never drawn
    codes = say(gpt, max_tokens=None, noise=noise, top_k=EOS + 1, repetition_penalty=1.0)
    logits = gpt.logits(phones(9), np.array([PROMPT[0].tolist() + codes]), bert=bert(9))
    greedy = logits[PROMPT.shape[1] : -1, :EOS].argmax(axis=-1)
    assert greedy.tolist() == codes
    assert len(codes) == 301  # 50 * 6, exceeded


@pytest.mark.parametrize("chunk", ["pause", "fixed"])
def test_a_stream_gives_every_code_once(chunk: Any, gpt: mlx_vits.GPT) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "seed": 6, "max_tokens": 60, "top_k": EOS}
    chunks = list(
        gpt.stream(phones(9), chunk=chunk, chunk_length=5, threshold=-1.0, mute_code=6, **options)
    )
    assert [part.is_final for part in chunks] == [False] * (len(chunks) - 1) + [True]
    whole = list(chain.from_iterable(part.codes.tolist() for part in chunks))
    assert whole == gpt.generate(phones(9), **options).tolist()
    assert len(chunks) > 1
    assert min(len(part.codes) for part in chunks[:-1]) >= 5


def test_a_stream_passes_from_thread_to_thread(gpt: mlx_vits.GPT) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "bert": bert(9), "seed": 6, "max_tokens": 60}
    chunks = gpt.stream(phones(9), chunk="fixed", chunk_length=5, **options)
    with ThreadPoolExecutor(1) as pool:
        parts = [pool.submit(next, chunks).result(), *chunks]
    whole = list(chain.from_iterable(part.codes.tolist() for part in parts))
    assert whole == gpt.generate(phones(9), **options).tolist()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (r"phones has shape \[1, 0\]", {"phones": np.zeros((1, 0), int)}),
        (r"phones has shape \[9\]", {"phones": np.arange(9)}),
        ("phones reaches from 0 to 732", {"phones": np.array([[0, 732]])}),
        ("phones holds float", {"phones": np.ones((1, 4), np.float32)}),
        (r"bert has shape \[1, 1024, 5\]; \[1, 1024, 9\]", {"bert": bert(5)}),
        (r"bert has shape \[1, 9, 1024\]", {"bert": bert(9).swapaxes(1, 2)}),
        ("prompt reaches from 24 to 24", {"prompt": np.array([[EOS]])}),
        ("seed is -1", {"seed": -1}),
        ("max_tokens is 0", {"max_tokens": 0}),
        ("top_k is 0", {"top_k": 0}),
        ("repetition_penalty is nan", {"repetition_penalty": float("nan")}),
        (r"noise has shape", {"noise": np.ones((5, 2, EOS + 1))}),
    ],
)
def test_a_wrong_argument_is_named(words: str, options: dict[str, Any], gpt: mlx_vits.GPT) -> None:
    given = {"phones": phones(9)} | options
    with pytest.raises(ValueError, match=words):
        gpt.generate(**given)


def test_lists_of_a_batch_have_one_length(gpt: mlx_vits.GPT) -> None:
    with pytest.raises(ValueError, match="2 texts, 2 BERT features and 1 seeds"):
        gpt.generate_batch([phones(9), phones(4)], seeds=[1])
    with pytest.raises(ValueError, match="at least one"):
        gpt.generate_batch([])


def test_a_stream_names_a_wrong_argument_at_once(gpt: mlx_vits.GPT) -> None:
    for words, options in (
        ("mute_code is 486", {}),  # of a full-size table
        ("chunk is 'word'", {"chunk": "word"}),
        ("chunk_length is 0", {"mute_code": 2, "chunk_length": 0}),
    ):
        with pytest.raises(ValueError, match=words):
            gpt.stream(phones(9), **options)  # type: ignore[arg-type]


def test_quantized_weights_give_nearly_the_same() -> None:
    codes = np.array([[1, 2, 3, 4]])
    whole = mlx_vits.GPT(tiny_gpt()).logits(phones(9), codes)
    gpt = mlx_vits.GPT(tiny_gpt()).quantize(8)
    assert np.abs(gpt.logits(phones(9), codes) - whole).max() < 0.05 * np.abs(whole).max()
    assert say(gpt, seed=3) == say(gpt, seed=3)
    with pytest.raises(ValueError, match="quantized to 8 bits already"):
        gpt.quantize()


def test_quantized_golden_net_prefers_the_same_codes() -> None:
    data = tensors("t2s", "io.safetensors")
    inputs = data["in/phoneme_ids"], data["out/pen1.0/y"]
    folder = golden("t2s", "config.json").parent
    ours = mlx_vits.load_gpt(folder).quantize(8).logits(*inputs, bert=data["in/bert"])
    theirs = mlx_vits.load_gpt(folder).logits(*inputs, bert=data["in/bert"])
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.9


# What training asks of the model.


def test_dropout_depends_on_its_key_and_passes_through_compile() -> None:
    model = tiny_gpt()
    inputs = mx.array(phones(9)), mx.array(PROMPT)

    @mx.compile
    def logits(key: mx.array) -> mx.array:
        return model(*inputs, key=key)

    first, again, other = (logits(mx.random.key(seed)) for seed in (1, 1, 2))
    assert mx.array_equal(first, again)
    assert not mx.allclose(first, other)
    assert not mx.allclose(first, model(*inputs))


def test_recomputed_layers_give_the_same_gradient() -> None:
    model = checkpoint_blocks(tiny_gpt(), [TransformerEncoderLayer])
    inputs = mx.array(phones(9)), mx.array(PROMPT)
    key = mx.random.key(1)

    def loss() -> mx.array:
        return mx.sum(model(*inputs, key=key)[:, :, 0])

    plain = nn.value_and_grad(model, loss)()[1]
    with checkpointing():
        recomputed = nn.value_and_grad(model, loss)()[1]
    pairs: Any = zip(tree_flatten(plain), tree_flatten(recomputed), strict=True)
    for (name, ours), (_, theirs) in pairs:
        assert mx.allclose(ours, theirs, atol=1e-5), name


def test_hidden_padding_changes_no_logits_but_its_own() -> None:
    model = tiny_gpt()
    codes = mx.array(PROMPT)
    alone = model(mx.array(phones(9)), codes)
    padded = mx.array(np.pad(phones(9), ((0, 0), (0, 3))))
    seen = mx.arange(12)[None] < 9
    together = model(padded, mx.pad(codes, ((0, 0), (0, 2))), phones_seen=seen)
    # All rows but the first are read at codes, which see the phonemes that are shown.
    assert mx.allclose(together[:, 1:6], alone[:, 1:], atol=1e-5)
