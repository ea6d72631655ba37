"""The GPT stage against the Python original: logits, sampling, generation, batches, streams."""

from __future__ import annotations

from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.config import T2SConfig
from mlx_vits.models.t2s import BERT_CHANNELS, Text2SemanticDecoder
from mlx_vits.synthesis.generation import (
    Request,
    generate,
    generate_batch,
    mute_likeness,
    stream,
)
from mlx_vits.synthesis.sampling import Sampling, draw_token, mark, penalize, probabilities
from tests.support.goldens import assert_close, assert_near, last, relative_l2, tensors, values
from tests.support.recipe import array_by_name

ATOL = 1e-4  # the goldens' own fp32 spread is below 1e-5
PENALTIES = (1.0, 1.35)


def build(eos_row: mx.array | None = None, max_sec: float = 54.0) -> Text2SemanticDecoder:
    """The goldens' net, with another row for EOS and another limit."""
    config = values("t2s", "config.json") | {"data": {"max_sec": max_sec}}
    model = Text2SemanticDecoder(T2SConfig.from_dict(config))
    weights = tensors("t2s", "weights.safetensors")
    if eos_row is not None:
        weights["ar_predict_layer.weight"][-1] = eos_row
    load_state(model, weights, source="t2s")
    return model


@pytest.fixture(scope="module")
def net() -> Text2SemanticDecoder:
    return build()


@pytest.fixture(scope="module")
def batch() -> dict[str, mx.array]:
    return tensors("t2s_batch", "batch.safetensors")


def requests(batch: dict[str, mx.array]) -> list[Request]:
    """The goldens' three texts; those that are listed have BERT features."""
    meta = values("t2s_batch", "meta.json")
    found = []
    for item in range(3):
        phones = batch[f"in/phones{item}"]
        bert = None
        if item < len(meta["bert_items"]):
            shape = (BERT_CHANNELS, len(phones))
            array = array_by_name(meta["bert_items"][item], meta["seed"], shape)
            bert = mx.array(meta["bert_scale"] * array).T
        found.append(Request(phones, bert))
    return found


# Logits.


def test_teacher_forced_logits_and_a_cached_step_are_upstreams(net: Text2SemanticDecoder) -> None:
    data = tensors("t2s", "io.safetensors")
    bert = last(data["in/bert"])
    for penalty in PENALTIES:
        y, theirs = (data[f"out/pen{penalty}/{name}"] for name in ("y", "logits"))
        first = y.shape[1] - len(theirs)
        logits = net(data["in/phoneme_ids"], y, bert)[0]
        assert_close(logits[first:-1], theirs, atol=ATOL)
        read = net.prefill(data["in/phoneme_ids"], data["in/prompt"], bert)
        stepped = [read.logits]
        stepped += [net.step(y[:, at], read.reading) for at in range(first, y.shape[1] - 1)]
        assert_close(mx.concatenate(stepped), theirs, atol=ATOL)


def test_what_makes_a_cpu_faster_changes_no_logits() -> None:
    data = tensors("t2s", "io.safetensors")
    inputs = data["in/phoneme_ids"], data["in/prompt"], last(data["in/bert"])
    with accel.use("cpu"):
        fast = accel.apply(build(), inference=True)
    for model in (fast, build()):
        logits = [model.prefill(*inputs).logits, model(*inputs)[:, -1]]
        for ours in logits:
            assert_close(ours[0], data["out/pen1.0/logits"][0], atol=ATOL)


def train_batch() -> tuple[dict[str, mx.array], dict[str, Any]]:
    """A batch as upstream's collate makes it, and the arguments of the model for it."""
    data = tensors("t2s_train", "forward.safetensors")
    meta = values("t2s_train", "meta.json")["forward"]
    phones, lengths = data["in/phoneme_ids"], data["in/phoneme_ids_len"]
    bert = np.zeros((*phones.shape, BERT_CHANNELS), np.float32)
    for item, name in zip(meta["bert_items"], meta["bert_names"], strict=True):
        own = lengths[item].item()
        array = array_by_name(name, meta["seed"], (BERT_CHANNELS, own))
        bert[item, :own] = meta["bert_scale"] * array.T
    # Upstream pads on the right and hides the left.
    seen = mx.arange(phones.shape[1]) >= phones.shape[1] - lengths[:, None]
    return data, {"phones": phones, "bert": mx.array(bert), "phones_seen": seen}


