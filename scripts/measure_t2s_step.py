"""How long a training step of the full-size T2S takes, and a PyTorch twin's beside it.

    python scripts/measure_t2s_step.py [--batch 4] [--no-pull] [--parts] [--output step.json]

The same weights, batch and dropout rate on both sides, each in a process of its own: MLX is many
times slower where torch was imported first. The two take turns, a step each; ratios are of such
pairs, below 1 where ours is faster. On a GPU ours is compiled, as in training. `--dropout 0` makes
the losses that are printed comparable to rounding; `--no-tf32` keeps TF32 off on both sides.
Memory: `peak_gb` of arrays (MLX) or of the caching allocator (PyTorch on CUDA), `rss_gb` of the
process. `--parts` times forward, gradients and update of ours as well. `kernels` are those of our
step with one micro-batch, counted in its graph (a layer norm as a CPU's several).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

_RATE = 0.002
_BERT = 1024
_SEED = 0


class Work(NamedTuple):
    """What is measured: sizes of the net and of each micro-batch, and how."""

    layers: int
    width: int
    heads: int
    batch: int
    phones: int
    codes: int
    accumulate: int
    dropout: float
    precision: str
    pull: bool
    tf32: bool
    compiled: bool | None
    parts: bool
    weights: str


def _arrays(work: Work) -> dict[str, np.ndarray]:
    """A micro-batch without padding."""
    random = np.random.default_rng(_SEED)
    return {
        "phones": random.integers(0, 732, (work.batch, work.phones), dtype=np.int32),
        "codes": random.integers(0, 1024, (work.batch, work.codes), dtype=np.int32),
        "bert": random.normal(size=(work.batch, work.phones, _BERT)).astype(np.float32),
    }


def _serve(
    step: Callable[[], float],
    peak: Callable[[], float],
    parts: Callable[[], dict[str, float]] = dict,
) -> None:
    """Answer each line of the input with a step's loss and what it took."""
    unit = 1 if sys.platform == "darwin" else 1024
    for _ in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        told = {"loss": step(), "seconds": time.perf_counter() - begun}
        told |= {"cpu_seconds": time.process_time() - cpu} | parts()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(json.dumps(told | {"peak_gb": peak() / 1e9, "rss_gb": rss / 1e9}), flush=True)


def serve_mlx(work: Work) -> None:
    """Our step."""
    import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)

    import mlx.core as mx

    from mlx_vits import accel
    from mlx_vits.accel.compilation import compiles_step
    from mlx_vits.config import T2SConfig
    from mlx_vits.models.t2s import Text2SemanticDecoder
    from mlx_vits.tools.bench.graphs import count_graph
    from mlx_vits.tools.bench.work import _kept
    from mlx_vits.training.precision import compute_type
    from mlx_vits.training.regularization import StackedPull, take_anchor
    from mlx_vits.training.scaled_adam import ScaledAdam
    from mlx_vits.training.t2s_step import T2SBatch, T2SStep, t2s_terms

    mx.random.seed(_SEED)
    config = T2SConfig(n_layer=work.layers, hidden_dim=work.width, head=work.heads)
    model = accel.apply(Text2SemanticDecoder(config, work.dropout))
    mx.savez(work.weights, **dict(_flat(model.parameters())))
    pull = StackedPull(model, take_anchor(model), 0.001) if work.pull else None
    compute, compiled = compute_type(work.precision), compiles_step(work.compiled)
    step = T2SStep(model, ScaledAdam(_RATE), penalty=pull, compute=compute, compiled=compiled)
    batch = T2SBatch(
        **{name: mx.array(array) for name, array in _arrays(work).items()},
        phone_lengths=mx.full((work.batch,), work.phones, mx.int32),
        code_lengths=mx.full((work.batch,), work.codes, mx.int32),
        rejected=mx.zeros((work.batch, 0), mx.int32),
        rejected_lengths=mx.zeros((work.batch,), mx.int32),
    )
    mx.eval(batch, step.state)
    with _kept(step.state):
        kernels = count_graph([step([batch], mx.random.key(0)), step.state]).kernels
    count = 0

    def run() -> float:
        nonlocal count
        count += 1
        losses = step([batch] * work.accumulate, mx.random.key(count))
        mx.eval(losses, step.state)
        return losses["loss_ce"].item()

    def parts() -> dict[str, float]:
        begun = time.perf_counter()
        mx.eval(t2s_terms(model, batch, key=mx.random.key(count)))
        forward = time.perf_counter()
        found = step._gather(batch, mx.random.key(count))
        mx.eval(found)
        gradients = time.perf_counter()
        mx.eval(step._finish(*found), step.state)
        update = time.perf_counter()
        return {
            "forward": forward - begun,
            "gradients": gradients - forward,
            "update": update - gradients,
        }

    facts = {"device": str(mx.default_device()), "compiled": compiled, "kernels": kernels}
    print(json.dumps(facts), flush=True)
    _serve(run, mx.get_peak_memory, parts if work.parts else dict)


