"""One step of the GPT stage: micro-batches, whose gradients are summed, and an update.

Source: GPT-SoVITS `AR/models/t2s_lightning_module.py`, `AR/models/t2s_model.py` (`forward`,
`forward_old`), `AR/models/utils.py`; direct preference optimization without a reference model,
arXiv:2305.18290. Axes: B batch, X phonemes, Y codes, R rejected codes.

Upstream's loss has two faults, which `compat` brings back: phonemes are padded on the right, while
the left is hidden, so that short rows lose their first phonemes; and what codes are padded with
counts as if it were to be learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim

from mlx_vits.models.t2s import Text2SemanticDecoder, TransformerEncoderLayer
from mlx_vits.nn.checkpointing import checkpoint_blocks, checkpointing
from mlx_vits.nn.dropout import Key, split_key
from mlx_vits.training.losses import mean, total
from mlx_vits.training.optimizers import add_gradients
from mlx_vits.training.precision import cast_floats
from mlx_vits.training.regularization import StackedPull
from mlx_vits.training.stacks import stacked_norm
from mlx_vits.training.step import Scalars

DPO_BETA = 0.2
_TOP = 3


class T2SBatch(NamedTuple):
    """A micro-batch.

    Attributes:
        phones: `(B, X)` int32, padded with 0 on the left, with `compat` on the right.
        phone_lengths: `(B,)` int32.
        codes: `(B, Y)` int32, padded with EOS on the right. What lies beyond a row's length is
            there for the shape, and is no target.
        code_lengths: `(B,)` int32.
        bert: `(B, X, C)`, padded like `phones`; C = 0 where no clip of the voice has BERT features.
        rejected: `(B, R)` int32, spoiled codes for DPO, padded on the right; R = 0 without DPO.
        rejected_lengths: `(B,)` int32.
    """

    phones: mx.array
    phone_lengths: mx.array
    codes: mx.array
    code_lengths: mx.array
    bert: mx.array
    rejected: mx.array
    rejected_lengths: mx.array


class T2STerms(NamedTuple):
    """What a micro-batch gives; all of it may be summed over micro-batches.

    Attributes:
        losses: by name, `loss_ce` and, with DPO, `loss_dpo`.
        hits: codes that are among the three most likely, a scalar; EOS is left out.
        codes: of how many.
        targets: codes and EOS whose cross-entropy is in `loss_ce`.
    """

    losses: Scalars
    hits: mx.array
    codes: mx.array
    targets: mx.array


class Gradients(NamedTuple):
    """A micro-batch's terms, and the gradients of the sum of its losses."""

    terms: T2STerms
    gradients: Any


class _Judged(NamedTuple):
    """The targets `(B, Y + 1)`, their log-probabilities in fp32, and which of them count."""

    targets: mx.array
    log_probs: mx.array
    counted: mx.array
    hits: mx.array


def t2s_logits(
    model: Text2SemanticDecoder,
    batch: T2SBatch,
    codes: mx.array,
    lengths: mx.array,
    *,
    compat: bool = False,
    key: Key = None,
) -> mx.array:
    """Teacher-forced logits of a micro-batch's phonemes and these codes, `(B, Y + 1, V)`, fp32.

    Args:
        codes: `(B, Y)`, padded on the right; their padding is read as EOS.
        lengths: `(B,)`.
        key: of dropout.
    """
    bert = batch.bert if batch.bert.shape[-1] else None
    padding = batch.phones.shape[1] - batch.phone_lengths
    valid = mx.arange(codes.shape[1]) < lengths[:, None]
    inputs = mx.where(valid, codes, model.config.EOS)
    if compat:
        seen = mx.arange(batch.phones.shape[1]) >= padding[:, None]
        masks = {"phones_seen": seen, "codes_seen": valid}
    else:
        # Padded codes come last, and no code sees what comes after it.
        masks = {"padding": padding}
    return model(batch.phones, inputs, bert, key=key, **masks).astype(mx.float32)


def _judge(
    model: Text2SemanticDecoder,
    batch: T2SBatch,
    codes: mx.array,
    lengths: mx.array,
    compat: bool,
    key: Key,
    inputs: mx.array | None = None,
) -> _Judged:
    shown = codes if inputs is None else inputs
    logits = t2s_logits(model, batch, shown, lengths, compat=compat, key=key)
    place = mx.arange(codes.shape[1] + 1)
    targets = mx.where(place < lengths[:, None], mx.pad(codes, [(0, 0), (0, 1)]), model.config.EOS)
    found = mx.take_along_axis(logits, targets[..., None], axis=-1)
    counted = mx.ones(targets.shape, mx.bool_) if compat else place <= lengths[:, None]
    log_probs = (found[..., 0] - mx.logsumexp(logits, axis=-1)) * counted
    ahead = mx.sum(mx.stop_gradient(logits > found), axis=-1)
    hits = mx.sum((ahead < _TOP) & (targets != model.config.EOS))
    return _Judged(targets, log_probs, counted, hits)


def t2s_terms(
    model: Text2SemanticDecoder,
    batch: T2SBatch,
    *,
    dpo: bool = False,
    compat: bool = False,
    replaced: float = 0.0,
    key: Key = None,
) -> T2STerms:
    """Compute the losses of a micro-batch.

    `loss_ce` is the cross-entropy summed over all codes and each row's EOS; `loss_dpo` a mean over
    rows, as upstream's.

    Args:
        dpo: whether rejected codes are to be made less likely than the recorded ones.
        compat: whether to compute what upstream does, see above.
        replaced: share of the recorded codes in whose place the model is shown others.
        key: of dropout and of these; None for evaluation, without either.
    """
    first, second, third = split_key(key, 3)
    inputs = _replace(batch.codes, replaced, model.config.EOS, third)
    chosen = _judge(model, batch, batch.codes, batch.code_lengths, compat, first, inputs)
    losses = {"loss_ce": -total(chosen.log_probs)}
    if dpo:
        rejected = _judge(model, batch, batch.rejected, batch.rejected_lengths, compat, second)
        lead = mx.sum(chosen.log_probs, axis=1) - mx.sum(rejected.log_probs, axis=1)
        losses["loss_dpo"] = mean(mx.logaddexp(-DPO_BETA * lead, mx.array(0.0)))
    codes = mx.sum(chosen.targets != model.config.EOS)
    return T2STerms(losses, chosen.hits, codes, mx.sum(chosen.counted))


