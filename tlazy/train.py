"""Training a classifier of time series: what `tlazy train` runs."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import tlazy
from tlazy.data import Dataset, Normalization, load_dataset, shape_text
from tlazy.errors import UserError, one_line
from tlazy.models import MODELS
from tlazy.run import DTYPES, Config, Options, Run, check_free, pick_device, versions

EVALUATION_BATCH = 64
# Test scores along the way are for the curves only: nothing is chosen by them.
TEST_POINTS = 20
# Saving takes at most this share of the time, however small the epochs are.
SAVING_SHARE = 0.05


class Display(Protocol):
    """Where a run shows itself."""

    def note(self, text: str) -> None:
        """Show a text of one or more lines."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Show the metrics of an epoch that has ended, out of `epochs`."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        test_accuracy: of the final weights, from 0 to 1.
        epochs: that were trained.
        interrupted: whether there were to be more.
        seconds: spent training, evaluation along the way included, before a resume too.
    """

    run: Run
    test_accuracy: float
    epochs: int
    interrupted: bool
    seconds: float


class Diverged(UserError):
    """The loss of an epoch is no longer finite."""


class Interrupted(Exception):
    """Ctrl-C was pressed while an epoch ran."""


def train(options: Options, out: Path, display: Display) -> Result:
    """Train a network from its first epoch on and leave everything in the folder `out`.

    Adam and cross-entropy; the learning rate falls to zero along a half cosine. The final weights
    are the result: nothing is selected by its score.

    Raises:
        UserError: for bad options or data, or where `out` holds a run; nothing is written then.
    """
    check_free(out)
    device = pick_device(options.device)
    data = load_dataset(options.data, seed=options.seed)
    net, backend = _network(options, data, device, display)
    source = str(Path(options.data).resolve()) if Path(options.data).exists() else options.data
    config = Config(
        options=replace(options, data=source, device=device.type),
        name=data.name,
        classes=data.classes,
        channels=data.channels,
        length=data.length,
        train_series=len(data.x_train),
        test_series=len(data.x_test),
        data_sha256=data.sha256(),
        normalization=Normalization.of(data.x_train),
        backend=backend,
        threads=torch.get_num_threads(),
        versions=versions(),
    )
    return _fit(Run.create(out, config), net, data, device, display)


def resume(out: Path, given: Mapping[str, Any], display: Display) -> Result:
    """Continue the run in the folder `out` from its last checkpoint.

    On the same device, with the same versions, the final weights are bitwise those of a run that
    was never interrupted.

    Args:
        given: the options that the user gave this time; they must be the run's.

    Raises:
        UserError: where there is no run, it is damaged, `given` differs, or the data has changed.
    """
    run = Run.open(out)
    options = run.config.options
    _check_same(given, run)
    device = pick_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(run.config.threads)  # sums are split by thread
    data = load_dataset(options.data, seed=options.seed)
    run.check_data(data)
    net, _ = _network(options, data, device, display)
    return _fit(run, net, data, device, display)


class Trainer:
    """A network in training, one epoch at a time.

    What an epoch does depends only on the state before it, the seed and the epoch's number: the
    order of the series and dropout's random numbers are drawn anew from (seed, epoch).

    Args:
        net: materialized, on the device and in the dtype to train in.
        data: the set; its series are normalized here.
    """

    def __init__(self, net: torch.nn.Module, data: Dataset, options: Options) -> None:
        self.net = net
        self.options = options
        parameter = next(net.parameters())
        self.device, dtype = parameter.device, parameter.dtype
        norm = Normalization.of(data.x_train)
        self.train_part, self.test_part = (
            (
                torch.from_numpy(norm.apply(x)).to(self.device, dtype),
                torch.from_numpy(y).to(self.device),
            )
            for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        )
        self.optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
        steps = math.ceil(len(data.x_train) / options.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, options.epochs * steps
        )
        self.history: list[dict[str, Any]] = []

    def run_epoch(self, stop: threading.Event) -> dict[str, Any]:
        """Train one epoch and append its metrics to the history.

        Raises:
            Interrupted: once `stop` is set; the epoch is then half done.
            Diverged: where the loss is no longer finite.
        """
        start = time.perf_counter()
        number = len(self.history) + 1
        lr = self.schedule.get_last_lr()[0]
        losses, hits = self._train_steps(number, stop)
        if not math.isfinite(losses):
            raise Diverged(
                f"the loss is {losses} in epoch {number}: training diverges; try a smaller --lr"
            )
        row = {"epoch": number, "loss": losses, "accuracy": hits, "lr": lr}
        every = math.ceil(self.options.epochs / TEST_POINTS)
        if number % every == 0 or number == self.options.epochs:
            row["test_loss"], row["test_accuracy"] = self.score(*self.test_part)
        row["seconds"] = round(time.perf_counter() - start, 4)
        self.history.append(row)
        return row

    def _train_steps(self, number: int, stop: threading.Event) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch, as seen by each step before it."""
        x, y = self.train_part
        order = self._shuffle(number)
        loss_sum = torch.zeros((), device=self.device, dtype=torch.float64)
        hits = torch.zeros((), device=self.device, dtype=torch.int64)
        self.net.train()
        for batch in order.split(self.options.batch_size):
            if stop.is_set():
                raise Interrupted
            logits = self._logits(x[batch])
            loss = torch.nn.functional.cross_entropy(logits, y[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            loss_sum += loss.detach() * len(batch)
            hits += (logits.detach().argmax(1) == y[batch]).sum()
        return float(loss_sum) / len(x), int(hits) / len(x)

    def _shuffle(self, number: int) -> Tensor:
        """Seed everything random in this epoch, and draw the order of the series."""
        state = np.random.SeedSequence([self.options.seed, number]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        return torch.randperm(len(self.train_part[0])).to(self.device)

    def _logits(self, x: Tensor) -> Tensor:
        with compute_dtype(self.options, self.device):
            logits = self.net(x)
        return logits.float() if self.options.dtype == "bfloat16" else logits

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The network's output for `x`, shape (N, C, L), in evaluation mode: (N, classes)."""
        self.net.eval()
        return torch.cat([self._logits(part) for part in x.split(EVALUATION_BATCH)])

    def score(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on `x`, shape (N, C, L), with labels `y`, shape (N,)."""
        logits = self.logits(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        return float(loss), int((logits.argmax(1) == y).sum()) / len(y)

    def state(self) -> dict[str, Any]:
        """A copy of all that the next epoch depends on, of tensors and plain values only."""
        return {
            "model": copy.deepcopy(self.net.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "history": list(self.history),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state` gave."""
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        self.history = list(state["history"])


def compute_dtype(options: Options, device: torch.device) -> torch.autocast:
    """The autocast region of ``--dtype bfloat16``; for other dtypes it does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16")


def confusion(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, shape (classes, classes): a row is a true class, a column a predicted one."""
    return np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _fit(
    run: Run, net: torch.nn.Module, data: Dataset, device: torch.device, display: Display
) -> Result:
    """Train what is left of the run, and write everything."""
    options = run.config.options
    with _reproducible(device), _interrupts() as stop:
        trainer = Trainer(net, data, options)
        state = run.load_state()
        if state is not None:
            _restore(trainer, state, run)
            display.note(f"resuming after epoch {len(trainer.history)} of {options.epochs}")
        try:
            with suppress(Interrupted):
                _train_epochs(trainer, run, stop, display)
            return _finish(trainer, run, display)
        except Diverged as error:
            raise Diverged(f"{error}, with another --out or after deleting {run.path}") from error
        except KeyboardInterrupt:
            display.note(f"interrupted; continue with: {run.continue_with}")
            raise


def _train_epochs(trainer: Trainer, run: Run, stop: threading.Event, display: Display) -> None:
    """Train up to the last epoch; whatever ends it leaves trainer and folder between epochs."""
    boundary = trainer.state()
    last, saved = time.perf_counter(), 0.0
    try:
        while len(trainer.history) < trainer.options.epochs:
            row = trainer.run_epoch(stop)
            boundary = trainer.state()
            now = time.perf_counter()
            if now - last > saved / SAVING_SHARE:
                run.save(boundary, trainer.net)
                last, saved = time.perf_counter(), time.perf_counter() - now
            display.epoch(row, trainer.options.epochs)
    except BaseException:
        trainer.restore(boundary)
        run.save(boundary, trainer.net)
        raise
    run.save(boundary, trainer.net)


def _finish(trainer: Trainer, run: Run, display: Display) -> Result:
    """Score the weights as they are on the test part, and draw the two pictures."""
    config = run.config
    x, y = trainer.test_part
    predicted = trainer.logits(x).argmax(1).cpu().numpy()
    truth = y.cpu().numpy()
    accuracy = float((predicted == truth).mean())
    epochs = len(trainer.history)
    try:
        from tlazy import plot
    except ImportError:
        display.note("no curves.png and confusion.png: they need pip install 'tlazy[plot]'")
    else:
        plot.draw(run, trainer.history, confusion(truth, predicted, len(config.classes)), accuracy)
    seconds = sum(row["seconds"] for row in trainer.history)
    return Result(run, accuracy, epochs, epochs < config.options.epochs, seconds)


def _network(
    options: Options, data: Dataset, device: torch.device, display: Display
) -> tuple[torch.nn.Module, str]:
    """Build, trace and materialize the network, and say what runs it."""
    rest = len(data.x_train) % options.batch_size
    batch = min(options.batch_size, len(data.x_train))
    with torch.random.fork_rng(devices=[]):
        net = MODELS[options.model](len(data.classes))
        plan = trace(options.model, net, (batch, data.channels, data.length))
        if rest:
            trace(options.model, net, (rest, data.channels, data.length))
        plan.materialize(seed=options.seed)
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    net.to(device, dtype)
    backend = str(tlazy.backend_of(torch.empty(1, device=device, dtype=DTYPES[options.dtype])))
    display.note(f"{data.name}: {len(data.x_train)} training and {len(data.x_test)} test series")
    display.note(str(plan))
    display.note(f"backend: {backend}")
    return net, backend


def trace(name: str, net: torch.nn.Module, shape: tuple[int, int, int]) -> Any:
    """``tlazy.trace`` for an input of shape (N, C, L).

    Raises:
        UserError: where the network cannot take that shape.
    """
    try:
        return tlazy.trace(net, tlazy.Spec(*shape))
    except (RuntimeError, ValueError) as error:
        batch, channels, length = shape
        raise UserError(
            f"model {name} cannot take {batch} series of {shape_text(channels, length)}: "
            f"{one_line(error)}"
        ) from error


def _restore(trainer: Trainer, state: Mapping[str, Any], run: Run) -> None:
    try:
        trainer.restore(state)
        epochs = [row["epoch"] for row in trainer.history]
        if epochs != list(range(1, len(epochs) + 1)) or len(epochs) > trainer.options.epochs:
            raise ValueError("its history is not that of this run")
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        file = run.path / "checkpoint.pt"
        raise UserError(f"{file} is damaged or of another run: {one_line(error)}") from error


def _check_same(given: Mapping[str, Any], run: Run) -> None:
    """Raise UserError for a given option that is not the run's."""
    for name, value in given.items():
        wanted = getattr(run.config.options, name)
        same = value == wanted or (name, value) == ("device", "auto")
        if name == "data":
            same = same or str(Path(value).resolve()) == wanted
        if not same:
            option = "--" + name.replace("_", "-")
            why = "; its learning rate is scheduled for that many" if name == "epochs" else ""
            raise UserError(
                f"--resume: {option} {value} differs from the run's {wanted} in {run.path}{why}"
            )


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels inside, and torch's global generators as they were afterwards."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    before_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(before or on_gpu, warn_only=before_warn or not before)
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = filled and before  # in a launch for each new tensor
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=before_warn)
        deterministic.fill_uninitialized_memory = filled


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
