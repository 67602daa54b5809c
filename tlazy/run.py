"""A run's folder: what it was asked for, how far it is, and what it has learned.

====================  =========================================================================
file                  content
====================  =========================================================================
``config.json``       options, data set, normalization, backend and versions; written first
``checkpoint.pt``     weights, optimizer, schedule and history at the end of an epoch
``model.safetensors`` the weights alone
``metrics.jsonl``     one line for each epoch
``curves.png``        loss and accuracy by epoch
``confusion.png``     the confusion matrix of the test series
====================  =========================================================================

Each is written atomically. A folder with a ``config.json`` is a run; whatever else is missing or
old there is made again from ``checkpoint.pt``, or from the first epoch where that is missing too.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

import tlazy
from tlazy.bench import machine
from tlazy.data import Dataset, Normalization, check_labels
from tlazy.errors import UserError, counted, quoted, reason
from tlazy.files import replacing
from tlazy.models import MODELS

FILES = (
    "config.json",
    "checkpoint.pt",
    "model.safetensors",
    "metrics.jsonl",
    "curves.png",
    "confusion.png",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
DEVICES = ("auto", "cpu", "cuda")
# What torch, numpy and the operating system can count in.
MOST_COUNTED = 2**31 - 1
MOST_THREADS = 1024
# Adam's first step divides it by 0.1, in float32.
MOST_LR = 1e30


@dataclass(frozen=True)
class Options:
    """What a user asks of a training run; wrong values raise UserError.

    Attributes:
        data: a set in sktime's wheel, or a file; see :mod:`tlazy.data`.
        model: a key of :data:`tlazy.models.MODELS`.
        epochs: passes over the training part.
        batch_size: series in a step.
        lr: Adam's learning rate at the start; it falls to zero along a half cosine.
        seed: of initial weights, shuffling, dropout and, where needed, the data split.
        device: "cpu", "cuda", or "auto": CUDA where there is one.
        dtype: "float32", "float64", or "bfloat16": autocast over float32 weights.
    """

    data: str = "ItalyPowerDemand"
    model: str = "fcn"
    epochs: int = 100
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_choice("--model", self.model, MODELS)
        check_device(self.device)
        _check_choice("--dtype", self.dtype, DTYPES)
        check_range("--epochs", self.epochs, 1, MOST_COUNTED)
        check_range("--batch-size", self.batch_size, 1, MOST_COUNTED)
        check_range("--seed", self.seed, 0, 2**32 - 1)
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr must be positive and finite, got {self.lr}")
        if self.lr > MOST_LR:
            raise UserError(f"--lr must be at most {MOST_LR:g}, got {self.lr}")

    @property
    def folder(self) -> Path:
        """Where the run goes unless the user says otherwise."""
        data = Path(self.data)
        name = data.stem if data.suffix else data.name
        return Path("runs") / f"{name}-{self.model}-{self.seed}"


@dataclass(frozen=True)
class Config:
    """The content of ``config.json``: all that `tlazy predict` and `--resume` need to know."""

    options: Options
    name: str
    classes: tuple[str, ...]
    channels: int
    length: int
    train_series: int
    test_series: int
    data_sha256: str
    normalization: Normalization
    backend: str
    threads: int
    versions: dict[str, str]

    def build(self) -> torch.nn.Module:
        """The run's network, still lazy."""
        return MODELS[self.options.model](len(self.classes))


