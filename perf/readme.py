"""Write what the README says of GPUs from the newest record of each: figures, and a first sentence.

    python -m perf.readme            rewrites both, and draws pictures that a record lacks
    python -m perf.readme --check    exit code 1 where it is out of date; writes nothing

Records from CPUs are not performance results and are never shown.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf import MAIN_SUITE
from perf.arguments import Parser
from tlazy.errors import UserError
from tlazy.files import replacing
from tlazy.report import load, units, write_report
from tlazy.report.comparison import US, Duel, Problem, peer_names, problems, scores
from tlazy.report.record import start, tests_ended

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- performance: written by python -m perf.readme -->"
END = "<!-- performance: end -->"
STATUS_BEGIN = "<!-- status: written by python -m perf.readme -->"
STATUS_END = "<!-- status: end -->"
NEVER_RUN = (
    "**No kernel has run on a GPU yet**, because none has been at hand: no speed is claimed, and"
    "\n[How far it is proven](#how-far-it-is-proven) says what is shown without one."
)
EMPTY = (
    "There is no figure to show: no GPU has been at hand, and none of these kernels has been timed"
    " on one.\nOn a GPU machine, `python -m perf.record` measures them beside their peers, and"
    " `python -m perf.readme`\nwrites here what came out."
)
# Records bear their date; other JSON, such as pytest-benchmark's, may lie beside them.
RECORDS = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*.json"
PICTURES = {
    "speedups.png": "Speed-ups of tlazy on {}",
    "roofline.png": "Roofline of {} with tlazy and its peers",
}
UP_TO_DATE, OUT_OF_DATE, BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the sections, and return the exit code."""
    parser = Parser("perf.readme", __doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "perf" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing")
    try:
        options = parser.parse_args(arguments)
        return update(options.readme, options.results, check=options.check)
    except UserError as error:
        print(f"perf.readme: {error}", file=sys.stderr)
        return BAD_INPUT


def update(readme: Path, results: Path, *, check: bool) -> int:
    """Bring `readme` up to date with `results`, or only say whether it is.

    Raises:
        UserError: where a file cannot be read or written, or the markers are not there.
    """
    if not check:
        _draw_what_lacks(results)
    try:
        before = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {readme}: {getattr(error, 'strerror', error)}") from error
    newest = newest_records(results)
    after = replace_section(before, (BEGIN, END), section(newest, readme.parent), readme)
    after = replace_section(after, (STATUS_BEGIN, STATUS_END), status(newest), readme)
    if before == after:
        print(f"{readme.name} is up to date")
        return UP_TO_DATE
    if check:
        print(f"{readme.name} is out of date: run python -m perf.readme")
        return OUT_OF_DATE
    try:
        with replacing(readme) as temporary:
            temporary.write_text(after, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {readme}: {error.strerror or error}") from error
    print(f"{readme.name}: what it says of GPUs is rewritten")
    return UP_TO_DATE


def _draw_what_lacks(results: Path) -> None:
    """Draw the newest records' pages and pictures where they are missing or older."""
    for path, _ in newest_records(results):
        drawn = [path.with_suffix(".html"), *(path.parent / name for name in PICTURES)]
        written = path.stat().st_mtime_ns
        if not all(file.exists() and file.stat().st_mtime_ns >= written for file in drawn):
            write_report(path)


def replace_section(text: str, markers: tuple[str, str], section: str, source: Path) -> str:
    """`text` with `section` between the markers, each of which stands alone on a line."""
    begin, end = markers
    lines = text.splitlines(keepends=True)
    bare = [line.strip() for line in lines]
    if bare.count(begin) != 1 or bare.count(end) != 1 or bare.index(begin) > bare.index(end):
        raise UserError(f"{source} needs one line {begin!r} and, below it, one line {end!r}")
    before, after = lines[: bare.index(begin) + 1], lines[bare.index(end) :]
    return "".join([*before, f"\n{section}\n\n", *after])


def status(newest: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """The sentence near the README's top: on which GPUs the kernels have run."""
    ran = [
        _plain(record["machine"]["device"] or path.parent.name)
        for path, record in newest
        if _has_run(record)
    ]
    if not ran:
        return NEVER_RUN
    return f"The kernels have run on {', '.join(ran)}: [figures](#performance)."


def _has_run(record: Mapping[str, Any]) -> bool:
    """Whether one of tlazy's kernels ran, and rightly."""
    ran = (US, "triton", "ok")
    return any((row["peer"], row["backend"], row["status"]) == ran for row in record["rows"])


def section(newest: Sequence[tuple[Path, Mapping[str, Any]]], beside: Path) -> str:
    """The performance section's Markdown.

    Args:
        newest: records and their paths.
        beside: the README's folder, from where links lead.
    """
    if not newest:
        return EMPTY
    return "\n\n".join(_device_section(path, record, beside) for path, record in newest)


def newest_records(results: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The newest GPU record of each device's folder, by the time when it was begun.

    One in which no kernel came to a time is shown only where there is no other.
    """
    try:
        folders = sorted(folder for folder in results.iterdir() if folder.is_dir())
    except OSError as error:
        raise UserError(f"cannot read {results}: {error.strerror or error}") from error
    newest = []
    for folder in folders:
        records = [(path, load(path)) for path in sorted(folder.glob(RECORDS))]
        from_gpu = [entry for entry in records if entry[1]["machine"]["kind"] != "cpu"]
        if from_gpu:
            newest.append(max(from_gpu, key=lambda entry: (_has_run(entry[1]), start(entry[1]))))
    return newest


def _device_section(path: Path, record: Mapping[str, Any], beside: Path) -> str:
    shown, rest = _main_suite(problems(record["rows"]))
    parts = [
        f"### {_plain(record['machine']['device'] or path.parent.name)}",
        _provenance(path, record, beside),
        *_pictures(path, record, beside),
        _table(shown, peer_names(record["rows"])) if shown else "Nothing was measured in it.",
        *([_tallies(rest)] if rest else []),
        f"Reproduce with\n\n```\n{_one_line(record['command'])}\n```",
    ]
    return "\n\n".join(parts)


def _main_suite(found: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The problems for the table, and those that a line per suite has to do for."""
    main = [problem for problem in found if problem.suite == MAIN_SUITE]
    if not main:
        return list(found), []
    return main, [problem for problem in found if problem.suite != MAIN_SUITE]


def _provenance(path: Path, record: Mapping[str, Any], beside: Path) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value)
    whole = "" if record["complete"] else " The run ended early: the record is incomplete."
    if "tests" in record:
        tests = record["tests"]
        whole += f" {tests_ended(tests)} in that run: {_plain(tests['summary'])}."
    return (
        f"Measured on {start(record):%Y-%m-%d} with {_plain(versions)}"
        f" ([record]({_link(path, beside)})).{whole} Medians; in brackets the peer's time over"
        " tlazy's, with no difference where the 20% to 80% spreads overlap. The floor is the least"
        " time that the device's arithmetic rate and memory bandwidth allow."
    )


def _pictures(path: Path, record: Mapping[str, Any], beside: Path) -> list[str]:
    device = _plain(record["machine"]["device"])
    return [
        f"![{text.format(device)}]({_link(path.parent / name, beside)})"
        for name, text in PICTURES.items()
        if (path.parent / name).exists()
    ]


def _table(shown: Iterable[Problem], peers: Sequence[str]) -> str:
    others = [peer for peer in peers if peer != "tlazy"]
    headings = ["problem", "dtype", "pass", "tlazy", *map(_plain, others), "% of floor"]
    aligned = ["---", "---", "---", *["---:"] * (len(others) + 2)]
    rows = [headings, aligned, *(_table_row(problem, others) for problem in shown)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _table_row(problem: Problem, peers: Sequence[str]) -> list[str]:
    ours = problem.ours[0][1] if problem.ours else None
    share = ours["floor_fraction"] if ours and ours["status"] == "ok" else None
    words = (problem.name or problem.op, problem.activation, problem.layout)
    name = ", ".join(filter(None, words))
    return [
        _plain(name),
        _plain(problem.dtype),
        _plain(problem.pass_),
        _median(ours),
        *(_against(problem.duels, peer) for peer in peers),
        "–" if share is None else f"{share:.0%}",
    ]


def _against(duels: Iterable[Duel], peer: str) -> str:
    """The peer's median and the speed-up over it, or why there is none."""
    duel = next((duel for duel in duels if duel.peer["peer"] == peer), None)
    if duel is None:
        return "–"
    if duel.speedup is None:
        return _median(duel.peer)
    words = "" if duel.verdict == "faster" else f", {duel.words}"
    return f"{_median(duel.peer)} ({units.times(duel.speedup)}{words})"


def _median(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    return units.duration(row["median_us"]) if row["status"] == "ok" else row["status"]


def _tallies(rest: Iterable[Problem]) -> str:
    """A line for each suite that is not in the table."""
    suites: dict[str, list[Problem]] = {}
    for problem in rest:
        suites.setdefault(problem.suite, []).append(problem)
    return "\n".join(
        f"- {_plain(suite)}, {_problems(len(members))}: {_tally(members) or 'no peer measured'}"
        for suite, members in suites.items()
    )


def _problems(count: int) -> str:
    return f"{count} problem{'' if count == 1 else 's'}"


def _tally(members: Iterable[Problem]) -> str:
    duels = [duel for problem in members for duel in problem.duels]
    return "; ".join(
        f"{_plain(score.peer)}: {score.words}"
        + (f", geometric mean {units.times(score.mean)}" if score.mean is not None else "")
        for score in scores(duels)
    )


def _plain(text: str) -> str:
    """`text` as Markdown that shows it unchanged, in a table too."""
    return re.sub(r"([\\`*_\[\]<>|&~#])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _link(path: Path, beside: Path) -> str:
    relative = Path(os.path.relpath(path, beside)).as_posix()
    return re.sub(r"[ ()<>]", lambda found: f"%{ord(found[0]):02X}", relative)


if __name__ == "__main__":
    sys.exit(main())