def test_training_logits_and_gradients_are_upstreams(net: Text2SemanticDecoder) -> None:
    data, inputs = train_batch()
    rejected, lengths = data["in/reject_y"], data["in/reject_y_lens"]
    seen = mx.arange(rejected.shape[1]) < lengths[:, None]
    padded = mx.where(seen, rejected, net.config.EOS)
    logits = net(codes=padded, codes_seen=seen, **inputs)
    assert_close(logits, data["forward/reject_logits"], atol=ATOL)
    codes, lengths = data["in/semantic_ids"], data["in/semantic_ids_len"]
    inputs |= {"codes": codes, "codes_seen": mx.arange(codes.shape[1]) < lengths[:, None]}
    assert_close(net(**inputs), data["forward_old/logits"], atol=ATOL)
    targets = mx.pad(codes, ((0, 0), (0, 1)), constant_values=net.config.EOS)

    def loss() -> mx.array:
        return mx.sum(nn.losses.cross_entropy(net(**inputs), targets))

    value, grads = nn.value_and_grad(net, loss)()
    assert_close(value, data["forward_old/loss"][0], rtol=1e-5)
    found: dict[str, mx.array] = dict(tree_flatten(grads))  # type: ignore[arg-type]
    for name, theirs in data.items():
        if name.startswith("forward_old/grad/") and not name.endswith("in_proj_bias"):
            ours = found[name.removeprefix("forward_old/grad/")]
            assert relative_l2(ours, theirs) < 3e-4, name


# Sampling.


@pytest.mark.parametrize("name", ["normal", "negative", "flat_noeos", "ties", "batch3", "full1025"])
def test_every_sampling_setting_gives_upstreams_probabilities_and_tokens(name: str) -> None:
    data = tensors("t2s_sample", "sample.safetensors")
    given = {k: data[f"{name}/in/{k}"] for k in ("logits", "previous", "exponential")}
    out = {
        key.removeprefix(f"{name}/out/"): np.array(value)
        for key, value in data.items()
        if key.startswith(f"{name}/out/")
    }
    grid = values("t2s_sample", "meta.json")["grid"]
    if len(out["token"]) < len(grid):
        grid = [setting for setting in grid if setting["top_p"] == 1]
    assert len(grid) == len(out["token"])
    for index, setting in enumerate(grid):
        probs = probabilities(given["logits"], given["previous"], **setting)
        if name == "full1025":
            theirs, ids = out["probs_topk5"][index]  # the five best
            assert_close(probs[0][mx.array(ids.astype(int))], theirs, atol=1e-5)
        else:
            assert_close(probs, out["probs"][index], atol=1e-5)
        assert np.array_equal(np.sum(np.array(probs) > 0, axis=-1), out["kept"][index])
        for draw, noise in enumerate(given["exponential"]):
            assert np.array_equal(draw_token(probs, noise), out["token"][index][draw])


@pytest.mark.parametrize("name", ["normal", "negative", "batch3", "full1025"])
def test_the_penalty_changes_each_code_once(name: str) -> None:
    data = tensors("t2s_sample", "sample.safetensors")
    logits, previous = (data[f"{name}/in/{key}"] for key in ("logits", "previous"))
    for penalty in PENALTIES:
        ours = penalize(logits, mark(previous, logits.shape[1]), penalty)
        assert_close(ours, data[f"{name}/out/logits_after_penalty_{penalty}"], rtol=1e-6)


@pytest.mark.parametrize(
    "setting", [{"top_k": 0}, {"top_p": 1.5}, {"temperature": -1.0}, {"repetition_penalty": 0.0}]
)
def test_a_setting_without_a_meaning_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        probabilities(mx.zeros((1, 5)), mx.zeros((1, 0), mx.int32), **setting)


# Generation.

GREEDY = {"top_k": 1}


def used(batch: dict[str, mx.array], run: str, way: str, item: int, prompt: int) -> list[int]:
    """The codes of a golden that upstream goes on with: the last `idx`, all where that is 0."""
    y = batch[f"{run}/{way}/y{item}"].tolist()
    return y[prompt:][-batch[f"{run}/{way}/idx"][item].item() :]


