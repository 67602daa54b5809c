"""`tlazy bench` on the command line: what it shows, what it refuses, and how it is stopped."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tlazy.nn.functional
from tlazy import cli, report
from tlazy.bench import command, measuring, record, timing
from tlazy.bench.lost import DeviceLost
from tlazy.errors import UserError
from tlazy.report.earlier import Changes
from tlazy_kernels import tuned

ROOT = Path(__file__).parents[2]
TINY = ("linear", "--shape", "32,16,24", "--device", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short samples on one thread: the machine has other work, and the times are not looked at."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(command.machine, "SECONDS_EACH", 0.001)
    monkeypatch.setitem(command.machine.MATMUL_SIZE, "cpu", 64)
    monkeypatch.setitem(command.machine.COPIED_BYTES, "cpu", 2**16)
    monkeypatch.setattr(command.machine, "last_level_cache", lambda device: 2**16)
    monkeypatch.setattr(timing, "MOST_SAMPLES", 5)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def refusal(arguments, capsys, folder):
    """The one line on stderr of a refused command, which changes nothing and measures nothing."""
    before = content(folder)
    capsys.readouterr()
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert content(folder) == before
    return printed.err


def test_peers_stand_side_by_side_and_the_first_line_says_what_is_measured(here, capsys):
    assert cli.main(["bench", *TINY, "--json", "record.json"]) == 0
    out, err = capsys.readouterr()
    progress = err.splitlines()
    first = out.splitlines()[0]
    if not torch.cuda.is_available():
        assert "there is no GPU here; tlazy runs ATen on a CPU, so both sides are ATen" in first
    assert re.search(
        r"linear 32,16,24 +│ tlazy \(aten\) .*\n.*float32 forward +│ eager \(aten\)", out
    )
    record = report.load("record.json")
    assert record["complete"]
    assert record["machine"]["kind"] == "cpu"
    assert record["machine"]["device"] in out
    assert progress == [
        f"measuring {n} of {2 * command.VISITS}: linear 32,16,24, {which}, {step}"
        for n, which in enumerate(["forward pass", "forward and backward pass"] * command.VISITS, 1)
        for step in ("inputs", "tlazy", "eager")
    ]
    assert {(row["peer"], row["pass"]) for row in record["rows"]} == {
        (peer, which) for peer in ("tlazy", "eager") for which in ("forward", "full")
    }


def test_options_choose_dtype_pass_activation_layout_and_peers(here, capsys):
    arguments = ["depthwise", "--shape", "2,8,50,4", "--dtype", "float16", "--pass", "backward"]
    arguments += ["--activation", "silu", "--layout", "nlc", "--peer", "eager-channels-last"]
    assert cli.main(["bench", *arguments, "--device", "cpu", "--json", "record.json"]) == 0
    rows = report.load("record.json")["rows"]
    assert [row["peer"] for row in rows] == ["tlazy", "eager-channels-last"]
    for row in rows:
        assert (row["status"], row["dtype"], row["pass"]) == ("ok", "float16", "backward")
        assert (row["activation"], row["layout"], row["op"]) == ("silu", "nlc", "depthwise")


def test_a_suite_can_be_limited_to_an_operation_and_in_time(here, capsys):
    arguments = ["conv_transpose1d", "--suite", "kernelbench", "--minutes", "5", "--device", "cpu"]
    assert cli.main(["bench", *arguments, "--json", "record.json"]) == 0
    named = r"measuring 1 of \d+: conv_transpose1d [\d,]+.* \(KernelBench 1/64\), forward pass, "
    assert re.match(named, capsys.readouterr().err)
    rows = report.load("record.json")["rows"]
    assert [row["problem"] for row in rows[::2]] == [f"KernelBench 1/{n}" for n in (64, 74, 79)]
    assert all(row["status"] == "ok" for row in rows)


def test_html_writes_the_report(here, capsys):
    pytest.importorskip("jinja2")
    assert cli.main(["bench", *TINY, "--pass", "forward", "--html", "report.html"]) == 0
    assert "linear 32,16,24" in (here / "report.html").read_text()


def test_compare_flags_a_slowed_kernel_with_exit_code_1(here, capsys, monkeypatch):
    forward = [*TINY, "--pass", "forward"]
    assert cli.main(["bench", *forward, "--json", "old.json"]) == 0
    fast = tlazy.nn.functional.linear

    def slowed(*tensors, **options):
        time.sleep(0.01)
        return fast(*tensors, **options)

    monkeypatch.setattr(tlazy.nn.functional, "linear", slowed)
    capsys.readouterr()
    html = bool(importlib.util.find_spec("jinja2"))
    files = ["--json", "new.json", *(["--html", "report.html"] * html)]
    assert cli.main(["bench", *forward, "--compare", "old.json", *files]) == 1
    out = capsys.readouterr().out
    worse = re.search(r"worse than in old.json: (.*, forward, tlazy: [\d.]+ times as long)", out)
    assert worse
    summary = re.search(r"\d of 2 measurements that old.json has too are worse", out)
    assert summary
    if html:
        page = (here / "report.html").read_text()
        assert "Compared with old.json" in page
        assert f"<li>{worse[1]}</li>" in page
        assert f"{summary[0]}." in page


def test_records_with_nothing_in_common_are_not_compared(here, capsys):
    assert cli.main(["bench", *TINY, "--pass", "forward", "--json", "old.json"]) == 0
    other = ["linear", "--shape", "32,16,8", "--device", "cpu", "--compare", "old.json"]
    said = refusal([*other, "--json", "new.json"], capsys, here)
    assert "--compare old.json has a time for none of the 4 measurements asked for" in said
    assert said.endswith(
        "it was made by: " + json.loads((here / "old.json").read_text())["command"] + "\n"
    )
    old = json.loads((here / "old.json").read_text())
    failed = [{**row, **measured_nothing(row)} for row in old["rows"]]
    (here / "old.json").write_text(json.dumps({**old, "rows": failed}))
    assert "has a time for none" in refusal([*TINY, "--compare", "old.json"], capsys, here)


def measured_nothing(row):
    times = ("median_us", "q20_us", "q80_us", "tflops", "gbps", "floor_fraction")
    return {"status": "failed", "samples": 0, **dict.fromkeys(times)}


def test_a_comparison_that_found_nothing_measured_is_no_success(here, capsys):
    assert cli.main(["bench", *TINY, "--json", "old.json"]) == 0
    capsys.readouterr()
    late = ["--minutes", "1e-9", "--compare", "old.json", "--json", "new.json"]
    assert cli.main(["bench", *TINY, *late]) == 2
    said = capsys.readouterr().err
    assert "nothing was compared: nothing that has a time in old.json was measured" in said
    assert report.load("new.json")["rows"] == []


def test_a_wrong_kernel_is_refused_in_the_table(here, capsys, monkeypatch):
    stock = torch.nn.functional.linear
    wrong = lambda x, w, b, activation: stock(x, w, b) + 0.1  # noqa: E731
    monkeypatch.setattr(tlazy.nn.functional, "linear", wrong)
    assert cli.main(["bench", *TINY, "--pass", "forward"]) == 0
    assert re.search(r"tlazy \(aten\) +│ +wrong │ +relative error", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool"], "OP must be one of linear, conv1d, depthwise, conv_transpose1d, model"),
        (["--suite", "all"], "--suite must be one of goals, kernelbench, models, sweep, got 'all'"),
        (["model", "--suite", "sweep"], "the suite sweep has no problem of model"),
        (["--dtype", "int8"], "--dtype must be one of float32, float16"),
        (["--pass", "sideways"], "--pass must be one of forward, backward, full"),
        (["--activation", "selu"], "--activation must be one of none, relu"),
        (["model", "--activation", "relu"], "--activation is not for model"),
        (["linear", "--layout", "nlc"], "--layout is not for linear"),
        (["--layout", "lcn"], "--layout must be one of ncl, nlc"),
        (["--peer", "eager,jax"], "--peer must be of tlazy, eager, .*, got 'jax'"),
        (["--peer", ""], "--peer must be of tlazy"),
        (["--device", "tpu"], "--device must be one of auto, cpu, cuda"),
        (["--shape", "4,5,6"], "--shape needs an operation"),
        ([*TINY, "--suite", "goals"], "--suite and --shape exclude each other"),
        (["linear", "--shape", "4,5"], "--shape 4,5: missing a required argument: 'k'"),
        (["linear", "--shape", "4,-5,6"], "n must be a whole number of at least 1, got -5"),
        (["conv1d", "--shape", "1,1,5,1,9"], "--shape 1,1,5,1,9: .*(greater than|too small)"),
        (["linear", "--shape", "900000,900000,900000"], "--shape needs about .* GiB"),
        (["model", "--shape", "fcn,2000,1,100000"], "--shape needs about 2,... GiB"),
        (["model", "--shape", "fcn,2000,1,100000", "--pass", "forward"], "needs about 38. GiB"),
        (["linear", "--shape", f"{10**30},5,6"], f"--shape {10**30},5,6: "),
        (["conv1d", "--shape", f"1,1,{2**63 - 1},1,1"], "--shape 1,1,9223372036854775807,1,1: "),
        (["linear", "--shape", "nan,5,6"], "m must be a whole number, got nan"),
        (["linear", "--shape", "1e3,5,6"], "m must be a whole number, got 1e3"),
        (["--json", "/dev/null"], "--json /dev/null is not a regular file"),
        (["--html", "/dev/full"], "--html /dev/full is not a regular file"),
        (["--json", "/proc/record.json"], "--json /proc/record.json: cannot write to the folder"),
        (["--html", "/proc/report.html"], "--html /proc/report.html: cannot write to the folder"),
        (["--compare", "/tmp"], "cannot read /tmp: Is a directory"),
        (["--minutes", "inf"], "--minutes must be positive"),
        (["--minutes", "0"], "--minutes must be positive"),
        (["--minutes", "nan"], "--minutes must be positive"),
        (["--json", "."], "--json . is a folder"),
        (["--json", "none/record.json"], "--json none/record.json: there is no folder none"),
        (["--html", "none/report.html"], "--html none/report.html: there is no folder none"),
        (["--json", "same", "--html", "same"], "--json and --html are the same file"),
        (["--compare", "none.json"], "cannot read none.json"),
        (["--compare", "bad.json"], "bad.json"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(arguments, message, here, capsys):
    (here / "bad.json").write_text('{"format": 1}')
    assert re.search(message, refusal([*arguments], capsys, here))


TABLE = '{"device": "x", "entries": [{"key": "k", "config": null}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "tlazy: TLAZY_TILES names tiles.json: No such file or directory\n"),
        ("[]", "tiles.json is not a table of tiles as tlazy bench --tune writes: "),
        (TABLE.replace("null", '{"row": 1}'), "tiles.json is not a table of tiles "),
    ],
)
def test_a_table_of_tiles_that_cannot_be_read_is_refused(text, message, here, capsys, monkeypatch):
    (here / "good.json").write_text(TABLE)
    if text is not None:
        (here / "tiles.json").write_text(text)
    monkeypatch.setenv(tuned.VARIABLE, "good.json:tiles.json")
    assert message in refusal([*TINY], capsys, here)
    monkeypatch.setenv(tuned.VARIABLE, "good.json")
    assert command.plan(command.Options(op="linear")).problems


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune"], "--tune searches tiles on a GPU, and torch sees none here"),
        (["--device", "cuda"], "--device cuda: .*; use --device cpu or auto"),
        (["--peer", "cudnn-benchmark"], "--peer cudnn-benchmark needs a GPU"),
        (["--peer", "eager,fla"], "--peer fla needs a GPU"),
    ],
)
def test_a_gpu_option_without_a_gpu_is_refused_in_one_line(arguments, message, here, capsys):
    assert re.search(message, refusal(arguments, capsys, here))


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ("--pass", {"passes": "forward"}),
        ("--peer", {"peer": "eager"}),
        ("--html", {"html": Path("report.html")}),
        ("--compare", {"compare": Path("old.json")}),
    ],
)
def test_what_tuning_does_not_heed_is_refused(option, asked, here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"--tune .*: it takes --json, not {option}$"):
        command.plan(command.Options(op="linear", tune=True, **asked))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused_in_one_line(here, capsys):
    here.chmod(0o500)
    try:
        assert "cannot write" in refusal([*TINY, "--json", "record.json"], capsys, here)
    finally:
        here.chmod(0o700)


def test_a_record_is_not_compared_with_the_file_that_replaces_it(here, capsys):
    assert cli.main(["bench", *TINY, "--pass", "forward", "--json", "record.json"]) == 0
    arguments = [*TINY, "--json", "record.json", "--compare", "record.json"]
    assert "is the file to compare with" in refusal(arguments, capsys, here)
    other = json.loads((here / "record.json").read_text())
    other["machine"]["device"] = "NVIDIA H200"
    (here / "other.json").write_text(json.dumps(other))
    arguments = [*TINY, "--compare", "other.json"]
    assert "records of different devices" in refusal(arguments, capsys, here)


def test_html_without_jinja2_is_refused_before_measuring(here, capsys, monkeypatch):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name)
    )
    assert "pip install 'tlazy[plot]'" in refusal([*TINY, "--html", "report.html"], capsys, here)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_show_and_keep_what_was_measured(number, here, capsys, monkeypatch):
    prepare = timing.HostTimer.prepare
    seen = []

    def interrupted(timer, calls):
        seen.append(calls)
        if len(seen) == 5:  # two ceilings, then both peers' forward pass
            signal.raise_signal(number)
        return prepare(timer, calls)

    monkeypatch.setattr(timing.HostTimer, "prepare", interrupted)
    html = bool(importlib.util.find_spec("jinja2"))
    files = ["--json", "record.json", *(["--html", "report.html"] * html)]
    assert cli.main(["bench", *TINY, *files]) == 128 + number
    out = capsys.readouterr().out
    assert "incomplete: not everything was measured" in out
    assert re.search(r"tlazy \(aten\) +│ +[\d,.]+ │", out)
    assert re.search(r"tlazy \(aten\) +│ +not measured │ +the run ended first │", out)
    record = report.load("record.json")
    assert not record["complete"]
    assert [row["status"] for row in record["rows"]] == ["ok", "ok", "not measured", "not measured"]
    assert sorted(os.listdir(here)) == files[1::2]


def test_a_disk_that_fills_up_meanwhile_loses_no_table(here, capsys, monkeypatch):
    replacing = record.replacing
    left = iter(range(12))

    def filling(path):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        return replacing(path)

    monkeypatch.setattr(record, "replacing", filling)
    assert cli.main(["bench", *TINY, "--json", "record.json", "--html", "report.html"]) == 2
    printed = capsys.readouterr()
    assert "tlazy: cannot write record.json: No space left on device" in printed.err
    assert re.search(r"linear 32,16,24 +│ tlazy \(aten\) +│ +[\d,.]+ │", printed.out)
    assert "incomplete: not everything was measured" in printed.out
    assert (here / "report.html").exists() == bool(importlib.util.find_spec("jinja2"))


def test_a_lost_device_ends_with_exit_code_1_after_the_table(here, capsys, monkeypatch):
    def lost(problems, record, settings):
        measuring.measure(problems, record, settings)
        raise DeviceLost("the GPU fails after tlazy, linear: CUDA error")

    forward = [*TINY, "--pass", "forward"]
    assert cli.main(["bench", *forward, "--json", "old.json"]) == 0
    monkeypatch.setattr(command, "measure", lost)
    monkeypatch.setattr(command, "changes", lambda *_: Changes("old.json", 2, []))
    for compare in ([], ["--compare", "old.json"]):
        capsys.readouterr()
        assert cli.main(["bench", *forward, "--json", "record.json", *compare]) == 1
        printed = capsys.readouterr()
        assert "tlazy bench: the GPU fails after tlazy, linear: CUDA error" in printed.err
        assert "incomplete: not everything was measured" in printed.out
        assert not report.load("record.json")["complete"]


def test_a_killed_run_leaves_a_valid_file_with_what_was_measured(here):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tlazy", "bench", "linear", "--device", "cpu", "--json", "r.json"],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("measuring 2 of "):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    record = report.load(here / "r.json")
    assert not record["complete"]
    assert {row["peer"] for row in record["rows"] if row["status"] == "ok"} == {"tlazy", "eager"}
