"""What one call of a model would do, and the plan for the parameters that it still lacks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tlazy import checkpoint as checkpoints
from tlazy import init as initialization
from tlazy.arguments import (
    check_device,
    check_init,
    check_parameter_dtype,
    check_path,
    check_seed,
)
from tlazy.failure import add_place, named
from tlazy.isolation import same_randomness_after
from tlazy.nn.commit import all_or_nothing
from tlazy.nn.pending import Undo, is_pending, pending_modules
from tlazy.nn.staging import Staging
from tlazy.structure import refuse_changed, structure
from tlazy.table import as_text, table


@dataclasses.dataclass
class Row:
    """One call of one module.

    Attributes:
        path: in the model, "" for the model itself.
        layer: name of the class (the eager one, for a lazy layer).
        inputs, outputs: shapes of the tensors that went in and came out.
        params: elements of the module's own parameters, 0 when an earlier row has counted them.
        flops: floating-point operations of matrix products and convolutions, without those of the
            modules inside.
        bytes: least memory traffic: own parameters and, for a module without modules inside,
            inputs and outputs.
        input_dtypes, output_dtypes: names such as "float32", one per shape.
    """

    path: str
    layer: str
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    params: int = 0
    flops: int = 0
    bytes: int = 0
    input_dtypes: list[str] = dataclasses.field(default_factory=list)
    output_dtypes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class LazyCall:
    """The first call of a lazy module, which decides its shapes."""

    path: str
    module: torch.nn.Module
    args: tuple[Any, ...]  # meta tensors for tensors
    kwargs: dict[str, Any]

    @property
    def seed(self) -> int | None:
        """Drawn by its constructor, or when it came into a tlazy tree."""
        return self.module.__dict__.get("_seed")


class Trace:
    """What one call of a model would do, and the plan for the parameters that it still lacks.

    Attributes:
        rows: one :class:`Row` per module call, in the order of the calls.
        output: what the model would return, with meta tensors for tensors.
        unvisited: paths of lazy modules that the call does not reach; they stay lazy.
        dry_run: why a copy of the model had to compute, "" where shapes alone were enough.

    ``print(plan)`` shows a table, with the columns' sums in its last line: one line per call, in
    ASCII where stdout has nothing else. ``rich.print(plan)`` fits it to the terminal.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rows: list[Row],
        output: Any,
        calls: list[LazyCall],
        dry_run: str = "",
    ) -> None:
        self.model = model
        self.dry_run = dry_run
        self.rows = rows
        self.output = output
        self._calls = calls
        self._structure = structure(model)
        reached = {id(call.module) for call in calls}
        self.unvisited = [
            path for path, module in pending_modules(model).items() if id(module) not in reached
        ]

    @property
    def totals(self) -> dict[str, int]:
        """Sums of params, flops and bytes over all rows."""
        return {
            name: sum(getattr(row, name) for row in self.rows)
            for name in ("params", "flops", "bytes")
        }

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain lists, numbers and strings, ready for JSON."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {
            "rows": rows,
            "totals": self.totals,
            "unvisited": list(self.unvisited),
            "dry_run": self.dry_run,
        }

    def materialize(
        self,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters of every lazy module that the trace reached, all or nothing.

        Parameters that exist already are left alone, except by `checkpoint`, which fills all. A
        plan serves once, and for the model as it was traced: ``tlazy.initialize`` and
        ``tlazy.load`` give new values afterwards.

        Args:
            seed: key each layer's values by (seed, path) instead of the seed that it drew when it
                was constructed.
            init: called once with each new layer, after its default initialization.
            checkpoint: safetensors file to take the values from; nothing is initialized then.
            device, dtype: of the new tensors, where they should not be their placeholders' own.

        Raises:
            TypeError: for an argument of another kind than these.
            ValueError: for `checkpoint` together with `seed` or `init`.
            RuntimeError: where the model is no longer what was traced; says what has changed.
            RuntimeError, OSError, safetensors.SafetensorError: as :func:`tlazy.load`.
        """
        if checkpoint is not None and (seed is not None or init is not None):
            raise ValueError("a checkpoint leaves nothing to seed or init: give one or the other")
        seed = None if seed is None else check_seed(seed)
        check_init(init)
        check_parameter_dtype(dtype)
        if checkpoint is not None:
            check_path("checkpoint", checkpoint)
        device = None if device is None else check_device(device)
        with all_or_nothing() as restorers, same_randomness_after(only_on_failure=True):
            staging = self._stage(seed, init, device, dtype, initialize=checkpoint is None)
            if checkpoint is None:
                staging.commit(self.model, restorers)
            else:
                checkpoints.fill(self.model, checkpoint, staging)

    def commit(self, restorers: list[Undo]) -> None:
        """:meth:`materialize`, in a block of ``all_or_nothing`` that takes back more than this."""
        with same_randomness_after(only_on_failure=True):
            self._stage().commit(self.model, restorers)

    def _stage(
        self,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        initialize: bool = True,
    ) -> Staging:
        refuse_changed(self.model, self._structure)
        staging = Staging(device, dtype)
        # A layer of torch's that a list got unseen has drawn no seed. What is drawn now must not
        # come from the global generator, in the middle of a forward: a neighbour has a seed.
        spare = next((call.seed for call in self._calls if call.seed is not None), None)
        for call in self._calls:
            if not is_pending(call.module):  # it is in the model unregistered
                raise RuntimeError(f"{call.path} is no longer lazy: its plan can serve only once")
            base = seed if seed is not None else spare if call.seed is None else None
            key = call.seed if base is None else initialization.keyed_seed(base, call.path)
            with _naming(call.path, call.module):
                staging.add(
                    call.module, call.args, call.kwargs, initialize=initialize, seed=key, init=init
                )
        return staging

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        return table(self)

    def __repr__(self) -> str:
        params = self.totals["params"]
        return f"<Trace of {type(self.model).__name__}: {len(self.rows)} calls, {params:,} params>"


@contextmanager
def _naming(path: str, module: torch.nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        add_place(error, named(path, type(module).__name__))
        raise
