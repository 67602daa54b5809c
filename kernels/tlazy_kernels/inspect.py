"""What the compiler makes of each kernel, for people who write them; needs no GPU.

    python -m tlazy_kernels.inspect                     # every kernel, for sm_90 in bfloat16
    python -m tlazy_kernels.inspect --kernel conv1d --target sm_80 gfx942 --dtype float32
    python -m tlazy_kernels.inspect --brief --target sm_100  # one case of each kernel
    python -m tlazy_kernels.inspect --json before.json  # and keep the table
    python -m tlazy_kernels.inspect --diff before.json  # what has changed since
    python -m tlazy_kernels.inspect --diff HEAD~1       # what has changed since that git revision

Columns: registers and bytes of stack a thread; bytes of shared memory a program; occ, the programs
that one processor holds at a time; the launcher's memory traffic, and how many times the least
possible it is; instructions in the binary by kind, global loads and stores with the bytes that a
thread moves by one. Bad arguments end with one line and exit code 2.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tlazy_kernels import catalogue, table
from tlazy_kernels.catalogue import DTYPES, Case
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.offline import compiled_together
from tlazy_kernels.recording import Launch, Recording, recorded
from tlazy_kernels.table import Row
from tlazy_kernels.targets import TARGETS


def inspect(
    targets: Sequence[str],
    dtypes: Sequence[str],
    *,
    kernel: str = "",
    brief: bool = False,
    thorough: bool = False,
) -> list[Row]:
    """Compile every case whose name contains `kernel`, for each target and dtype; where `brief`,
    only those with a kernel that none before has.

    There is a row for each launch of a case, all with the whole case's arithmetic and traffic.
    """
    work = list(recordings(targets, dtypes, kernel, thorough))
    work = list(_brief(work)) if brief else work
    rows = compiled_together(
        (name, target, dtype, launch)
        for case, target, dtype, recording in work
        for name, launch in named(case, recording)
    )
    costs: list[dict[str, Any]] = [
        {
            "flops": recording.flops,
            "bytes": recording.bytes,
            "least_flops": case.least.flops,
            "least_bytes": case.least.bytes,
        }
        for case, _, _, recording in work
        for _ in recording.launches
    ]
    return [Row(**asdict(row), **cost) for row, cost in zip(rows, costs, strict=True)]


def recordings(
    targets: Sequence[str], dtypes: Sequence[str], kernel: str = "", thorough: bool = False
) -> Iterator[tuple[Case, str, str, Recording]]:
    """What each case launches, for each target and dtype, and what that moves and computes."""
    find = catalogue.thorough_cases if thorough else catalogue.cases
    for target, dtype in itertools.product(targets, dtypes):
        for case in find(catalogue.switch_precision(dtype)):
            if kernel in case.name and case.serves(TARGETS[target]):
                with recorded(target) as recording:
                    case.call()
                yield case, target, dtype, recording


def _brief(
    work: Iterable[tuple[Case, str, str, Recording]],
) -> Iterator[tuple[Case, str, str, Recording]]:
    """Those with a kernel that none before has, on that target and in that dtype."""
    seen: set[tuple[str, str, str]] = set()
    for case, target, dtype, recording in work:
        found = {(target, dtype, launch.kernel.fn.__name__) for launch in recording.launches}
        if not found <= seen:
            yield case, target, dtype, recording
        seen |= found


def named(case: Case, recording: Recording) -> Iterator[tuple[str, Launch]]:
    """A case's launches. That with most of the arithmetic has the case's name, what comes before
    and after it its own as well, numbered from the second of its kind."""
    main = max(recording.launches, key=lambda launch: launch.flops)
    times: Counter[str] = Counter()
    for launch in recording.launches:
        kernel = launch.kernel.fn.__name__
        times[kernel] += launch is not main
        number = f" {times[kernel]}" if times[kernel] > 1 else ""
        yield case.name if launch is main else f"{case.name} + {kernel}{number}", launch


def inspect_reference(reference: str, options: Sequence[str]) -> list[Row]:
    """The rows of a saved table, or of the kernels in a git revision, which inspects itself.

    Raises:
        ValueError: where there is neither, or the revision's kernels cannot be inspected.
    """
    if Path(reference).is_file():
        return table.load(Path(reference))
    here = Path(__file__).parent
    archive = subprocess.run(["git", "-C", here, "archive", reference, "."], capture_output=True)
    if archive.returncode:
        raise ValueError(f"{reference!r} is neither a saved table nor a git revision of {here}")
    with tempfile.TemporaryDirectory() as folder:
        package, saved = Path(folder) / "tlazy_kernels", Path(folder) / "table.json"
        package.mkdir()
        subprocess.run(["tar", "-x", "-C", package], input=archive.stdout, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "tlazy_kernels.inspect", *options, "--json", saved],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"the kernels of {reference!r} cannot be inspected: {reason}")
        return table.load(saved)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tlazy_kernels.inspect: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m tlazy_kernels.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", default="", help="only names that contain this")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["sm_90"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--brief", action="store_true", help="only the first case of each kernel")
    amount.add_argument("--thorough", action="store_true", help="all tiles and activations too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the table")
    parser.add_argument("--diff", metavar="REF", help="a saved table or a git revision")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or what differs from another one."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("the interpreter compiles nothing: unset TRITON_INTERPRET")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.resolve().parent}")
    # Triton 3.9 announces on each compilation that this default will change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    chosen = ["--kernel", arguments.kernel, "--target", *arguments.target]
    chosen += ["--dtype", *arguments.dtype, *["--thorough"] * arguments.thorough]
    chosen += ["--brief"] * arguments.brief
    try:
        before = inspect_reference(arguments.diff, chosen) if arguments.diff else None
    except ValueError as error:
        parser.error(f"--diff: {error}")
    rows = inspect(
        arguments.target,
        arguments.dtype,
        kernel=arguments.kernel,
        brief=arguments.brief,
        thorough=arguments.thorough,
    )
    if not rows:
        parser.error(f"--kernel: no kernel's name contains {arguments.kernel!r}")
    if arguments.json:
        table.save(rows, arguments.json)
    if before is None:
        print(table.text(rows))
    else:
        wanted = {(row.target, row.dtype) for row in rows}
        before = [r for r in before if (r.target, r.dtype) in wanted and arguments.kernel in r.name]
        print("\n".join(table.differences(before, rows)) or "nothing has changed")


if __name__ == "__main__":
    main()