@pytest.mark.parametrize("run", ["stored", "eosrow", "reffree"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_greedy_codes_are_upstreams(run: str, penalty: float, batch: dict[str, mx.array]) -> None:
    """Row by row and as a batch, ended by EOS or by a limit, with a prompt and without."""
    name = f"{run}/pen{penalty}"
    runs = values("t2s_batch", "meta.json")["runs"]
    early = runs.get(name, runs.get(f"{name}/naive"))["early_stop_num"]
    model = build(None if run == "stored" else batch["in/eos_row"], early / 50)
    prompt = None if run == "reffree" else batch["in/prompt"]
    said = 0 if prompt is None else len(prompt)
    sampling = Sampling(**GREEDY, repetition_penalty=penalty)
    together = generate_batch(model, requests(batch), prompt, sampling, compat=True)
    right = generate_batch(model, requests(batch), prompt, sampling)
    for item, request in enumerate(requests(batch)):
        alone = generate(model, request, prompt, sampling, compat=True)
        assert alone.codes.tolist() == used(batch, name, "naive", item, said)
        assert together[item].codes.tolist() == used(batch, name, "batched", item, said)
        # Neither a limit nor a missing prompt takes anything away by default.
        whole = batch[f"{name}/naive/y{item}"].tolist()[said:]
        assert generate(model, request, prompt, sampling).codes.tolist() == whole
        assert right[item].codes.tolist() == whole
        assert right[item].ended == (len(whole) <= early)


def test_sampled_codes_are_upstreams(batch: dict[str, mx.array]) -> None:
    run = values("t2s_batch", "meta.json")["runs"]["sampled/batched"]
    model = build(batch["in/eos_row"], run["early_stop_num"] / 50)
    sampling = Sampling(15, 0.9, 1.2, run["repetition_penalty"])
    noise = batch["in/exponential"]
    together = generate_batch(model, requests(batch), batch["in/prompt"], sampling, noise=noise)
    for item, request in enumerate(requests(batch)):
        theirs = batch[f"sampled/batched/y{item}"].tolist()[len(batch["in/prompt"]) :]
        assert together[item].codes.tolist() == theirs
        assert together[item].ended
        own = noise[:, item : item + 1]
        alone = generate(model, request, batch["in/prompt"], sampling, noise=own)
        assert alone.codes.tolist() == theirs


@pytest.mark.parametrize("run", ["0_mute", "1_mute", "2_mute", "0_fixed", "1_fixed", "2_fixed"])
def test_streamed_chunks_are_upstreams(run: str, batch: dict[str, mx.array]) -> None:
    meta = values("t2s_batch", "meta.json")["runs"][f"stream/{run}"]
    model = build(None, meta["early_stop_num"] / 50)
    request, sampling = requests(batch)[0], Sampling(**GREEDY)

    def chunks(compat: bool) -> list[list[int]]:
        mute = meta["mute_token"]
        found = list(
            stream(
                model,
                request,
                batch["in/prompt"],
                sampling,
                chunk="fixed" if mute is None else "pause",
                chunk_length=meta["chunk_length"],
                threshold=meta["threshold"],
                mute_code=mute or 0,
                compat=compat,
            )
        )
        assert [chunk.is_final for chunk in found] == [False] * (len(found) - 1) + [True]
        return [chunk.codes.tolist() for chunk in found]

    theirs = [batch[f"stream/{run}/chunk{k}"].tolist() for k in range(len(meta["final"]))]
    assert chunks(compat=True) == theirs
    # By default no code twice, and no waiting for a pause that does not come.
    right = chunks(compat=False)
    least = meta["chunk_length"]
    assert all(least <= len(chunk) <= 2 * least + 2 for chunk in right[:-1])
    whole = generate(model, request, batch["in/prompt"], sampling).codes.tolist()
    assert list(chain.from_iterable(right)) == whole


def test_likeness_to_silence_is_upstreams(
    net: Text2SemanticDecoder, batch: dict[str, mx.array]
) -> None:
    assert_close(mute_likeness(net, 48), batch["stream/mute_similarity"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.torch
def test_full_size_logits_are_pytorchs() -> None:
    """24 layers of PyTorch's own, and codes one by one through the cache."""
    torch = pytest.importorskip("torch")
    mx.random.seed(1)
    model = Text2SemanticDecoder()
    random = np.random.default_rng(1)
    phones, codes = random.integers(0, 732, (1, 60)), random.integers(0, 1024, (1, 80))
    bert = random.standard_normal((1, 60, BERT_CHANNELS)).astype(np.float32)
    state = {name: torch.tensor(np.array(value)) for name, value in state_of(model).items()}

    def embed(kind: str, ids: np.ndarray) -> Any:
        steps = torch.exp(torch.arange(0, 512, 2) * (-np.log(10000.0) / 512))
        angles = torch.arange(ids.shape[1])[:, None] * steps
        sines = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, -1, 512)
        table = state[f"ar_{kind}_embedding.word_embeddings.weight"]
        return table[torch.tensor(ids)], state[f"ar_{kind}_position.alpha"] * sines

    with torch.inference_mode():
        projected = torch.nn.functional.linear(
            torch.tensor(bert), state["bert_proj.weight"], state["bert_proj.bias"]
        )
        text = sum(embed("text", phones)) + projected
        x = torch.cat([text, sum(embed("audio", codes))], dim=1)
        hidden = torch.ones(140, 140, dtype=torch.bool).triu(1)
        hidden[:60, :60] = False
        for index in range(24):
            layer = torch.nn.TransformerEncoderLayer(512, 16, 2048, 0.0, batch_first=True)
            prefix = f"h.layers.{index}."
            layer.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
            x = layer(x, src_mask=hidden)
        theirs = (x[0, 59:] @ state["ar_predict_layer.weight"].T).numpy()
    given = mx.array(phones), mx.array(codes), mx.array(bert)
    assert_near(model(*given)[0], theirs)
    read = model.prefill(given[0], given[1][:, :70], given[2])
    stepped = [read.logits] + [model.step(given[1][:, at], read.reading) for at in range(70, 80)]
    assert_near(mx.concatenate(stepped), theirs[70:])
