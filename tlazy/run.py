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
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tlazy
from tlazy.data import Normalization
from tlazy.errors import UserError
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
        if self.epochs < 1:
            raise UserError(f"--epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr must be positive and finite, got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {self.seed}")

    @property
    def folder(self) -> Path:
        """Where the run goes unless the user says otherwise."""
        data = Path(self.data)
        name = data.stem if data.suffix else self.data
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
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error
        try:
            return cls(path, _config_of(content))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is damaged: {_missing_or_wrong(error)}") from error

    def save(self, state: dict[str, Any], net: torch.nn.Module) -> None:
        """Write ``checkpoint.pt``, then what follows from it: the model and the metrics."""
        try:
            with replacing(self.path / "checkpoint.pt") as temporary:
                torch.save(state, temporary)
            tlazy.save(net, self.path / "model.safetensors")
            lines = (json.dumps(row) + "\n" for row in state["history"])
            _write_text(self.path / "metrics.jsonl", "".join(lines))
        except OSError as error:
            raise _unwritable(self.path, error) from error

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
            raise UserError(f"{file} is damaged: {error}") from error

    def load_model(self, device: torch.device) -> torch.nn.Module:
        """The trained network in evaluation mode.

        Raises:
            UserError: where there are no weights yet, or they are damaged or of another model.
        """
        file = self.path / "model.safetensors"
        if not file.exists():
            raise UserError(
                f"{self.path} holds no trained model: continue it with "
                f"tlazy train --out {self.path} --resume"
            )
        net = self.config.build()
        try:
            tlazy.load(net, file)
        except Exception as error:  # safetensors has an exception type of its own
            raise UserError(f"{file} is damaged or of another model: {error}") from error
        return net.to(device).eval()


def check_free(path: Path) -> None:
    """Raise UserError where `path` is no folder or holds one of a run's files."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is not a folder")
    held = [name for name in FILES if (path / name).exists()]
    if held:
        raise UserError(
            f"{path} already holds a run ({', '.join(held)}): "
            "give another --out, or --resume to continue it"
        )


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
    """What ran: python, tlazy, torch, triton and numpy, each with its version."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "missing"
    return {
        "python": platform.python_version(),
        "tlazy": tlazy.__version__,
        "torch": torch.__version__,
        "triton": triton_version,
        "numpy": np.__version__,
    }


def device_name(device: torch.device) -> str:
    """`cpu (x86_64, 2 threads)` or the GPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def _check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def _config_of(content: dict[str, Any]) -> Config:
    """Turn parsed JSON into a Config; KeyError, TypeError or ValueError where it does not fit."""
    values = {field.name: content[field.name] for field in fields(Config)}
    values["options"] = Options(**values["options"])
    norm = {key: tuple(map(float, value)) for key, value in values["normalization"].items()}
    values["normalization"] = Normalization(**norm)
    values["classes"] = tuple(map(str, values["classes"]))
    config = Config(**values)
    if not len(norm["mean"]) == len(norm["std"]) == config.channels:
        raise ValueError(f"normalization is not for {config.channels} channels")
    return config


def _missing_or_wrong(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path}: {error.strerror or error}")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
