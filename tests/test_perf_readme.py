"""`python -m perf.readme` writes what the newest GPU records hold, and nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perf import readme
from perf.readme import BEGIN, EMPTY, END, NEVER_RUN, STATUS_BEGIN, STATUS_END, main
from tests.bench_record import H200, cpu_record, record, row

ROOT = Path(__file__).parent.parent
ROWS = [
    row(median=246.0),
    row("eager", 369.0),
    row("compile", 123.0),
    row(problem="small M", activation=None, layout=None),
    row("eager", None, problem="small M", activation=None, layout=None, status="wrong"),
]


@pytest.fixture
def draws():
    """Asked for by tests that really draw."""


@pytest.fixture(autouse=True)
def drawn(monkeypatch, request):
    """The records whose pictures were asked for; only tests of the pictures draw them."""
    paths = []
    if "draws" not in request.fixturenames:
        monkeypatch.setattr(readme, "write_report", paths.append)
    return paths


@pytest.fixture
def home(tmp_path):
    """A README with old sections, and an empty folder of results."""
    status = f"# t\n\n{STATUS_BEGIN}\nold\n{STATUS_END}\n\nabove\n\n"
    (tmp_path / "README.md").write_text(f"{status}{BEGIN}\nold\n{END}\n\nbelow\n")
    (tmp_path / "results").mkdir()
    return tmp_path


def put(home, content, name="h200/2026-11-23.json"):
    path = home / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def run(home, *options):
    return main(["--results", f"{home}/results", "--readme", f"{home}/README.md", *options])


def section(home):
    """The section after it was written."""
    assert run(home) == 0
    text = (home / "README.md").read_text()
    assert text.startswith("# t\n\n")
    assert text.count("\n\nabove\n\n") == 1
    assert text.endswith("\n\nbelow\n")
    return re.search(rf"{BEGIN}\n(.*){END}\n", text, re.S).group(1)


def test_without_a_record_it_says_so(home):
    assert section(home).strip() == EMPTY
    assert "python -m perf.record" in EMPTY


def test_records_of_cpus_are_never_shown(home):
    put(home, cpu_record(*ROWS), "cpu/2026-11-23.json")
    assert section(home).strip() == EMPTY


def test_a_later_record_in_which_no_kernel_came_to_a_time_does_not_replace_one_that_has_some(home):
    put(home, record(*ROWS), "h200/2026-11-23.json")
    later = {"started": "2026-11-24T05:00:00Z"}
    failed = row(median=None), row("eager", 369.0)
    put(home, record(*failed, **later), "h200/2026-11-24.json")
    put(home, record(*failed, **later), "h100/2026-11-24.json")
    written = section(home)
    assert "h200/2026-11-23.json" in written
    assert "h200/2026-11-24.json" not in written
    assert "h100/2026-11-24.json" in written


def status(home):
    """The sentence near the top after it was written."""
    assert run(home) == 0
    text = (home / "README.md").read_text()
    return re.search(rf"{STATUS_BEGIN}\n(.*){STATUS_END}\n\nabove", text, re.S).group(1).strip()


def test_the_top_says_that_no_kernel_has_run_on_a_gpu_until_a_record_shows_one(home):
    assert status(home) == NEVER_RUN
    put(home, cpu_record(*ROWS), "cpu/2026-11-23.json")
    put(home, record(row(median=None), row("eager")), "h100/2026-11-23.json")
    assert status(home) == NEVER_RUN
    put(home, record(*ROWS))
    assert status(home) == f"The kernels have run on {H200}: [figures](#performance)."


def test_table_has_medians_speedups_and_share_of_the_floor(home):
    put(home, record(*ROWS))
    lines = section(home).splitlines()
    assert "| problem | dtype | pass | tlazy | eager | compile | % of floor |" in lines
    assert (
        "| wav2vec2 layer 0, gelu, ncl | bfloat16 | forward | 246 µs | 369 µs (1.50×) "
        "| 123 µs (0.50×, slower) | 100% |"
    ) in lines
    assert "| small M | bfloat16 | forward | 100 µs | wrong | – | 246% |" in lines


def test_overlapping_spreads_are_called_no_difference(home):
    put(home, record(row(), row("eager", 99.0), row(suite="sweep"), row("eager", suite="sweep")))
    text = section(home)
    assert "| 100 µs | 99 µs (0.99×, no difference) |" in text
    assert "- sweep, 1 problem: eager: faster in 0, slower in 0, no difference in 1\n" in text


def test_section_names_device_versions_date_and_command(home):
    put(home, record(*ROWS, command="python -m perf.record --minutes 8"))
    text = section(home)
    for wanted in (f"### {H200}", "torch 2.11.0", "2026-11-23", "(results/h200/2026-11-23.json)"):
        assert wanted in text
    assert "\n```\npython -m perf.record --minutes 8\n```\n" in text
    assert "incomplete" not in text


def test_incomplete_record_is_called_so(home):
    put(home, record(*ROWS, complete=False))
    assert "the record is incomplete" in section(home)


def test_summary_of_the_tests_of_the_same_run_is_shown(home):
    tests = {"command": "pytest", "summary": "8 passed", "exit_code": 0}
    put(home, record(*ROWS, tests=tests))
    assert "The kernels' tests passed in that run: 8 passed." in section(home)
    put(home, record(*ROWS, tests=tests | {"exit_code": 1, "in_time": False}))
    assert "The kernels' tests were cut short in that run: 8 passed." in section(home)
    put(home, record(*ROWS, tests=tests | {"exit_code": 1, "in_time": True}))
    assert "Some of the kernels' tests failed in that run: 8 passed." in section(home)


def test_tlazy_that_was_wrong_is_shown_as_wrong(home):
    put(home, record(row(median=None, status="wrong"), row("eager")))
    assert "| forward | wrong | 100 µs | – |" in section(home)


def test_record_without_rows_says_that_nothing_was_measured(home):
    put(home, record(complete=False))
    assert "Nothing was measured in it." in section(home)


def test_each_device_shows_its_newest_record_whatever_the_files_are_called(home):
    put(home, record(row(problem="old"), started="2026-01-02T00:00:00Z"), "h200/2027-01-01.json")
    put(home, record(row(problem="new"), started="2026-01-02T01:00:00+00:00"))
    other = record(row(problem="other"))
    other["machine"]["device"] = "NVIDIA L4"
    put(home, other, "l4/2026-11-23T05.json")
    text = section(home)
    assert "| new," in text
    assert "| old," not in text
    assert text.index(f"### {H200}") < text.index("### NVIDIA L4") < text.index("| other,")


def test_files_of_other_tools_beside_the_records_are_left_alone(home):
    put(home, {"benchmarks": []}, "h200/0001_pytest-benchmark.json")
    assert section(home).strip() == EMPTY


def test_other_suites_than_the_goals_get_a_line_with_their_losses(home):
    lost = [row(suite="sweep"), row("eager", 80.0, suite="sweep")]
    put(home, record(*ROWS, *lost))
    text = section(home)
    assert text.count("| wav2vec2") == 1
    assert "- sweep, 1 problem: eager: faster in 0, slower in 1, geometric mean 0.80×" in text


def test_pictures_beside_the_record_are_shown_with_their_text(home):
    path = put(home, record(*ROWS))
    assert "![" not in section(home)
    (path.parent / "speedups.png").write_bytes(b"")
    assert f"![Speed-ups of tlazy on {H200}](results/h200/speedups.png)" in section(home)


def test_pictures_are_drawn_where_they_are_missing_or_older_than_the_record(home, drawn):
    path = put(home, record(*ROWS))
    put(home, cpu_record(*ROWS), "cpu/2026-11-23.json")
    assert run(home, "--check") == 1
    assert drawn == []
    assert run(home) == 0
    assert drawn == [path]
    files = [path.with_suffix(".html"), *(path.parent / name for name in readme.PICTURES)]
    for file in files:
        file.write_bytes(b"")
    assert run(home) == 0
    assert drawn == [path]
    os.utime(files[-1], ns=(0, path.stat().st_mtime_ns - 1))
    assert run(home) == 0
    assert drawn == [path, path]


@pytest.mark.usefixtures("draws")
def test_a_record_from_a_machine_without_matplotlib_gets_its_pictures(home):
    pytest.importorskip("matplotlib")
    put(home, record(*ROWS))
    text = section(home)
    for name in readme.PICTURES:
        assert f"(results/h200/{name})" in text
        assert (home / "results" / "h200" / name).stat().st_size > 1000


def test_names_cannot_break_table_or_section(home):
    name = f"a|b `c` <img>\n{END}\n| d |"
    put(home, record(row(problem=name), command=f"tlazy\n{END}\n```"))
    text = section(home)
    assert run(home, "--check") == 0
    [line] = [line for line in text.splitlines() if "a\\|b" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "<img>" not in text.replace("\\<img\\>", "")


def test_second_run_changes_nothing(home, capsys):
    put(home, record(*ROWS))
    assert run(home) == 0
    before = (home / "README.md").stat()
    assert run(home) == 0
    assert (home / "README.md").stat().st_mtime_ns == before.st_mtime_ns
    assert "up to date" in capsys.readouterr().out


def test_check_tells_and_writes_nothing(home, capsys):
    before = (home / "README.md").read_text()
    assert run(home, "--check") == 1
    assert "out of date" in capsys.readouterr().out
    assert (home / "README.md").read_text() == before
    assert run(home) == 0
    assert run(home, "--check") == 0


@pytest.mark.parametrize(
    "text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n", f"`{BEGIN}`{END}"]
)
@pytest.mark.parametrize("options", [[], ["--check"]])
def test_missing_markers_are_one_line_and_exit_code_2(home, capsys, text, options):
    (home / "README.md").write_text(text)
    assert run(home, *options) == 2
    assert (home / "README.md").read_text() == text
    error = capsys.readouterr().err
    assert BEGIN in error
    assert error.count("\n") == 1


def test_a_missing_marker_of_the_status_is_one_line_and_exit_code_2(home, capsys):
    text = (home / "README.md").read_text().replace(STATUS_END, "")
    (home / "README.md").write_text(text)
    assert run(home) == 2
    assert (home / "README.md").read_text() == text
    assert re.fullmatch(f"perf.readme: .*{STATUS_BEGIN}.*\n", capsys.readouterr().err)


def test_a_record_that_cannot_be_read_is_one_line_and_exit_code_2(home, capsys):
    before = (home / "README.md").read_text()
    put(home, record(row(median_us="fast")))
    assert run(home) == 2
    error = capsys.readouterr().err
    assert re.search(r"2026-11-23\.json: rows\[0\]\.median_us", error)
    assert error.count("\n") == 1
    assert (home / "README.md").read_text() == before


@pytest.mark.parametrize("missing", ["README.md", "results"])
def test_a_missing_file_or_folder_is_one_line_and_exit_code_2(home, capsys, missing):
    (home / missing).rename(home / "elsewhere")
    assert run(home) == 2
    error = capsys.readouterr().err
    assert f"cannot read {home / missing}: No such file" in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_line_and_exit_code_2(home, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perf.readme.replacing", full)
    before = (home / "README.md").read_text()
    assert run(home) == 2
    assert f"cannot write {home / 'README.md'}: No space left" in capsys.readouterr().err
    assert (home / "README.md").read_text() == before


def test_it_needs_nothing_of_what_measures():
    code = "import perf.readme, sys; print({'perf.record', 'tlazy.bench'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "perf.readme", "--results", "nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "kernels")},  # also where nothing is installed
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "perf.readme: cannot read nowhere: No such file or directory\n"
