"""The GPT stage's step against the Python original, and what its options promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import BERT_CHANNELS, Text2SemanticDecoder
from mlx_vits.training.regularization import StackedPull, take_anchor
from mlx_vits.training.scaled_adam import ScaledAdam
from mlx_vits.training.t2s_step import T2SBatch, T2SStep, t2s_logits, t2s_terms
from tests.support.goldens import assert_close, relative_l2, tensors, values
from tests.support.recipe import array_by_name
from tests.support.t2s_voice import batch_of, random_clips
from tests.support.tiny_gpt import tiny_gpt

KEY = mx.random.key(3)
# A constant added to all keys changes no attention: this third of the gradient is rounding.
KEYS = slice(32, 64)


def golden_net() -> Text2SemanticDecoder:
    model = Text2SemanticDecoder(T2SConfig.from_dict(values("t2s", "config.json")))
    load_state(model, tensors("t2s", "weights.safetensors"), source="t2s")
    return model


def golden_batch(data: dict[str, mx.array], names: Sequence[str], meta: Any) -> T2SBatch:
    """A batch as upstream's collate makes it; the first rows have BERT features, by name."""
    phones, lengths = data["phoneme_ids"], data["phoneme_ids_len"]
    bert = np.zeros((*phones.shape, BERT_CHANNELS), np.float32)
    for row, name in enumerate(names):
        length = lengths[row].item()
        array = array_by_name(name, meta["seed"], (BERT_CHANNELS, length))
        bert[row, :length] = meta["bert_scale"] * array.T
    empty = mx.zeros((len(phones), 0), mx.int32), mx.zeros((len(phones),), mx.int32)
    return T2SBatch(
        phones,
        lengths,
        data["semantic_ids"],
        data["semantic_ids_len"],
        mx.array(bert),
        data.get("reject_y", empty[0]),
        data.get("reject_y_lens", empty[1]),
    )