def _flat(tree: Any) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(tree)


def serve_torch(work: Work) -> None:
    """The twin's."""
    import torch
    from t2s_torch_twin import Net, ScaledAdam, loss_of, sine_table

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = work.tf32
    torch.manual_seed(_SEED)
    weights = {
        name: torch.tensor(array, device=device, requires_grad=True)
        for name, array in np.load(work.weights).items()
    }
    batch = {name: torch.tensor(array, device=device) for name, array in _arrays(work).items()}
    batch["codes"] = batch["codes"].long()
    table = sine_table(4000, work.width).to(device)
    net, optimizer = Net(work.layers, work.heads, 1024, work.dropout), ScaledAdam(weights, _RATE)
    autocast = torch.autocast(device, torch.bfloat16, enabled=work.precision == "bf16")

    def run() -> float:
        for weight in weights.values():
            weight.grad = None
        whole = 0.0
        for _ in range(work.accumulate):
            with autocast:
                loss = loss_of(weights, batch, table, net)
            loss.backward()
            whole = whole + loss.detach()
        optimizer.update()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(whole)

    print(json.dumps({"device": device, "threads": torch.get_num_threads()}), flush=True)
    _serve(run, torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0)


class _Side:
    """One side, in a process of its own."""

    def __init__(self, name: str, work: Work):
        environment = os.environ | {"MLX_ENABLE_TF32": str(int(work.tf32))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--only", json.dumps([name, work])],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        """Compute one."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process failed; its message is above")
        return json.loads(line)

    def report(self, warm_up: int) -> dict[str, Any]:
        """Medians of the counted steps."""
        counted = self.steps[warm_up:]
        names = [name for name in counted[0] if name not in ("loss", "peak_gb", "rss_gb")]
        found = {name: round(median(step[name] for step in counted), 4) for name in names}
        return self.facts | {
            **found,
            "min_seconds": round(min(step["seconds"] for step in counted), 4),
            "first_loss": self.steps[0]["loss"],
            "last_loss": self.steps[-1]["loss"],
            "peak_gb": round(counted[-1]["peak_gb"], 2),
            "rss_gb": round(counted[-1]["rss_gb"], 2),
        }

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def main(
    layers: int = 24,
    width: int = 512,
    heads: int = 16,
    batch: int = 4,
    phones: int = 60,
    codes: int = 150,
    accumulate: Annotated[int, typer.Option(help="Micro-batches a step.")] = 1,
    dropout: float = 0.1,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    pull: Annotated[bool, typer.Option(help="Toward the base; ours alone.")] = True,
    tf32: Annotated[bool, typer.Option(help="On CUDA, on both sides.")] = True,
    compiled: Annotated[bool | None, typer.Option(help="Ours; by default on a GPU.")] = None,
    parts: Annotated[bool, typer.Option(help="Time parts of ours as well.")] = False,
    repeat: Annotated[int, typer.Option(help="Counted pairs.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Pairs before them.")] = 2,
    compare: Annotated[bool, typer.Option(help="With PyTorch's twin.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a line of JSON for each side, and the ratios."""
    if only:
        side, values = json.loads(only)
        {"mlx": serve_mlx, "torch": serve_torch}[side](Work(*values))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            layers, width, heads, batch, phones, codes, accumulate, dropout, precision, pull,
            tf32, compiled, parts, str(Path(folder, "weights.npz")),
        )  # fmt: skip
        sides = {name: _Side(name, work) for name in (("mlx", "torch") if compare else ("mlx",))}
        for _ in range(warm_up + repeat):
            for side in sides.values():
                side.step()
        found: dict[str, Any] = {name: side.report(warm_up) for name, side in sides.items()}
        for side in sides.values():
            side.close()
    if compare:
        pairs = list(zip(*(side.steps[warm_up:] for side in sides.values()), strict=True))
        ratios = sorted(ours["seconds"] / theirs["seconds"] for ours, theirs in pairs)
        cpu = [ours["cpu_seconds"] / theirs["cpu_seconds"] for ours, theirs in pairs]
        found["ratio"] = {
            "median": round(median(ratios), 3),
            "least": round(ratios[0], 3),
            "most": round(ratios[-1], 3),
            "of_cpu_seconds": round(median(cpu), 3),
            "of_minima": round(found["mlx"]["min_seconds"] / found["torch"]["min_seconds"], 3),
        }
    for name, values in found.items():
        print(name, json.dumps(values))
    if output:
        output.write_text(json.dumps(work._asdict() | found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
