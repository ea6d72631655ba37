"""Bases: the pretrained models that a voice is fine-tuned from, and where they are stored.

A base is a folder of `config.json`, `generator.safetensors` (with enc_q),
`discriminator.safetensors` and `content_encoder/{config.json,weights.safetensors}`. Upstream's
files can replace each part: `s2G*.pth`, `s2D*.pth`, and a Hugging Face folder of
chinese-hubert-base. A base that speaks texts also has a GPT: `config.json` and
`weights.safetensors` in `gpt/`, or upstream's file as `gpt.ckpt`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.contents import (
    check_tensors,
    discriminator_config,
    discriminator_family,
    has_posterior,
    is_discriminator,
)
from mlx_vits.checkpoints.gpt_file import find_gpt
from mlx_vits.checkpoints.state_dict import load_state, parameter_paths
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.checkpoints.upstream import read_upstream
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, WEIGHTS_FILE, VoiceFile, read_voice
from mlx_vits.config import CONFIG_FILE, VERSIONS, Config, read_json_table
from mlx_vits.errors import CheckpointError
from mlx_vits.models.hubert import HubertConfig, HubertModel
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.nn.weight_norm import NormScheme
from mlx_vits.system.faults import unreadable
from mlx_vits.system.files import given_path

DEMO = "demo"
FULL_SIZE = "v2"  # the default base of any voice but the demo's, if it is installed
DISCRIMINATOR_FILE = "discriminator.safetensors"
CONTENT_ENCODER, SPEAKER_ENCODER = "content_encoder", "speaker_encoder"  # folders
_ENCODER_FILES = (WEIGHTS_FILE, "model.safetensors", "pytorch_model.bin")


def weights_home() -> Path:
    """Return the folder of bases: `MLX_VITS_HOME`, a checkout's `weights/`, or the user cache."""
    given = os.environ.get("MLX_VITS_HOME")
    if given:
        return given_path(given, CheckpointError)
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if _is_checkout(folder):
            return folder / "weights"
    return Path.home() / ".cache" / "mlx_vits"


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    if not project.is_file() or not (folder / "weights").is_dir():
        return False
    return 'name = "mlx-vits"' in project.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Base:
    """The files of a base.

    Attributes:
        name: as given by the user.
        generator: a voice in any form `read_voice` accepts, with enc_q.
        discriminator: None to start training with a fresh one.
        content_encoder: folder; None if only prepared data can be used.
        speaker_encoder: file, for v2Pro and v2ProPlus; None if only data with speaker vectors can
            be used.
        gpt: in a form that `read_gpt` takes; None where the base speaks no texts.
    """

    name: str
    generator: Path
    discriminator: Path | None
    content_encoder: Path | None
    speaker_encoder: Path | None = None
    gpt: Path | None = None

    def read_generator(self) -> VoiceFile:
        """Read configuration and tensors of the generator.

        Raises:
            CheckpointError: as `read_voice`.
        """
        return read_voice(self.generator)


def find_base(name_or_path: str) -> Base:
    """Find a base by its name under `weights_home()`, or by the path of its folder.

    Raises:
        CheckpointError: there is none, or its folder is not a base.
    """
    folder = given_path(name_or_path, CheckpointError)
    if len(folder.parts) == 1 and (weights_home() / folder).is_dir():
        folder = weights_home() / folder
    # The demo's folder holds its voice, and its base in a sub-folder.
    if (folder / "base" / CONFIG_FILE).is_file():
        folder = folder / "base"
    if folder.is_file():
        raise CheckpointError(
            f"{folder}: is a file, and a base is a folder; training takes an s2G file with "
            "--pretrained"
        )
    if not folder.is_dir():
        if name_or_path in VERSIONS:
            raise CheckpointError(
                f"{name_or_path}: this base is not in {weights_home()} yet; fetch it with "
                f"`mlx-vits download {name_or_path}`"
            )
        raise CheckpointError(
            f"{name_or_path}: there is no such base, here or in {weights_home()}; give the folder "
            "of one, or fetch one with `mlx-vits download v2`"
        )
    if not (folder / GENERATOR_FILE).is_file():
        raise CheckpointError(
            f"{folder}: is not a base; it needs {CONFIG_FILE}, {GENERATOR_FILE}, "
            f"{DISCRIMINATOR_FILE} and {CONTENT_ENCODER}/"
        )
    discriminator = folder / DISCRIMINATOR_FILE
    encoder = folder / CONTENT_ENCODER
    speaker = next((p for p in sorted((folder / SPEAKER_ENCODER).glob("*.*"))), None)
    return Base(
        name=Path(name_or_path).name,
        generator=folder,
        discriminator=discriminator if discriminator.is_file() else None,
        content_encoder=encoder if encoder.is_dir() else None,
        speaker_encoder=speaker,
        gpt=find_gpt(folder),
    )