def _replace(codes: mx.array, share: float, entries: int, key: Key) -> mx.array:
    """Codes, a share of which are others of as many as there are; all stay without a key."""
    if key is None or not share:
        return codes
    which, what = split_key(key, 2)
    others = mx.random.randint(0, entries, codes.shape, mx.int32, key=what)
    return mx.where(mx.random.bernoulli(share, codes.shape, key=which), others, codes)


class CodeScore(NamedTuple):
    """How well a GPT foretells codes: cross-entropy a code, and top-3 accuracy."""

    ce: float
    top3_accuracy: float


def score_codes(model: Text2SemanticDecoder, batches: Iterable[T2SBatch]) -> CodeScore:
    """Score a GPT on clips, as those that are held out of training; without dropout.

    Args:
        batches: at least one.
    """
    summed: Any = None
    for batch in batches:
        terms = t2s_terms(model, batch)
        summed = terms if summed is None else add_gradients(summed, terms)
        mx.eval(summed)
    ce = summed.losses["loss_ce"].item() / summed.targets.item()
    return CodeScore(ce, summed.hits.item() / max(summed.codes.item(), 1))


class T2SStep:
    """The step over the GPT and its optimizer.

    Args:
        model: trained as a whole.
        optimizer: of it.
        dpo, compat, replaced: see `t2s_terms`.
        penalty: the pull toward the base, added once to the loss of a step.
        compute: what the forward and the backward are computed in; the weights that are updated,
            losses and summed gradients stay fp32.
        recomputes: whether the backward computes each layer again.
        compiled: whether gradients and update run through `mx.compile`.

    Attributes:
        state: everything that a step changes.
    """

    def __init__(
        self,
        model: Text2SemanticDecoder,
        optimizer: optim.Optimizer,
        *,
        dpo: bool = False,
        compat: bool = False,
        replaced: float = 0.0,
        penalty: StackedPull | None = None,
        compute: mx.Dtype = mx.float32,
        recomputes: bool = False,
        compiled: bool = False,
    ):
        self.model, self.optimizer, self.penalty = model, optimizer, penalty
        self.dpo, self.compat, self.replaced = dpo, compat, replaced
        self.compute, self.recomputes = compute, recomputes
        if recomputes:
            checkpoint_blocks(model, [TransformerEncoderLayer])
        optimizer.init(model.trainable_parameters())
        self.state = [model.state, optimizer.state]

        def stage(function: Any) -> Any:
            state = self.state
            return mx.compile(function, inputs=state, outputs=state) if compiled else function

        self._gather, self._finish = stage(self.gradients), stage(self.update)

    def __call__(self, batches: Sequence[T2SBatch], key: Key) -> Scalars:
        """Update the model by the sum over micro-batches; the update is not evaluated yet.

        Args:
            key: of dropout; None for none.

        Returns:
            Scalars by name: the losses, summed over micro-batches, with `loss_reg` and
            `loss_total`; `ce` per target and `top3_accuracy`; `grad_norm`, and those of its two
            parts, `grad_norm_task` and `grad_norm_reg`.
        """
        summed: Any = None
        for batch, own in zip(batches, split_key(key, len(batches)), strict=True):
            found = self._gather(batch, own)
            summed = found if summed is None else add_gradients(summed, found)
            if len(batches) > 1:
                mx.eval(summed)  # what the micro-batch took is free again
        return self._finish(*summed)

    def gradients(self, batch: T2SBatch, key: Key = None) -> Gradients:
        """The terms of a micro-batch, and their gradients; nothing is updated."""
        weights = self.model.trainable_parameters()

        def objective(parameters: Any) -> tuple[mx.array, T2STerms]:
            self.model.update(cast_floats(parameters, self.compute))
            with checkpointing(self.recomputes):
                terms = t2s_terms(
                    self.model,
                    batch,
                    dpo=self.dpo,
                    compat=self.compat,
                    replaced=self.replaced,
                    key=key,
                )
            return sum(terms.losses.values(), start=mx.array(0.0)), terms

        try:
            (_, terms), gradients = mx.value_and_grad(objective)(weights)
        finally:
            self.model.update(weights)
        return Gradients(terms, gradients)

    def update(self, terms: T2STerms, gradients: Any) -> Scalars:
        """Add the penalty's gradient, and update the model."""
        loss = sum(terms.losses.values(), start=mx.array(0.0))
        norm = norm_task = stacked_norm(gradients)
        loss_reg = norm_reg = mx.array(0.0)
        if self.penalty is not None:
            loss_reg, norm_reg, gradients = self.penalty(self.model, gradients)
            norm = stacked_norm(gradients)
        self.optimizer.update(self.model, gradients)
        return terms.losses | {
            "loss_reg": loss_reg,
            "loss_total": loss + loss_reg,
            "ce": terms.losses["loss_ce"] / terms.targets,
            "top3_accuracy": terms.hits / mx.maximum(terms.codes, 1),
            "grad_norm": norm,
            "grad_norm_task": norm_task,
            "grad_norm_reg": norm_reg,
        }
