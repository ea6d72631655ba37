"""Configurations of the SoVITS and the GPT stage: upstream's JSON keys as frozen dataclasses.

Source: GPT-SoVITS `configs/s2.json`, `s2v2Pro.json`, `s2v2ProPlus.json`; of the GPT stage
`s1longer.yaml` and `s1longer-v2.yaml`. This file is the only home of default values: those of the
SoVITS classes are v1's and v2's, `_VERSION_MODEL` has what the Pro models change. Three things
differ from upstream's files:

* `version` is always present (upstream's WebUI injects it);
* `reduced_dims` names the sizes that upstream hard-codes in its source. It is absent, or equal to
  the full size, for every model that upstream can open;
* keys this project does not know are kept and written back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlx_vits.errors import CheckpointError
from mlx_vits.system.json_files import read_json

CONFIG_FILE = "config.json"
VERSIONS = ("v1", "v2", "v2Pro", "v2ProPlus")

# Keys of `model` in which a version's own JSON differs from `s2.json`.
_PRO_MODEL = {"p_dropout": 0.0, "gin_channels": 1024}
_VERSION_MODEL: dict[str, dict[str, Any]] = {
    "v2Pro": _PRO_MODEL,
    "v2ProPlus": _PRO_MODEL
    | {"upsample_initial_channel": 768, "upsample_kernel_sizes": (20, 16, 8, 2, 2)},
}

Section = TypeVar("Section")
# What a file states is believed up to here, before a model is built of it.
_LARGEST_INT = 1 << 20
_LARGEST_FLOAT = 1e12
_LONGEST_LIST = 16
_MOST_LAYERS = 64
_LAYERS = {"n_layers", "n_layers_q", "flow_n_flows", "flow_wn_layers", "enc_q_wn_layers", "n_layer"}
_DEEPEST = 8
_V1_PHONEMES = 512  # rows of the GPT's phoneme table in v1
BERT_CHANNELS = 1024  # of the features that the GPT reads beside its phonemes
T2S_DROPOUT = 0.1  # hard-coded upstream, everywhere but in the GPT's token embeddings
_MAY_BE_ZERO = {"seed", "log_interval", "eval_interval", "epochs", "batch_size", "init_lr_ratio"}


@dataclass(frozen=True)
class TrainSection:
    """`train`: optimiser, schedule and loss weights (upstream `s2.json`)."""

    log_interval: int = 100
    eval_interval: int = 500
    seed: int = 1234
    epochs: int = 100
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.8, 0.99)
    eps: float = 1e-9
    batch_size: int = 32
    fp16_run: bool = True
    lr_decay: float = 0.999875
    segment_size: int = 20480
    init_lr_ratio: int = 1
    warmup_epochs: int = 0
    c_mel: float = 45.0
    c_kl: float = 1.0
    text_low_lr_rate: float = 0.4
    grad_ckpt: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """`data`: the spectrogram and mel that the model was trained on."""

    max_wav_value: float = 32768.0
    sampling_rate: int = 32000
    filter_length: int = 2048
    hop_length: int = 640
    win_length: int = 2048
    n_mel_channels: int = 128
    mel_fmin: float = 0.0
    mel_fmax: float | None = None
    add_blank: bool = True
    n_speakers: int = 300
    cleaned_text: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec_channels(self) -> int:
        """Bins of the linear spectrogram."""
        return self.filter_length // 2 + 1


@dataclass(frozen=True)
class ModelSection:
    """`model`: the widths that upstream's constructor takes."""

    inter_channels: int = 192
    hidden_channels: int = 192
    filter_channels: int = 768
    n_heads: int = 2
    n_layers: int = 6
    kernel_size: int = 3
    p_dropout: float = 0.1
    resblock: str = "1"
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    upsample_rates: tuple[int, ...] = (10, 8, 2, 2, 2)
    upsample_initial_channel: int = 512
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 2, 2)
    n_layers_q: int = 3
    use_spectral_norm: bool = False
    gin_channels: int = 512
    semantic_frame_rate: str = "25hz"
    freeze_quantizer: bool = True
    version: str = "v2"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_pro(self) -> bool:
        """Whether the model takes a speaker vector."""
        return self.version in ("v2Pro", "v2ProPlus")