def choose_base(
    name: str | None,
    *,
    for_demo: bool = False,
    pretrained: Path | None = None,
    pretrained_d: Path | None = None,
    pretrained_gpt: Path | None = None,
    content_encoder: Path | None = None,
    speaker_encoder: Path | None = None,
) -> Base:
    """Choose the base of a run.

    Args:
        name: as given by the user; None chooses `v2` if it is installed, and `demo` otherwise or
            for the demo voice.
        for_demo: whether the voice is the demo's.
        pretrained: replaces the generator. The discriminator is then `pretrained_d`, the one beside
            the generator by upstream's name (`s2D` for `s2G`, `D_` for `G_`), or a fresh one.
        pretrained_d: replaces the discriminator.
        pretrained_gpt: replaces the GPT.
        content_encoder: replaces the content encoder.
        speaker_encoder: replaces the speaker encoder.

    Raises:
        CheckpointError: a file is missing.
    """
    for path in (pretrained, pretrained_d, pretrained_gpt, content_encoder, speaker_encoder):
        if path is not None and not path.exists():
            raise CheckpointError(f"{path}: there is no such file; check the path")
    if pretrained is not None and name is None:
        base = Base(pretrained.name, pretrained, find_judge(pretrained), None)
    else:
        has_full = (weights_home() / FULL_SIZE).is_dir()
        base = find_base(name or (FULL_SIZE if has_full and not for_demo else DEMO))
        if pretrained is not None:
            base = replace(base, generator=pretrained, discriminator=find_judge(pretrained))
    if pretrained_d is not None:
        base = replace(base, discriminator=pretrained_d)
    if pretrained_gpt is not None:
        base = replace(base, gpt=pretrained_gpt)
    if content_encoder is not None:
        base = replace(base, content_encoder=content_encoder)
    if speaker_encoder is not None:
        base = replace(base, speaker_encoder=speaker_encoder)
    return base


def find_judge(generator: Path) -> Path | None:
    """Return the discriminator beside a generator, by upstream's names; None if there is none."""
    path = judge_path(generator)
    return path if path is not None and path.is_file() else None


def judge_path(generator: Path) -> Path | None:
    """Return where a generator's discriminator belongs; None if it has none of upstream's names."""
    for own, other in (("s2G", "s2D"), ("G_", "D_")):
        if generator.name.startswith(own):
            return generator.with_name(other + generator.name.removeprefix(own))
    return None


def load_generator(
    file: VoiceFile, norm_scheme: NormScheme = "upstream", *, consume: bool = False
) -> SynthesizerTrn:
    """Build a generator with a file's weights, without `enc_q` if the file has none.

    Args:
        file: from `read_voice`.
        norm_scheme: which layers of the model have weight norm.
        consume: empty `file.tensors` while loading, to save memory.

    Raises:
        CheckpointError: the tensors do not fit the configuration.
    """
    model = SynthesizerTrn(file.config, norm_scheme)
    if not has_posterior(file.tensors):
        # An exported voice, for inference only.
        model.pop("enc_q")
    load_state(model, file.tensors, source=str(file.source), consume=consume)
    return model


def load_discriminator(path: Path | None, config: Config) -> MultiPeriodDiscriminator:
    """Build a discriminator with a file's weights, or a fresh one without a file.

    Args:
        path: safetensors, or upstream's `.pth`, pretrained or of a run; None for a fresh one.
        config: of the generator.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another version or width.
    """
    if path is None:
        model = MultiPeriodDiscriminator(config)
        mx.eval(model.parameters())
        return model
    model = load_discriminator_tensors(_discriminator_tensors(path), path)
    check_judge(model, config, path)
    return model


def check_judge(model: MultiPeriodDiscriminator, config: Config, source: str | Path) -> None:
    """Check that a discriminator matches the generator's version.

    Raises:
        CheckpointError: it does not.
    """
    family = discriminator_family(parameter_paths(model))
    if config.version not in family.split(" and "):
        raise CheckpointError(
            f"{source}: is a discriminator of {family}, but the generator is {config.version}; "
            f"give that of {config.version}"
        )


def _discriminator_tensors(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        tensors: Mapping[str, Any] = read_tensors(path).tensors
    else:
        tensors = read_upstream(path).tensors
    if not is_discriminator(tensors):
        raise CheckpointError(
            f"{path}: is not a discriminator; give an s2D or D_ file, or its .safetensors"
        )
    return tensors


def load_discriminator_tensors(
    tensors: Mapping[str, Any], source: str | Path
) -> MultiPeriodDiscriminator:
    """Build a discriminator of the version and width found in its tensors.

    Args:
        tensors: in PyTorch's axes.
        source: the file, for messages.

    Raises:
        CheckpointError: they are not a discriminator's.
    """
    model = MultiPeriodDiscriminator(discriminator_config(tensors, source))
    load_state(model, tensors, source=str(source))
    return model


def load_content_encoder(folder: Path) -> HubertModel:
    """Load a content encoder from a folder in Hugging Face's format.

    Args:
        folder: `config.json` beside `weights.safetensors`, `model.safetensors` or
            `pytorch_model.bin`.

    Raises:
        CheckpointError: a file is missing or damaged, or the architecture differs.
    """
    model = HubertModel(read_content_encoder_config(folder))
    path = content_encoder_file(folder)
    if path.suffix == ".safetensors":
        tensors: Any = read_tensors(path).tensors
    else:
        tensors = read_torch_archive(path)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: is not a content encoder, which is a table of tensors")
    check_tensors(tensors, path)
    load_state(model, _hugging_face_names(tensors), source=str(path), may_lack=("masked_spec",))
    return model


def read_content_encoder_config(folder: Path) -> HubertConfig:
    """Read the configuration of a content encoder, see `load_content_encoder`.

    Raises:
        CheckpointError: it is missing or damaged, or the architecture differs.
    """
    path = folder / CONFIG_FILE
    return HubertConfig.from_dict(read_json_table(path), source=str(path))


def content_encoder_file(folder: Path) -> Path:
    """Return the weights file in a content encoder's folder.

    Raises:
        CheckpointError: there are none.
    """
    for name in _ENCODER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: holds no content encoder ({', '.join(_ENCODER_FILES)})")


def _hugging_face_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Normalise the tensor names of different Transformers versions."""
    renames = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    named = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("hubert.")
        for old, new in renames.items():
            short = short.replace(old, new)
        named[short] = tensor
    return named


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    return digest.hexdigest()