@dataclass(frozen=True)
class Run:
    """A folder that holds a run."""

    path: Path
    config: Config

    @classmethod
    def create(cls, path: Path, config: Config) -> Run:
        """Make the folder and write ``config.json``.

        Raises:
            UserError: where the folder holds a run already, or cannot be written.
        """
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_text(path / "config.json", json.dumps(asdict(config), indent=2) + "\n")
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read the folder's ``config.json``.

        Raises:
            UserError: where there is no run, or its configuration is damaged.
        """
        file = path / "config.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} holds no run: there is no config.json in it") from None
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise _damaged(file, error) from error
        try:
            return cls(path, _config_of(content))
        except ValueError as error:
            raise _damaged(file, error) from error

    def check_data(self, data: Dataset) -> None:
        """Raise UserError where the data is no longer, or never was, what the run trained on."""
        config = self.config
        if data.sha256() != config.data_sha256:
            raise UserError(
                f"--resume: {config.options.data} has changed since the run in {self.path} began"
            )
        found = {
            "classes": data.classes,
            "channels": data.channels,
            "length": data.length,
            "train_series": len(data.x_train),
            "test_series": len(data.x_test),
        }
        for key, value in found.items():
            if getattr(config, key) != value:
                raise UserError(
                    f"{self.path / 'config.json'} is damaged: {key!r} is {getattr(config, key)}, "
                    f"{config.options.data} has {value}"
                )

    @property
    def continue_with(self) -> str:
        """The command that resumes the run."""
        return f"tlazy train --out {shlex.quote(str(self.path))} --resume"

    def save(self, state: dict[str, Any], net: torch.nn.Module) -> None:
        """Write ``checkpoint.pt``, then what follows from it: the model and the metrics.

        Raises:
            UserError: where one cannot be written; its old content is still there then.
        """
        try:
            with replacing(self.path / "checkpoint.pt") as new, new.open("wb") as file:
                torch.save(state, file)
            tlazy.save(net, self.path / "model.safetensors")
            lines = (json.dumps(row) + "\n" for row in state["history"])
            _write_text(self.path / "metrics.jsonl", "".join(lines))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        except RuntimeError as error:
            # What torch makes of a file that cannot be written, such as on a full disk.
            if not isinstance(error.__context__, OSError):
                raise
            raise _unwritable(self.path, error.__context__) from error

    def load_state(self) -> dict[str, Any] | None:
        """What :meth:`save` wrote last, on the CPU, or None where nothing was.

        Raises:
            UserError: where ``checkpoint.pt`` is damaged.
        """
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile, pickle and torch each raise their own
            raise _damaged(file, error) from error

    def load_model(self, device: torch.device) -> torch.nn.Module:
        """The trained network in evaluation mode.

        Raises:
            UserError: where there are no weights yet, or they are damaged or of another model.
        """
        file = self.path / "model.safetensors"
        if not file.exists():
            raise UserError(
                f"{self.path} holds no trained model: continue it with {self.continue_with}"
            )
        net = self.config.build()
        try:
            tlazy.load(net, file)
        except Exception as error:  # safetensors has an exception type of its own
            raise UserError(f"{file} is damaged or of another model: {reason(error)}") from error
        return net.to(device).eval()


def check_free(path: Path) -> None:
    """Raise UserError where `path` can be no folder or holds one of a run's files."""
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is not a folder")
        held = [name for name in FILES if (path / name).exists()]
    except OSError as error:
        raise _unwritable(path, error) from error
    if held:
        raise UserError(
            f"{path} already holds a run ({', '.join(held)}): "
            "give another --out, or --resume to continue it"
        )


def check_range(option: str, value: int, least: int, most: int) -> None:
    """Raise UserError unless ``least <= value <= most``."""
    if value < least and least == 1:
        raise UserError(f"{option} must be at least 1, got {value}")
    if not least <= value <= most:
        raise UserError(f"{option} must be from {least} to {most}, got {value}")


def check_device(name: str) -> None:
    """Raise UserError unless `name` is a value of ``--device``."""
    _check_choice("--device", name, DEVICES)


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` means here.

    Raises:
        UserError: for "cuda" on a machine without one.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "torch sees no GPU" if torch.version.cuda else "this torch is built for the CPU"
        raise UserError(f"--device cuda: {reason}; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def versions() -> dict[str, str]:
    """The version of everything here that computes."""
    return {name: version for name, version in machine.versions().items() if version}


def _check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{option} must be one of {', '.join(choices)}, got {quoted(value)}")


def _config_of(content: Any) -> Config:
    """Turn parsed JSON into a Config; ValueError, naming the key, where it does not fit."""
    config = _typed(Config, content, "")
    for key in ("channels", "length", "train_series", "test_series"):
        _check_entry(key, 1 <= getattr(config, key) <= MOST_COUNTED, "must be positive")
    _check_entry("threads", 1 <= config.threads <= MOST_THREADS, f"must be 1 to {MOST_THREADS}")
    check_labels(config.classes, "'classes'")
    distinct = len(set(config.classes)) == len(config.classes) >= 2
    _check_entry("classes", distinct, "must be two or more, all different")
    norm = config.normalization
    fits = len(norm.mean) == len(norm.std) == config.channels
    _check_entry("normalization", fits, f"is not for {counted(config.channels, 'channel')}")
    usable = all(map(math.isfinite, norm.mean)) and all(0 < std < math.inf for std in norm.std)
    _check_entry("normalization", usable, "must be finite, with positive deviations")
    return config


def _check_entry(key: str, good: bool, message: str) -> None:
    if not good:
        raise ValueError(f"{key!r} {message}")


def _typed(kind: Any, value: Any, key: str) -> Any:
    """`value`, parsed from JSON, as the annotated type `kind`; `key` names it in an error."""
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        for name in hints:
            _check_entry(f"{key}{name}", name in value, "is missing")
        for name in value:
            _check_entry(f"{key}{name}", name in hints, "is unknown")
        return kind(**{n: _typed(hints[n], value[n], f"{key}{n}.") for n in hints})  # type: ignore[operator]
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(kind)[0], item, key) for item in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _typed(get_args(kind)[1], item, key) for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) < MOST_COUNTED:
        return float(value)
    if type(value) is not kind:
        name = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else "list"
        raise ValueError(f"{key.rstrip('.')!r} must be of type {name}, got {quoted(str(value))}")
    return value


def _damaged(file: Path, error: Exception) -> UserError:
    why = reason(error) if file.stat().st_size else "it is empty"
    return UserError(f"{file} is damaged: {why}")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path}: {error.strerror or error}")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
