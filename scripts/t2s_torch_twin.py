"""The GPT stage's training step in PyTorch, a yardstick for `measure_t2s_step.py`.

Our own code: post-norm transformer with dropout, cross-entropy summed over codes, and ScaledAdam
(`mlx_vits/training/scaled_adam.py`, with its sources) with tensors of equal shape in stacks, as
upstream has them. The model is a dict of tensors by the checkpoint's names. Axes: B batch,
X phonemes, Y codes, S both together, C channels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]
_BETAS, _EPS, _SCALAR_RATE = (0.9, 0.95), 1e-8, 0.1
_MIN_RMS, _MAX_RMS, _SCALAR_MAX = 1e-5, 3.0, 10.0
_SIZE_PERIOD, _CLIP_PERIOD, _CLIPPING_SCALE = 4, 1000, 2.0


class Net(NamedTuple):
    """Sizes of the net, and its dropout."""

    layers: int
    heads: int
    eos: int
    p_dropout: float


def sine_table(rows: int, channels: int) -> torch.Tensor:
    """Sines at even and cosines at odd channels: `(rows, C)`."""
    rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angles = torch.arange(rows)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(rows, channels)


def _attention(x: torch.Tensor, w: Weights, at: str, mask: torch.Tensor, net: Net) -> torch.Tensor:
    joined = F.linear(x, w[f"{at}.in_proj_weight"], w[f"{at}.in_proj_bias"])
    query, key, value = joined.unflatten(-1, (3, net.heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(query, key, value, mask, net.p_dropout)
    y = y.transpose(1, 2).flatten(2)
    return F.linear(y, w[f"{at}.out_proj.weight"], w[f"{at}.out_proj.bias"])


def loss_of(w: Weights, batch: dict[str, torch.Tensor], table: torch.Tensor, net: Net) -> Any:
    """Cross-entropy of a batch without padding, summed."""
    p, phones, codes = net.p_dropout, batch["phones"], batch["codes"]
    n_phones, n_codes = phones.shape[1], codes.shape[1]
    text = F.embedding(phones, w["ar_text_embedding.word_embeddings.weight"])
    text = text + F.linear(batch["bert"], w["bert_proj.weight"], w["bert_proj.bias"])
    text = F.dropout(text + w["ar_text_position.alpha"] * table[:n_phones], p)
    audio = F.embedding(codes, w["ar_audio_embedding.word_embeddings.weight"])
    audio = F.dropout(audio + w["ar_audio_position.alpha"] * table[:n_codes], p)
    x = torch.cat([text, audio], 1)
    row = torch.arange(n_phones + n_codes, device=x.device)
    hidden = row[None] > torch.clamp(row, min=n_phones - 1)[:, None]
    mask = torch.zeros(hidden.shape, device=x.device).masked_fill(hidden, -torch.inf)
    for number in range(net.layers):
        at = f"h.layers.{number}"

        def norm(x: torch.Tensor, name: str, at: str = at) -> torch.Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"])

        def linear(x: torch.Tensor, name: str, at: str = at) -> torch.Tensor:
            return F.linear(x, w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"])

        y = _attention(x, w, f"{at}.self_attn", mask, net)
        x = norm(x + F.dropout(y, p), "norm1")
        y = linear(F.dropout(F.relu(linear(x, "linear1")), p), "linear2")
        x = norm(x + F.dropout(y, p), "norm2")
    logits = F.linear(x[:, n_phones - 1 :], w["ar_predict_layer.weight"]).float()
    targets = F.pad(codes, (0, 1), value=net.eos)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum")


class ScaledAdam:
    """ScaledAdam as upstream: tensors of equal shape are stacked, updated and copied back."""

    def __init__(self, weights: Weights, rate: float):
        self.rate, self.step = rate, 0
        groups: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for weight in weights.values():
            groups[weight.shape].append(weight)
        self.groups = list(groups.values())
        self.states = [self._begun(torch.stack(group)) for group in self.groups]
        self.norms = torch.zeros(_CLIP_PERIOD, device=self.groups[0][0].device)
        self.threshold = 0.0

    def _begun(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = {"delta": torch.zeros_like(p), "v": torch.zeros_like(p)}
        if p[0].numel() > 1:
            state["rms"] = _rms(p)
            state["s"] = torch.zeros_like(state["rms"])
            state["sg"] = torch.zeros(_SIZE_PERIOD, *state["rms"].shape, device=p.device)
        return state

    @torch.no_grad()
    def update(self) -> None:
        """Update all weights by their gradients."""
        stacks = [
            (torch.stack(group), torch.stack([weight.grad for weight in group]))
            for group in self.groups
        ]
        clip = self._clip([g for _, g in stacks])
        for group, (p, g), state in zip(self.groups, stacks, self.states, strict=True):
            state["delta"] *= _BETAS[0]
            if p[0].numel() == 1:
                self._update_scalars(p, g, state)
            else:
                self._update_sizes(p, g * clip, state)
                self._update(p, g, state)
            for weight, updated in zip(group, p, strict=True):
                weight.copy_(updated)
        self.step += 1

    def _clip(self, grads: list[torch.Tensor]) -> Any:
        if self.step == 0:
            return 1.0
        squares = [
            ((g * state["rms"] if "rms" in state else g) ** 2).sum()
            for g, state in zip(grads, self.states, strict=True)
        ]
        norm = torch.stack(squares).sum().sqrt()
        self.norms[self.step % _CLIP_PERIOD] = norm
        if self.step % _CLIP_PERIOD == 0:
            median = self.norms.sort().values[_CLIP_PERIOD // 2]
            self.threshold = _CLIPPING_SCALE * median.item()
        if self.step < _CLIP_PERIOD:
            return 1.0
        return min(1.0, (self.threshold / (norm + 1e-20)).item())

    def _update_sizes(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any]) -> None:
        dims = tuple(range(1, p.ndim))
        state["sg"][self.step % _SIZE_PERIOD] = (p * g).sum(dims, keepdim=True)
        if self.step % _SIZE_PERIOD != _SIZE_PERIOD - 1:
            return
        state["rms"].copy_(_rms(p))
        beta, rate = _BETAS[1] ** _SIZE_PERIOD, self.rate * _SCALAR_RATE
        state["s"].mul_(beta).add_((state["sg"] ** 2).mean(0), alpha=1 - beta)
        seen = 1 - beta ** ((self.step + 1) // _SIZE_PERIOD)
        share = -rate * seen**0.5 * state["sg"].sum(0) / (state["s"].sqrt() + _EPS)
        share.masked_fill_(state["rms"] < _MIN_RMS, 0.0)
        share.masked_fill_(state["rms"] > _MAX_RMS, -rate * _SIZE_PERIOD)
        state["delta"].add_(p * share, alpha=1 - _BETAS[0])

    def _update(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        v = state["v"].mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
        seen = 1 - _BETAS[1] ** (self.step + 1)
        root = (v / seen if seen < 0.99 else v).sqrt() + _EPS
        share = state["rms"].clamp(min=_MIN_RMS) * -self.rate * (1 - _BETAS[0])
        state["delta"].add_(g / root * share)
        p.add_(state["delta"])

    def _update_scalars(
        self, p: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> None:
        v = state["v"].mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
        root = (v / (1 - _BETAS[1] ** (self.step + 1))).sqrt() + _EPS
        state["delta"].add_(g / root, alpha=-self.rate * _SCALAR_RATE * (1 - _BETAS[0]))
        p.clamp_(-_SCALAR_MAX, _SCALAR_MAX).add_(state["delta"])


def _rms(p: torch.Tensor) -> torch.Tensor:
    return (p**2).mean(tuple(range(1, p.ndim)), keepdim=True).sqrt()