def below(data: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def flat(tree: Any) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(tree)
    return dict(leaves)


def make_step(model: Text2SemanticDecoder, **options: Any) -> T2SStep:
    return T2SStep(model, optim.SGD(1e-3), **options)


@pytest.mark.parametrize(("dpo", "name"), [(False, "forward_old"), (True, "forward")])
def test_losses_logits_and_gradients_are_upstreams(dpo: bool, name: str) -> None:
    data, meta = tensors("t2s_train", "forward.safetensors"), values("t2s_train", "meta.json")
    batch = golden_batch(below(data, "in/"), meta["forward"]["bert_names"], meta["forward"])
    theirs = below(data, f"{name}/")
    step = make_step(golden_net(), dpo=dpo, compat=True)
    terms, gradients = step.gradients(batch)
    assert_close(sum(terms.losses.values()), theirs["loss"][0], rtol=1e-5)
    assert_close(terms.hits / terms.codes, theirs["top3_acc"][0], rtol=1e-5)
    logits = t2s_logits(step.model, batch, batch.codes, batch.code_lengths, compat=True)
    assert_close(logits, theirs["logits"], atol=1e-4)
    if dpo:
        assert_close(terms.losses["loss_dpo"], theirs["loss_dpo"][0], rtol=1e-5)
        rejected = batch.rejected, batch.rejected_lengths
        logits = t2s_logits(step.model, batch, *rejected, compat=True)
        assert_close(logits, theirs["reject_logits"], atol=1e-4)
    ours = flat(gradients)
    assert set(ours) == {key.removeprefix("grad/") for key in theirs if key.startswith("grad/")}
    for key, gradient in ours.items():
        assert relative_l2(gradient, theirs[f"grad/{key}"]) < 3e-4, key


def test_twelve_steps_are_upstreams() -> None:
    """49 micro-batches: five of them in the first step, at 0.01, then four at 0.002."""
    data, meta = tensors("t2s_train", "train12.safetensors"), values("t2s_train", "meta.json")
    meta = meta["train12"]
    batches = [
        golden_batch(below(data, f"in/mb{k}/"), [f"mb{k}/bert0"] * (f"mb{k}" in meta["bert"]), meta)
        for k in range(meta["n_micro_batches"])
    ]
    optimizer = ScaledAdam(0.01, compat=True)
    step = T2SStep(golden_net(), optimizer, compat=True)
    first = 0
    for number, last in enumerate(meta["step_at_batch_idx"], 1):
        group = [batches[index % len(batches)] for index in range(first, last + 1)]
        optimizer.learning_rate = data["lr_used"][number - 1].item()
        found = step(group, None)
        whole = mx.sum(data["loss"][first : last + 1]).item()
        assert found["loss_ce"].item() == pytest.approx(whole, rel=1e-5 if number == 1 else 1e-4)
        first = last + 1
        if f"step{number}/param/bert_proj.bias" in data:
            moved = meta["fp32_vs_fp64_params"][f"step{number}"]["delta_norm"]
            for name, ours in flat(step.model.parameters()).items():
                off = np.array(ours - data[f"step{number}/param/{name}"])
                if name.endswith("in_proj_bias"):
                    off[KEYS] = 0
                assert np.linalg.norm(off) <= 0.02 * moved[name], (number, name)
                assert np.abs(off).max() <= 1e-4, (number, name)


def test_a_padded_batch_is_its_clips_one_by_one() -> None:
    model, clips = tiny_gpt(), random_clips(4)
    together = t2s_terms(model, batch_of(clips), dpo=True)
    alone = [t2s_terms(model, batch_of([clip]), dpo=True) for clip in clips]
    assert_close(together.losses["loss_ce"], sum(t.losses["loss_ce"] for t in alone), rtol=1e-5)
    means = sum(terms.losses["loss_dpo"] for terms in alone) / len(clips)
    assert_close(together.losses["loss_dpo"], means, rtol=1e-4, atol=1e-5)
    assert together.targets.item() == sum(len(clip.codes) + 1 for clip in clips)
    # Upstream's way differs: short clips lose phonemes, and padding counts.
    upstreams = t2s_terms(model, batch_of(clips, compat=True), compat=True).losses["loss_ce"]
    assert abs(upstreams.item() / together.losses["loss_ce"].item() - 1) > 0.01


def test_micro_batches_are_the_step_of_the_large_batch() -> None:
    clips, found = random_clips(6), []
    for batches in ([batch_of(clips)], [batch_of(clips[:2]), batch_of(clips[2:])]):
        model = tiny_gpt()
        pull = StackedPull(model, take_anchor(model), 1.0)
        attention = model.h.layers[0].self_attn
        attention.in_proj_weight = 1.1 * attention.in_proj_weight
        step = make_step(model, penalty=pull)
        losses = step(batches, None)
        found.append(({k: v.item() for k, v in losses.items()}, flat(step.model.parameters())))
    (whole, weights), (parted, others) = found
    assert whole["loss_reg"] > 0
    assert parted == pytest.approx(whole, rel=1e-4)
    for name, array in weights.items():
        assert_close(others[name], array, atol=1e-5)


@pytest.mark.parametrize("compute", [mx.float32, mx.bfloat16], ids=str)
def test_layers_that_are_computed_again_learn_the_same(compute: mx.Dtype) -> None:
    """With dropout: the masks are drawn again."""
    found = []
    for recomputes in (False, True):
        step = make_step(tiny_gpt(), recomputes=recomputes, compute=compute)
        terms, gradients = step.gradients(batch_of(random_clips(2)), KEY)
        assert flat(step.model.parameters())["bert_proj.bias"].dtype == mx.float32
        found.append((terms.losses["loss_ce"].item(), flat(gradients)))
    (kept, ours), (again, theirs) = found
    assert again == kept
    for name, gradient in ours.items():
        if not name.endswith("in_proj_bias"):
            assert gradient.dtype == mx.float32
            assert relative_l2(theirs[name], gradient) < (1e-5 if compute == mx.float32 else 0.1)


def test_bf16_is_near_and_updates_fp32_weights() -> None:
    batch = batch_of(random_clips(3))
    exact, rough = (
        make_step(tiny_gpt(), compute=compute).gradients(batch)
        for compute in (mx.float32, mx.bfloat16)
    )
    assert rough.terms.losses["loss_ce"].item() == pytest.approx(
        exact.terms.losses["loss_ce"].item(), rel=0.01
    )
    for name, gradient in flat(exact.gradients).items():
        if "weight" in name:
            assert relative_l2(flat(rough.gradients)[name], gradient) < 0.1, name
    step = make_step(tiny_gpt(), compute=mx.bfloat16)
    step([batch], KEY)
    assert {array.dtype for array in flat(step.model.parameters()).values()} == {mx.float32}


def test_a_compiled_step_draws_other_masks_each_time() -> None:
    batch, found = batch_of(random_clips(2)), {}
    for compiled in (False, True):
        step = make_step(tiny_gpt(), compiled=compiled)
        found[compiled] = [step([batch], mx.random.key(n))["loss_ce"].item() for n in (1, 2, 1)]
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    assert len(set(found[True])) == 3
