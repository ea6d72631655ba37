"""The heavy parts of the step in PyTorch, as a yardstick on the same machine.

Our own small `torch.nn` code, shapes and hyperparameters from `Config`: posterior encoder and flow
(WN stacks), the decoder with weight norm, every discriminator, the mel loss, AdamW on both nets. It
leaves out the text side, the style encoder and the pull toward the base, so it does slightly *less*
than our step; a ratio to it flatters PyTorch. PyTorch's axes: `[B, C, T]`.

`python -m mlx_vits.tools.bench.torch_twin` serves one benchmark over its standard input and
output, a request and an answer a line. It is a process of its own because two BLAS libraries in one
process share symbols and threads.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mlx_vits.config import Config
from mlx_vits.tools.bench.work import Work

SLOPE = 0.1


class _WN(nn.Module):
    def __init__(self, channels: int, kernel: int, layers: int, gin: int):
        super().__init__()
        self.cond = weight_norm(nn.Conv1d(gin, 2 * channels * layers, 1))
        self.inner, self.outer = nn.ModuleList(), nn.ModuleList()
        for layer in range(layers):
            width = channels if layer == layers - 1 else 2 * channels
            conv = nn.Conv1d(channels, 2 * channels, kernel, padding=kernel // 2)
            self.inner.append(weight_norm(conv))
            self.outer.append(weight_norm(nn.Conv1d(channels, width, 1)))

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        conditions = self.cond(g).chunk(len(self.inner), 1)
        for inner, outer, condition in zip(self.inner, self.outer, conditions, strict=True):
            a, b = (inner(x) + condition).chunk(2, 1)
            y = outer(torch.tanh(a) * torch.sigmoid(b))
            if y.shape[1] > x.shape[1]:
                residual, y = y.chunk(2, 1)
                x = x + residual
            total = total + y
        return total


class _Coder(nn.Module):
    """A WN stack between two convolutions of one tap."""

    def __init__(self, inputs: int, width: int, outputs: int, *wn: int):
        super().__init__()
        self.pre, self.enc = nn.Conv1d(inputs, width, 1), _WN(width, *wn)
        self.post = nn.Conv1d(width, outputs, 1)

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return self.post(self.enc(self.pre(x), g))


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            padding = (kernel - 1) * dilation // 2
            shape = (channels, channels, kernel)
            return weight_norm(nn.Conv1d(*shape, padding=padding, dilation=dilation))

        self.dilated = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.plain = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class _Decoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        width = model.upsample_initial_channel
        self.pre = nn.Conv1d(model.inter_channels, width, 7, padding=3)
        self.cond = nn.Conv1d(model.gin_channels, width, 1)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(model.upsample_rates, model.upsample_kernel_sizes, strict=True):
            geometry = {"stride": rate, "padding": (kernel - rate) // 2}
            up = nn.ConvTranspose1d(width, width // 2, kernel, **geometry)
            self.ups.append(weight_norm(up))
            width //= 2
            sizes = zip(model.resblock_kernel_sizes, model.resblock_dilation_sizes, strict=True)
            self.blocks.append(nn.ModuleList(_ResBlock(width, *size) for size in sizes))
        self.post = nn.Conv1d(width, 1, 7, padding=3, bias=False)

    def forward(self, z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        x = self.pre(z) + self.cond(g)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in blocks) / len(blocks)
        return torch.tanh(self.post(F.leaky_relu(x)))


class Synthesizer(nn.Module):
    """Posterior encoder, flow and decoder."""

    def __init__(self, config: Config):
        super().__init__()
        model, dims, self.config = config.model, config.reduced_dims, config
        inter, width, gin = model.inter_channels, model.hidden_channels, model.gin_channels
        wn = dims.enc_q_kernel, dims.enc_q_wn_layers, gin
        self.enc_q = _Coder(config.data.spec_channels, width, 2 * inter, *wn)
        wn = dims.flow_kernel, dims.flow_wn_layers, gin
        self.flows = nn.ModuleList(
            _Coder(inter // 2, width, inter // 2, *wn) for _ in range(dims.flow_n_flows)
        )
        self.dec = _Decoder(config)

    def flow(self, z: torch.Tensor, g: torch.Tensor, sign: int = 1) -> torch.Tensor:
        for coder in self.flows:
            kept, moved = z.chunk(2, 1)
            z = torch.cat([kept, moved + sign * coder(kept, g)], 1).flip(1)
        return z

    def forward(self, spec: torch.Tensor, g: torch.Tensor, frames: int) -> tuple[torch.Tensor, ...]:
        """Waveform `[B, 1, N]` of the first `frames`, and the KL divergence to a unit normal."""
        m, logs = self.enc_q(spec, g).chunk(2, 1)
        z = m + torch.randn_like(m) * logs.exp()
        kl = (-logs - 0.5 + 0.5 * self.flow(z, g) ** 2).sum() / (spec.shape[0] * spec.shape[2])
        return self.dec(z[..., :frames], g), kl

    def synthesize(self, prior: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """A sample of the prior `[B, C, T]` to a waveform."""
        return self.dec(self.flow(prior, g, -1), g)


class _OverSamples(nn.Module):
    def __init__(self, width: float):
        super().__init__()
        c16, c64, c256, c1024, c4 = (round(width * size) for size in (16, 64, 256, 1024, 4))
        shapes = [
            (1, c16, 15, 1, 1),
            (c16, c64, 41, 4, c4),
            (c64, c256, 41, 4, c16),
            (c256, c1024, 41, 4, c64),
            (c1024, c1024, 41, 4, c256),
            (c1024, c1024, 5, 1, 1),
            (c1024, 1, 3, 1, 1),
        ]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(i, o, k, stride=s, groups=g, padding=k // 2))
            for i, o, k, s, g in shapes
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return _maps(self.convs, x)


class _OverPeriod(nn.Module):
    def __init__(self, period: int, width: float):
        super().__init__()
        self.period = period
        channels = [1, *(round(width * size) for size in (32, 128, 512, 1024, 1024)), 1]
        kernels, strides = [5] * 5 + [3], [3] * 4 + [1, 1]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (k, 1), (s, 1), (k // 2, 0)))
            for i, o, k, s in zip(channels, channels[1:], kernels, strides, strict=False)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.pad(x, (0, -x.shape[-1] % self.period), "reflect")
        return _maps(self.convs, x.unflatten(-1, (-1, self.period)))


def _maps(convs: Any, x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for conv in convs[:-1]:
        x = F.leaky_relu(conv(x), SLOPE)
        maps.append(x)
    return [*maps, convs[-1](x)]


class Discriminators(nn.Module):
    """The one over samples and those over the version's periods."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.reduced_dims.disc_width
        periods = (2, 3, 5, 7, 11, 17, 23) if config.model.is_pro else (2, 3, 5, 7, 11)
        self.parts = nn.ModuleList(
            [_OverSamples(width), *(_OverPeriod(period, width) for period in periods)]
        )

    def forward(self, x: torch.Tensor) -> list[list[torch.Tensor]]:
        return [part(x) for part in self.parts]


