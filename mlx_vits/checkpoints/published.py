"""Upstream's published files, opened and laid out as a base, its T2S model, and the Chinese BERT.

Every file is opened before anything appears under its final name. The tensors are upstream's, bit
for bit, under its names and in PyTorch's axes. `checksums.json` keeps where each came from.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import load_content_encoder, load_discriminator, load_generator
from mlx_vits.checkpoints.bert_file import read_bert, read_bert_config, used_tensors
from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.convert import torch_to_mlx
from mlx_vits.checkpoints.hub import REPOSITORY, Fetched
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import atomic_write, fresh_folder, make_folder, replace_folder
from mlx_vits.system.json_files import read_json

CHECKSUMS = "checksums.json"
_OTHER_COMMIT = "name another commit of the repository with --revision"
_GPT_TABLE = "model.ar_text_embedding.word_embeddings.weight"


def build_base(version: str, fetched: Sequence[Fetched], target: Path) -> None:
    """Write a base, and give it its name when it is whole.

    Args:
        version: that it has to be of.
        fetched: generator, discriminator, content encoder (`config.json`, weights), the speaker
            encoder of v2Pro and v2ProPlus, and the T2S model.
        target: its folder; one that is there is replaced.

    Raises:
        CheckpointError: a file is damaged or of another version.
    """
    generator, discriminator, encoder_config, encoder, *speakers, gpt = fetched
    with fresh_folder(target) as fresh:
        with _doubted(generator):
            config = _lay_generator(version, generator, fresh)
        with _doubted(discriminator):
            load_discriminator(discriminator.file, config)
            torch_to_mlx(discriminator.file, fresh / discriminator.remote.becomes)
        with _doubted(encoder_config, encoder):
            _lay_encoder(encoder_config, encoder, fresh)
        for speaker in speakers:
            _copy(speaker, fresh)
        _lay_gpt(gpt, fresh)
        _write_checksums(fetched, fresh)
        replace_folder(fresh, target)


def add_gpt(fetched: Sequence[Fetched], base: Path) -> None:
    """Add the T2S model to a base that lacks it.

    Raises:
        CheckpointError: the file is damaged, or is no T2S model.
    """
    for gpt in fetched:
        _lay_gpt(gpt, base)
    _write_checksums(fetched, base)


def build_bert(fetched: Sequence[Fetched], target: Path) -> None:
    """Write the Chinese BERT, without the parts that are not read.

    Args:
        fetched: `config.json`, `tokenizer.json` and the weights.
        target: its folder; one that is there is replaced.

    Raises:
        CheckpointError: a file is damaged, or they do not fit each other.
    """
    config, tokenizer, weights = fetched
    with fresh_folder(target) as fresh:
        with _doubted(*fetched):
            _copy(config, fresh)
            _copy(tokenizer, fresh)
            _lay_bert(weights, fresh)
            read_bert(fresh)
        _write_checksums(fetched, fresh)
        replace_folder(fresh, target)


@contextlib.contextmanager
def _doubted(*files: Fetched) -> Iterator[None]:
    """Delete files that do not open and whose checksum the hub did not state.

    The next run of the command then fetches them again.
    """
    try:
        yield
    except CheckpointError:
        for fetched in files:
            if fetched.remote.sha256 is None:
                fetched.file.unlink(missing_ok=True)
        raise


def _lay_generator(version: str, fetched: Fetched, folder: Path) -> Config:
    file = read_voice(fetched.file)
    name = f"{REPOSITORY}/{fetched.remote.path}"
    if file.config.version != version:
        raise CheckpointError(
            f"{name}: is a {file.config.version} generator, not {version}; {_OTHER_COMMIT}"
        )
    if not has_posterior(file.tensors):
        raise CheckpointError(f"{name}: lacks enc_q, which training needs; {_OTHER_COMMIT}")
    names = expected_shapes(load_generator(file))
    try:
        config = json.dumps(file.config.to_dict(), indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: its configuration is damaged ({error}); {_OTHER_COMMIT}"
        ) from error
    with atomic_write(folder / "config.json") as output:
        output.write(config.encode())
    tensors = {key: mx.array(file.tensors[key]) for key in names}
    write_tensors(folder / fetched.remote.becomes, tensors, {"info": file.info, "format": "pt"})
    return file.config


def _lay_encoder(config: Fetched, weights: Fetched, folder: Path) -> None:
    load_content_encoder(weights.file.parent)  # both lie there, under their names
    tensors = {name: mx.array(value) for name, value in read_torch_archive(weights.file).items()}
    make_folder((folder / weights.remote.becomes).parent)
    write_tensors(folder / weights.remote.becomes, tensors, {"format": "pt"})
    _copy(config, folder)


def _lay_bert(fetched: Fetched, folder: Path) -> None:
    content = read_torch_archive(fetched.file)
    used = used_tensors(content, read_bert_config(folder), fetched.file)
    tensors = {name: mx.array(used[name]) for name in used}
    write_tensors(folder / fetched.remote.becomes, tensors, {"format": "pt"})


def _lay_gpt(fetched: Fetched, folder: Path) -> None:
    """Copy the T2S model as upstream publishes it."""
    with _doubted(fetched):
        content = read_torch_archive(fetched.file)
        weights = content.get("weight") if isinstance(content, dict) else None
        if not isinstance(weights, dict) or _GPT_TABLE not in weights:
            raise CheckpointError(
                f"{REPOSITORY}/{fetched.remote.path}: is no T2S model; {_OTHER_COMMIT}"
            )
    _copy(fetched, folder)


def _copy(fetched: Fetched, folder: Path) -> None:
    path = folder / fetched.remote.becomes
    make_folder(path.parent)
    with fetched.file.open("rb") as source, atomic_write(path) as output:
        shutil.copyfileobj(source, output)


def _read_records(path: Path) -> list[dict[str, Any]]:
    kind = dict[str, list[dict[str, Any]]]
    cure = "remove it and run the same command again"
    return read_json(path, kind, error=CheckpointError, cure=cure).get("files", [])


def _write_checksums(fetched: Sequence[Fetched], folder: Path) -> None:
    """Write where each file came from, after what is there of other files."""
    records: list[Any] = []
    names = {one.remote.becomes for one in fetched}
    if (folder / CHECKSUMS).is_file():
        before = _read_records(folder / CHECKSUMS)
        records = [record for record in before if record.get("becomes") not in names]
    records += [
        {"repository": REPOSITORY} | one.remote._asdict() | {"sha256": one.sha256}
        for one in fetched
    ]
    with atomic_write(folder / CHECKSUMS) as file:
        file.write(json.dumps({"files": records}, indent=1).encode())
