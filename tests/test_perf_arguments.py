"""The commands in `perf` say in one line what is wrong with what they were asked to do."""

import importlib
import json

import pytest

from perf import agreement, kernel_tests
from perf import record as recording
from tests.bench_record import record

UNFINISHED = kernel_tests.nothing_yet(["test_made_up.py"])


@pytest.mark.parametrize(
    ("command", "arguments"), [(recording, ["--out", "results"]), (agreement, [])]
)
def test_a_table_of_tiles_that_is_not_there_is_one_line(
    command, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLAZY_TILES", "nowhere.json")
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.endswith(": TLAZY_TILES names nowhere.json: No such file or directory\n")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("record", ["--minutes", "x"], "argument --minutes: invalid float value: 'x'"),
        (
            "record",
            ["--out", "here", "--resume", "record.json"],
            "argument --resume: not allowed with argument --out",
        ),
        ("record", ["--nonsense"], "unrecognized arguments: --nonsense"),
        ("agreement", ["--suite", "nope"], "argument --suite: invalid choice: 'nope' "),
        ("readme", ["more"], "unrecognized arguments: more"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(module, arguments, message, capsys):
    assert importlib.import_module(f"perf.{module}").main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"perf.{module}: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(tests=UNFINISHED), "records of different devices: "),
        (record(), "is no record of python -m perf.record: tlazy bench --suite goals made it"),
    ],
)
def test_a_record_that_cannot_be_gone_on_with_stays_as_it_is(content, message, tmp_path, capsys):
    """Also where it is found out in the process that looks at the device."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    assert recording.main(["--resume", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("perf.record: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text()) == content