@dataclass(frozen=True)
class ReducedDims:
    """The sizes that upstream hard-codes; the defaults are upstream's full size.

    `disc_width` scales hidden channels and groups of both discriminator kinds.
    `dropout_everywhere`, where set, replaces `model.p_dropout` and the style encoder's own 0.1.
    """

    ssl_dim: int = 768
    mrte_hidden: int = 512
    mrte_heads: int = 4
    codebook_size: int = 1024
    style_hidden: int = 128
    style_heads: int = 2
    style_kernel: int = 5
    sv_dim: int = 0
    ref_spec_bins: int = 704
    text_vocab: int = 732
    flow_n_flows: int = 4
    flow_wn_layers: int = 4
    flow_kernel: int = 5
    enc_q_wn_layers: int = 16
    enc_q_kernel: int = 5
    attn_window: int = 4
    disc_width: float = 1.0
    dropout_everywhere: float | None = None

    @classmethod
    def full_size(cls, version: str) -> ReducedDims:
        """Upstream's own sizes for a version."""
        if version == "v1":
            return cls(ref_spec_bins=1025, text_vocab=322)
        if version in ("v2Pro", "v2ProPlus"):
            return cls(sv_dim=20480)
        return cls()


@dataclass(frozen=True)
class Config:
    """One model's whole configuration.

    Attributes:
        reduced_dims: sizes upstream hard-codes; `ReducedDims.full_size(version)` unless reduced.
        extra: top-level keys that are neither a section nor `reduced_dims`
            (`s2_ckpt_dir`, `content_module`, `name`, ...), kept for the files we write.
    """

    train: TrainSection = TrainSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    reduced_dims: ReducedDims = ReducedDims()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.model.version

    @property
    def is_reduced(self) -> bool:
        """Whether upstream cannot open the model, because a hard-coded size differs."""
        full = ReducedDims.full_size(self.version)
        dims = dataclasses.replace(self.reduced_dims, disc_width=1.0, dropout_everywhere=None)
        return dims != full

    @property
    def segment_frames(self) -> int:
        """Length of a training segment, in spectrogram frames."""
        return self.train.segment_size // self.data.hop_length

    @property
    def p_dropout(self) -> float:
        """Dropout of the text-side encoders."""
        everywhere = self.reduced_dims.dropout_everywhere
        return self.model.p_dropout if everywhere is None else everywhere

    @property
    def style_dropout(self) -> float:
        """Dropout of the style encoder, hard-coded to 0.1 upstream."""
        everywhere = self.reduced_dims.dropout_everywhere
        return 0.1 if everywhere is None else everywhere

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> Config:
        """Reads upstream's nested dictionary.

        Args:
            values: `train`, `data`, `model` and further keys, as in upstream's JSON.
            source: the file's name, for messages.

        Raises:
            CheckpointError: a section is not a dictionary, a value has the wrong type, or the
                version is not one of `VERSIONS`.
        """
        _check_plain(values, source)
        for name in ("train", "data", "model", "reduced_dims"):
            if not isinstance(values.get(name, {}), Mapping):
                raise CheckpointError(f"{source}: `{name}` of the configuration is not a table")
        model_values = dict(values.get("model", {}))
        model_values.setdefault("version", values.get("version") or "v2")
        model_values = _VERSION_MODEL.get(str(model_values["version"]), {}) | model_values
        model = _section(ModelSection, model_values, f"{source}: model")
        if model.version not in VERSIONS:
            raise CheckpointError(
                f"{source}: version {model.version!r} is not supported; "
                f"mlx_vits knows {', '.join(VERSIONS)}"
            )
        dims = dataclasses.asdict(ReducedDims.full_size(model.version))
        given = {k: v for k, v in values.get("reduced_dims", {}).items() if v is not None}
        unknown = sorted(set(given) - set(dims))
        if unknown:
            raise CheckpointError(f"{source}: reduced_dims has unknown keys {', '.join(unknown)}")
        known = ("train", "data", "model", "reduced_dims")
        config = cls(
            train=_section(TrainSection, values.get("train", {}), f"{source}: train"),
            data=_section(DataSection, values.get("data", {}), f"{source}: data"),
            model=model,
            reduced_dims=_section(ReducedDims, dims | given, f"{source}: reduced_dims"),
            extra={k: v for k, v in values.items() if k not in known},
        )
        config._check(source)
        return config

    def _check(self, source: str) -> None:
        """Refuses sizes that no model can have, before one is built of them.

        Raises:
            CheckpointError: lists differ in length, or a width cannot be divided.
        """
        model, dims, betas = self.model, self.reduced_dims, self.train.betas
        lists = (model.upsample_rates, model.upsample_kernel_sizes)
        blocks = (model.resblock_kernel_sizes, model.resblock_dilation_sizes)
        hidden = model.upsample_initial_channel >> len(model.upsample_rates)
        faults = {
            "the upsampling lists differ in length": len(lists[0]) != len(lists[1]),
            "the residual block lists differ in length": len(blocks[0]) != len(blocks[1]),
            "upsample_initial_channel is too small to be halved so often": hidden < 1,
            "n_heads does not divide hidden_channels": model.hidden_channels % model.n_heads,
            "mrte_heads does not divide mrte_hidden": dims.mrte_hidden % dims.mrte_heads,
            "style_heads does not divide style_hidden": dims.style_hidden % dims.style_heads,
            "inter_channels is odd": model.inter_channels % 2,
            "betas are not two shares of 1": len(betas) != 2 or not all(0 <= b < 1 for b in betas),
            "lr_decay is no share of 1": not 0 < self.train.lr_decay <= 1,
            "upsampling and hop_length differ": math.prod(lists[0]) != self.data.hop_length,
        }
        for fault, found in faults.items():
            if found:
                raise CheckpointError(f"{source}: {fault}; it describes no model")

    def to_dict(self) -> dict[str, Any]:
        """Upstream's nested dictionary; `reduced_dims` only where the model is reduced."""
        values: dict[str, Any] = {
            "train": _plain(self.train),
            "data": _plain(self.data),
            "model": _plain(self.model),
        }
        values.update(self.extra)
        if self.reduced_dims != ReducedDims.full_size(self.version):
            values["reduced_dims"] = _plain(self.reduced_dims)
        return values

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Reads a `config.json`.

        Raises:
            CheckpointError: the file is missing, is not JSON, or does not describe a model.
        """
        return cls.from_dict(read_json_table(path), source=str(path))


@dataclass(frozen=True)
class T2SConfig:
    """The GPT stage: `model` of upstream's `s1longer-v2.yaml`, and `max_sec` of its `data`.

    Attributes:
        hidden_dim, embedding_dim: one width under two names; the feed-forward has 4 times as much.
        vocab_size: semantic codes and EOS.
        phoneme_vocab_size: 512 in v1, whose table has 322 symbols; 732 in every later version.
        dropout: of the token embeddings; all else has upstream's hard-coded 0.1.
        EOS: the code that ends a sequence.
        max_sec: bounds what is generated, see `early_stop`.
        extra: the rest of upstream's nested dictionary, kept for the files we write.
    """

    hidden_dim: int = 512
    embedding_dim: int = 512
    head: int = 16
    n_layer: int = 24
    vocab_size: int = 1025
    phoneme_vocab_size: int = 732
    dropout: float = 0.0
    EOS: int = 1024
    max_sec: float = 54.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """ "v1" or "v2", by the phoneme table; v2Pro and v2ProPlus share v2's."""
        return "v1" if self.phoneme_vocab_size == _V1_PHONEMES else "v2"

    @property
    def early_stop(self) -> float:
        """Codes after which generation ends once they are exceeded.

        Upstream multiplies by 50 though there are 25 codes a second, so this is twice `max_sec`.
        """
        return 50 * self.max_sec

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> T2SConfig:
        """Reads upstream's nested dictionary.

        Args:
            values: with `model`, and `data` where `max_sec` is not the default.
            source: the file's name, for messages.

        Raises:
            CheckpointError: it does not describe a GPT.
        """
        _check_plain(values, source)
        rest = {key: values.get(key) or {} for key in ("model", "data")}
        for key, section in rest.items():
            if not isinstance(section, Mapping):
                raise CheckpointError(f"{source}: `{key}` of the configuration is not a table")
        stated = dict(rest["model"])
        if "max_sec" in rest["data"]:
            stated["max_sec"] = rest["data"]["max_sec"]
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {key: value for key, value in values.items() if key not in rest}
        for key, section in rest.items():
            extra[key] = {name: value for name, value in section.items() if name not in names}
        known = {name: value for name, value in stated.items() if name in names}
        config = dataclasses.replace(_section(cls, known, f"{source}: model"), extra=extra)
        config._check(source)
        return config

    def _check(self, source: str) -> None:
        """Refuses sizes that no model can have, before one is built of them."""
        faults = {
            "hidden_dim and embedding_dim differ": self.hidden_dim != self.embedding_dim,
            "head does not divide hidden_dim": self.hidden_dim % self.head,
            "hidden_dim is odd": self.hidden_dim % 2,
            "EOS is not the last of vocab_size codes": self.vocab_size != self.EOS + 1,
            "dropout is no share of 1": not 0 <= self.dropout < 1,
            "max_sec is not above 0": not self.max_sec > 0,
        }
        for fault, found in faults.items():
            if found:
                raise CheckpointError(f"{source}: {fault}; it describes no GPT")

    def to_dict(self) -> dict[str, Any]:
        """Upstream's nested dictionary, as `from_dict` reads it."""
        values = _plain(self)
        model, data = (values.pop(key, {}) for key in ("model", "data"))
        max_sec = self.max_sec
        own = {f.name: values.pop(f.name) for f in dataclasses.fields(self) if f.name in values}
        own.pop("max_sec")
        data = data | {"max_sec": int(max_sec) if max_sec == int(max_sec) else max_sec}
        return values | {"model": model | own, "data": data}