class Times(NamedTuple):
    """Seconds of one step's parts."""

    forward_g: float
    step_d: float
    step_g: float
    step: float


class Twin:
    """Both nets, their optimizers and one batch.

    Args:
        work: its size.
        device: PyTorch's name of it.
        tf32: whether fp32 products on NVIDIA may round their factors, as MLX's do by default.
    """

    def __init__(self, work: Work, device: str, *, tf32: bool):
        torch.manual_seed(0)
        use_device(device, tf32=tf32)
        self.device = device
        self.config = config = work.config
        self.g, self.d = Synthesizer(config), Discriminators(config)
        self.optim_g, self.optim_d = (
            torch.optim.AdamW(
                net.parameters(), lr=1e-5, betas=config.train.betas, eps=config.train.eps
            )
            for net in (self.g, self.d)
        )
        data, batch = config.data, work.batch_size
        self.spec = torch.rand(batch, data.spec_channels, work.frames)
        self.style = torch.randn(batch, config.model.gin_channels, 1)
        self.prior = torch.randn(1, config.model.inter_channels, work.frames)
        self.real = torch.rand(batch, 1, config.train.segment_size) - 0.5
        self.window = torch.hann_window(data.win_length)
        self.bank = torch.rand(data.n_mel_channels, data.spec_channels) / data.spec_channels

    def clock(self) -> float:
        """Seconds, when all work so far is done."""
        return clock(self.device)

    def mel(self, wav: torch.Tensor) -> torch.Tensor:
        """The cost of a log-mel, with some filterbank."""
        data = self.config.data
        padded = F.pad(wav, ((data.filter_length - data.hop_length) // 2,) * 2, "reflect")[:, 0]
        geometry = (data.filter_length, data.hop_length, data.win_length, self.window)
        spec = torch.stft(padded, *geometry, center=False, return_complex=True)
        power = torch.view_as_real(spec).pow(2).sum(-1) + 1e-8
        return torch.log(torch.clamp(self.bank @ power.sqrt(), min=1e-5))

    def step(self) -> Times:
        """One GAN step."""
        start = self.clock()
        fake, kl = self.g(self.spec, self.style, self.config.segment_frames)
        forwarded = self.clock()
        real_maps, fake_maps = self.d(self.real), self.d(fake.detach())
        loss_d = sum(((1 - m[-1]) ** 2).mean() for m in real_maps)
        loss_d = loss_d + sum((m[-1] ** 2).mean() for m in fake_maps)
        self.optim_d.zero_grad()
        loss_d.backward()
        self.optim_d.step()
        judged = self.clock()
        for parameter in self.d.parameters():  # generous: its gradients are of no use here
            parameter.requires_grad_(False)
        with torch.no_grad():
            real_maps = self.d(self.real)
        loss = 45 * (self.mel(self.real) - self.mel(fake)).abs().mean() + kl
        for real_map, fake_map in zip(real_maps, self.d(fake), strict=True):
            loss = loss + ((1 - fake_map[-1]) ** 2).mean()
            pairs = zip(real_map, fake_map, strict=True)
            loss = loss + 2 * sum((r - f).abs().mean() for r, f in pairs)
        self.optim_g.zero_grad()
        loss.backward()
        self.optim_g.step()
        for parameter in self.d.parameters():
            parameter.requires_grad_(True)
        end = self.clock()
        return Times(forwarded - start, judged - forwarded, end - judged, end - start)

    def synthesize(self) -> float:
        """Seconds for one utterance."""
        start = self.clock()
        with torch.inference_mode():
            self.g.synthesize(self.prior, self.style[:1])
        return self.clock() - start


def serve() -> None:
    """Answers requests until its input ends.

    The first is the `Work` with the kind of device, and whether TF32 may be used.
    """
    asked = json.loads(sys.stdin.readline())
    device, tf32 = device_of(asked.pop("device")), asked.pop("tf32")
    twin = Twin(Work.from_dict(asked), device, tf32=tf32)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    facts["tf32"] = tf32
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            answer: dict[str, float] = twin.step()._asdict()
        else:
            answer = {"synthesis": twin.synthesize()}
        print(json.dumps(answer | {"peak_bytes": peak_bytes(device)}), flush=True)


def use_device(device: str, *, tf32: bool) -> None:
    """Compute there from now on, with TF32 in products or without."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_default_device(device)


def clock(device: str) -> float:
    """Seconds, when all work so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def device_of(kind: str) -> str:
    """PyTorch's name of the CPU, or of the GPU that MLX uses."""
    if kind == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps"


def peak_bytes(device: str) -> int:
    """Of the GPU's memory under CUDA; elsewhere of this process, all of PyTorch included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    serve()
