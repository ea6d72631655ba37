"""Cases for the reader of safetensors: headers and metadata that lie, of every kind of our files.

    python -m tests.support.fuzz_safetensors --cases 1000 --seed 1

Run like that, every case is a process of its own with limits on memory and time, so that an abort
inside MLX is seen as well. `SAFETENSORS_KINDS` are the same cases for `fuzz`, in one process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_vits.checkpoints.base import load_content_encoder, load_discriminator, load_generator
from mlx_vits.checkpoints.run import Place, read_run_state, write_run_state
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.errors import CheckpointError
from mlx_vits.tools.inspect.gather import gather
from mlx_vits.tools.inspect.reading import read_subject
from mlx_vits.tools.inspect.show import show
from mlx_vits.tools.pages import plain
from tests.support.fuzz_archives import damage, pick
from tests.support.fuzz_contents import configuration, encoder, weights
from tests.support.fuzzing import Kind, check_sentence

_MOST_SECONDS, _MOST_MEMORY = 30, 16 << 30  # of addresses, which MLX reserves freely
_SIZES = (0, 1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**64, 10**30, -1, 0.5)
_DTYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "I64", "C64", "F8_E4M3", "", "f4", 3)
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**400, 0.5, float("nan"), "", "x" * 5000, "é" * 100, [], {}, [[]], [1, 2],
    {"a": {}}, "\x1b[2J\n", "1epoch", "9" * 5000, "9" * 5000 + "epoch", "v3", "v2Pro", "{", "[1]",
    '{"model": 3}', '{"model": {"n_layers": 1e9}}', '{"model": {"upsample_rates": [0]}}', "null",
    "[" * 5000, '{"a":' * 3000, '{"train": {"lr_decay": "x"}}', '{"version": ["v2"]}',
)  # fmt: skip
_NAMES = (
    "", ".", "..", "a" * 5000, "dec.ups." + "9" * 5000, "dec.ups.9999999999.weight_v", "\ud7ff",
    "dec.ups.-1.weight", "generator/", "optimizer_g/states.99999999.x.m", "enc_p.\n\x1b[2J", "//",
    "cfm.x", "discriminators.x.y", "dec.ups.٣.weight", "flow.flows.0", "__metadata__",
)  # fmt: skip


def _build(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _saved(tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
    path = Path("saved.safetensors").absolute()
    write_tensors(path, {name: mx.array(array) for name, array in tensors.items()}, metadata)
    content = path.read_bytes()
    path.unlink()
    return content


_WHOLE: dict[str, bytes] = {}


def whole_files() -> dict[str, bytes]:
    """A good file of every kind; made once."""
    if not _WHOLE:
        _WHOLE.update(_make_whole_files())
    return _WHOLE


def _make_whole_files() -> dict[str, bytes]:
    generator, values = weights("v2", "generator"), configuration("v2").to_dict()
    path = Path("state.safetensors").absolute()
    leaves = {"dec": {"x": {"m": mx.ones((2, 3)), "v": mx.ones((2, 3))}}, "step": mx.array(3)}
    trees = {
        "generator": {"dec": {"x": mx.ones((2, 3))}},
        "discriminator": {"x": mx.ones(3)},
        "optimizer_g": {"states": [leaves]},
        "optimizer_d": {"x": {"m": mx.ones(3), "v": mx.ones(3)}},
    }
    write_run_state(path, trees, Place(3))
    state = path.read_bytes()
    path.unlink()
    warm_up()
    metadata = {"config": json.dumps(values), "version": "v2", "info": "1epoch_3iteration"}
    return {
        "voice": _saved(generator, metadata),
        "state": state,
        "discriminator": _saved(weights("v2", "discriminator"), {"format": "pt"}),
        "encoder": _saved(encoder()[1], {"format": "pt"}),
    }


def _change_entry(entry: dict[str, Any], draw: np.random.Generator) -> None:
    kind = int(draw.integers(0, 8))
    shape = entry["shape"]
    if kind == 0:
        entry["shape"] = [*shape, *[1] * int(draw.integers(1, 300))]
    elif kind == 1:
        entry["shape"] = [pick(draw, _SIZES) for _ in range(int(draw.integers(0, 6)))]
    elif kind == 2:
        entry["shape"] = [pick(draw, _SIZES), 0]
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    elif kind == 3:
        entry["dtype"] = pick(draw, _DTYPES)
    elif kind == 4:
        entry["data_offsets"] = [pick(draw, _SIZES), pick(draw, _SIZES)]
    elif kind == 5:
        entry[pick(draw, list(entry))] = pick(draw, _VALUES)
    elif kind == 6:
        entry.pop(pick(draw, list(entry)))
    else:
        entry["shape"] = shape[::-1] if shape != shape[::-1] else [*shape, 1]


def _change_header(header: dict[str, Any], draw: np.random.Generator) -> None:
    names = [name for name in header if name != "__metadata__"]
    kind, name = int(draw.integers(0, 8)), pick(draw, names)
    if kind < 3:
        entry = header[name]
        if isinstance(entry, dict) and set(entry) == {"shape", "dtype", "data_offsets"}:
            _change_entry(entry, draw)
    elif kind == 3:
        header[pick(draw, _NAMES)] = header.pop(name)
    elif kind == 4:
        header[name] = pick(draw, _VALUES)
    elif kind == 5:
        header[name], other = header[pick(draw, names)], header[name]
        header[pick(draw, names)] = other
    elif isinstance(header.get("__metadata__"), dict):
        header["__metadata__"][pick(draw, ("config", "version", "info", "place", "new"))] = pick(
            draw, _VALUES
        )
    else:
        header["__metadata__"] = pick(draw, _VALUES)


def _mutated(content: bytes, draw: np.random.Generator) -> bytes:
    (count,) = struct.unpack_from("<Q", content)
    text, data = content[8 : 8 + count], content[8 + count :]
    kind = int(draw.integers(0, 12))
    if kind == 0:
        return struct.pack("<Q", pick(draw, (0, 1, count - 1, count + 1, 2**40, 2**64 - 1))) + text
    if kind == 1:
        return _build(damage(text, draw), data)
    if kind == 2:
        return damage(content[: 8 + count + 64], draw) + data[64:]
    if kind == 3:
        deep = b"[" * 100_000 + b"]" * 100_000
        return _build(text[:-1] + b',"deep":' + deep + b"}", data)
    if kind == 4:
        numbers = np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy()
        if len(numbers):
            numbers[int(draw.integers(0, len(numbers)))] = pick(draw, (np.nan, np.inf, 3e38, 1e20))
        return _build(text, numbers.tobytes() + data[len(numbers) * 4 :])
    header = json.loads(text)
    for _ in range(draw.integers(1, 4)):
        _change_header(header, draw)
    return _build(json.dumps(header, ensure_ascii=bool(draw.integers(0, 2))).encode(), data)


def _look(path: Path) -> None:
    facts = gather(read_subject(str(path)))
    json.dumps(plain(facts), allow_nan=False)
    show(facts, Console(file=io.StringIO(), width=100))


def warm_up() -> None:
    """Have rich import what it imports at first use, before a case is watched."""
    console = Console(file=io.StringIO(), width=100)
    table = Table("é")
    table.add_row(Text("é\t漢"))
    console.print(table, "[bold]:smile:[/bold]")


def _inspect(path: Path) -> None:
    try:
        _look(path)
    except CheckpointError as error:
        check_sentence(path, str(error))


def _use(net: str, path: Path) -> Any:
    if net == "voice":
        return load_generator(read_voice(path), consume=True)
    if net == "state":
        return read_run_state(path)
    if net == "discriminator":
        return load_discriminator(path, configuration("v2"))
    return load_content_encoder(path.parent)


def _kind(net: str) -> Kind:
    def make(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
        file = path.with_name("weights.safetensors")
        file.write_bytes(_mutated(whole_files()[net], draw))
        if net == "encoder":
            (path.parent / "config.json").write_text(json.dumps(encoder()[0]))
        else:
            (path.parent / "config.json").unlink(missing_ok=True)

        def read(path: Path) -> Any:
            _inspect(file)
            return _use(net, file)

        return read

    return make


SAFETENSORS_KINDS = {
    f"{net} headers": _kind(net) for net in ("voice", "state", "discriminator", "encoder")
}


def _child(name: str, seed: int, number: int, folder: Path) -> str:
    """One case in a process of its own; what became of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            words = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return words if status == 0 else f"FAULT exit {status} {words}"
    os.close(reading)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_MOST_SECONDS)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    path = folder / "case.pth"
    words, status = "", 1
    try:
        read = SAFETENSORS_KINDS[name](path, draw)
        try:
            read(path)
            words = "loaded"
        except CheckpointError as error:
            check_sentence(path, str(error))
            words = "refused"
        status = 0
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
        words = f"{type(error).__name__}: {error!s:.300}"
    os.write(writing, words.encode())
    os._exit(status)


def main() -> None:
    """Runs the cases and prints what became of them."""
    parser = argparse.ArgumentParser(description="Fuzzes the readers of safetensors files.")
    parser.add_argument("--cases", type=int, default=500, help="of every kind")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory(prefix="mlx_vits_fuzz_") as folder:
        os.chdir(folder)
        # In a process of its own: MLX does not work in the child of one that has used it.
        if not os.fork():
            for name, content in whole_files().items():
                Path(name).write_bytes(content)
            os._exit(0)
        os.wait()
        for net in ("voice", "state", "discriminator", "encoder"):
            _WHOLE[net] = Path(net).read_bytes()
        for name in SAFETENSORS_KINDS:
            found: Counter[str] = Counter()
            longest = 0.0
            for number in range(options.cases):
                started = time.perf_counter()
                words = _child(name, options.seed, number, Path(folder))
                longest = max(longest, time.perf_counter() - started)
                found[words.split(" ")[0]] += 1
                if words not in ("loaded", "refused"):
                    faults.append(f"{name}, case {number}: {words}")
            print(f"{name:24}{dict(found)}  {longest:.2f} s at most", flush=True)
    for fault in faults[:40]:
        print(f"    {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