def read_json_table(path: str | Path) -> dict[str, Any]:
    """Read a configuration file, whose top level is a table.

    Raises:
        CheckpointError: the file is missing, is not JSON, or is something else.
    """
    cure = "copy or download it again"
    return read_json(Path(path), dict[str, Any], error=CheckpointError, cure=cure)


def _check_plain(value: Any, source: str, depth: int = 0) -> None:
    """Refuses a configuration that holds something else than JSON can.

    Raises:
        CheckpointError: it does, a tensor for instance.
    """
    if isinstance(value, Mapping):
        items, is_good = list(value.values()), all(isinstance(key, str) for key in value)
    else:
        items = list(value) if isinstance(value, (list, tuple)) else []
        is_good = bool(items) or isinstance(value, (str, int, float, list, tuple, type(None)))
    if not is_good or depth > _DEEPEST:
        raise CheckpointError(
            f"{source}: its configuration is damaged; copy or download the file again"
        )
    for item in items:
        _check_plain(item, source, depth + 1)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def _fits(value: Any, default: Any) -> bool:
    """Whether a value from a file has the type that the default shows."""
    if default is None:
        return value is None or _fits(value, 0.0)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= _LARGEST_FLOAT  # nor is it infinite, or no number
    if isinstance(default, tuple):
        is_list = isinstance(value, tuple) and 0 < len(value) <= _LONGEST_LIST
        # What stands in lists are rates, sizes and dilations.
        return is_list and all(
            _fits(item, default[0]) and (type(item) is not int or 0 < item <= _LARGEST_INT)
            for item in value
        )
    return type(value) is type(default)


def _section(kind: type[Section], values: Mapping[str, Any], source: str) -> Section:
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "extra"}  # type: ignore[arg-type]
    known = {name: _freeze(values[name]) for name in fields if name in values}
    for name, value in known.items():
        default = fields[name].default
        # Sizes are above 0; only what is 0 by default, or a share, may be 0.
        is_size = type(default) is int and default > 0 and name not in _MAY_BE_ZERO
        least, most = int(is_size), _MOST_LAYERS if name in _LAYERS else _LARGEST_INT
        is_believed = type(value) is not int or name == "seed" or least <= value <= most
        if not _fits(value, default) or not is_believed:
            raise CheckpointError(f"{source}.{name} is {value!r}, which is not like {default!r}")
    if any(f.name == "extra" for f in dataclasses.fields(kind)):  # type: ignore[arg-type]
        known["extra"] = {k: v for k, v in values.items() if k not in fields}
    return kind(**known)


def _plain(section: Any) -> dict[str, Any]:
    values = {f.name: _thaw(getattr(section, f.name)) for f in dataclasses.fields(section)}
    values.update(values.pop("extra", {}))
    return values
