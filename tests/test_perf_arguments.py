"""The commands in `perf` say in one line what is wrong with what they were asked to do."""

import importlib
import json

import pytest

from perf import record as recording
from tests.bench_record import record


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("record", ["--minutes", "x"], "argument --minutes: invalid float value: 'x'"),
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


def test_a_record_that_cannot_be_gone_on_with_leaves_no_folder(tmp_path, capsys):
    """Not even where it is found out in the process that looks at the device."""
    elsewhere = tmp_path / "record.json"
    elsewhere.write_text(json.dumps(record(command="of another machine")))
    arguments = ["--out", str(tmp_path / "new" / "deep"), "--resume", str(elsewhere)]
    assert recording.main(arguments) == 2
    assert list(tmp_path.iterdir()) == [elsewhere]
    assert capsys.readouterr().err.startswith("perf.record: records of different devices: ")
