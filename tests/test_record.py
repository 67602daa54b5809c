"""`python -m perf.record`: in budget, in any order of mishaps, with what was measured kept."""

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._inductor import config as inductor

from perf import record as recording
from perf import resuming, tasks, workers
from perf.outcomes import read
from tests.bench_record import row
from tlazy import report
from tlazy.bench import correctness, rows, suites
from tlazy.bench.machine import Ceilings
from tlazy.bench.operations import Linear
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record
from tlazy_kernels import launch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def environment(**changes):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
        **changes,
    }


@pytest.fixture
def path(tmp_path):
    """An empty record."""
    path = tmp_path / "2026-11-23.json"
    Record("python -m perf.record", CPU, Ceilings(), path).write()
    return path


HIDING = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, *rest)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
# What comes with torch, triton and pytest stays.
HIDDEN = {
    *("hypothesis", "matplotlib", "numpy", "pandas", "pytest_benchmark", "rich", "safetensors"),
    *("sklearn", "sktime", "typer", "click"),
}


def bare(folder, hidden):
    """The environment of a process, and of its children, where `hidden` are not installed."""
    (folder / "sitecustomize.py").write_text(HIDING.format(hidden=sorted(hidden)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = environment(PYTHONPATH=path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    return {name: value for name, value in env.items() if name != "TRITON_INTERPRET"}


def start(out, env):
    """The command as a process, without the kernels' tests."""
    code = (
        "import sys\nfrom perf import record\n"
        "record.kernel_tests.PATTERNS = ()\n"
        "sys.exit(record.main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "--out", str(out)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped_in_its_second_problem(out, env):
    """What the recorder prints after SIGTERM."""
    process = start(out, env)
    begun = 0
    for line in process.stdout:
        begun += line.startswith("goals: ") and line.endswith(", inputs\n")
        if begun == 2:
            break
    process.send_signal(signal.SIGTERM)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 143, complained
    return said


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU")
def test_what_was_measured_is_shown_where_rich_is_installed(tmp_path):
    said = stopped_in_its_second_problem(tmp_path / "out", environment())
    assert re.search(r"tlazy \(aten\) +│ +[\d,.]+ │", said)
    assert "incomplete: not everything was measured" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU")
def test_what_was_measured_is_kept_where_it_is_stopped_with_torch_and_triton_alone(tmp_path):
    said = stopped_in_its_second_problem(tmp_path / "out", bare(tmp_path, HIDDEN))
    assert "tlazy is" not in said
    (path,) = (tmp_path / "out" / "cpu").glob("*.json")
    content = report.load(path)
    assert not content["complete"]
    assert content["command"] == f"python -m perf.record --out {tmp_path / 'out'}"
    assert content["versions"]["numpy"] is None
    assert content["tests"]["summary"] == "nothing ran in 0 s"
    assert content["ceilings"]["bandwidth"] > 0
    done = [row for row in content["rows"] if row["status"] == "ok"]
    assert {row["peer"] for row in done} == {"tlazy", "eager"}
    first = next(iter(suites.SUITES["goals"]()))
    assert done[0]["problem"] == first.name
    if importlib.util.find_spec("jinja2"):
        assert path.with_suffix(".html").exists()


def test_networks_are_computed_with_torch_and_triton_alone(tmp_path):
    code = (
        "import perf, torch\n"  # finds the kernels where they are not installed
        "from tlazy.bench.calling import compute_once\n"
        "from tlazy.bench.networks import Network\n"
        "from tlazy.bench.problems import Problem\n"
        "problem = Problem('models', 'fcn', Network('fcn', 2, 1, 32), torch.float32)\n"
        "compute_once(problem, 'full', 'tlazy', torch.device('cpu'))\n"
    )
    env = bare(tmp_path, HIDDEN)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        ("record", 2, "perf.record: the kernels' tests need pytest: pip install pytest\n"),
        ("readme", 2, "perf.readme: cannot read nowhere: No such file or directory\n"),
    ],
)
def test_where_pytest_is_not_installed_a_command_works_or_says_so(module, code, said, tmp_path):
    option = ["--results", "nowhere"] if module == "readme" else ["--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", f"perf.{module}", *option],
        cwd=ROOT,
        env=bare(tmp_path, (HIDDEN - {"numpy"}) | {"pytest", "_pytest"}),  # torch warns
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr, done.stdout) == (code, said, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be positive and finite, got 0.0"),
        (["--minutes", "nan"], "--minutes must be positive and finite, got nan"),
        (["--out", "README.md"], "--out README.md: "),
        (["--resume", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert recording.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"perf.record: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


MADE_UP = """
import os, signal, time
import pytest, torch
lost = False
def synchronize():
    if lost: raise RuntimeError("CUDA error")
torch.cuda.is_available, torch.cuda.synchronize = lambda: True, synchronize
@pytest.fixture
def device(): return "cpu"
"""


@pytest.fixture
def write_tests(tmp_path, monkeypatch):
    """Makes a file of kernel tests, which use the fixture `device`, for a pytest of its own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # imported at every start

    def write(body, name="test_made_up.py"):
        (tmp_path / name).write_text(MADE_UP + body)
        return str(tmp_path / name)

    return write


def test_a_test_that_dies_hangs_or_loses_the_gpu_costs_itself_only(path, write_tests, monkeypatch):
    monkeypatch.setattr(recording.kernel_tests, "STUCK_SECONDS", 5.0)
    tests = write_tests(
        "def test_first(device): pass\n"
        "def test_wrong(device): assert 1 + 1 == 3\n"
        "def test_skipped(device): pytest.skip()\n"
        "def test_dies(device): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def test_without_a_device(): assert False\n"
        "def test_loses_it(device):\n"
        "    global lost\n"
        "    lost = True\n"
        "    synchronize()\n"
        "def test_behind_it(device): synchronize()\n"
        "def test_hangs(device): time.sleep(1000)\n"
        "def test_last(device): pass\n",
    )
    broken = write_tests("import nonsense\n", "test_broken.py")
    recording.run_tests(path, time.monotonic() + 200, [tests, broken])
    done = report.load(path)["tests"]
    assert re.fullmatch(
        r"3 passed, 5 failed, 1 skipped in \d+ s; failed: test_made_up.py::test_wrong, "
        r"test_made_up.py::test_dies, test_made_up.py::test_loses_it, \.\.\.",
        done["summary"],
    )
    ended = "hung or ended the process"
    assert [line.partition("::")[2] for line in done["failed"][tests]] == [
        "test_wrong: assert (1 + 1) == 3",
        f"test_dies: {ended}",
        "test_loses_it: RuntimeError: CUDA error",
        f"test_hangs: {ended}",
    ]
    assert done["failed"][broken][-1].endswith("ModuleNotFoundError: No module named 'nonsense'")
    assert (done["exit_code"], done["in_time"]) == (1, True)


def test_tests_that_take_too_long_are_stopped(path, tmp_path, write_tests, monkeypatch):
    slow = write_tests(
        "def test_slow(device):\n    open(__file__ + '.began', 'w').close()\n    time.sleep(100)\n"
    )
    began = Path(f"{slow}.began")
    # Once the test has begun, the deadline has come.
    clock = SimpleNamespace(
        monotonic=lambda: 12.0 * began.exists(), time=time.time, sleep=time.sleep
    )
    monkeypatch.setattr(recording.kernel_tests, "time", clock)
    recording.run_tests(path, 12.0, [slow])
    assert time.time() - began.stat().st_mtime < 8
    tests = report.load(path)["tests"]
    assert tests["summary"] == "nothing ran in 12 s; 1 file not finished"
    assert (tests["exit_code"], tests["in_time"]) == (1, False)


def test_what_became_of_tests_is_noted_as_it_comes_and_a_second_run_goes_on(path, write_tests):
    first = write_tests("def test_done(device): pass\n", "test_first.py")
    body = "def test_done(device): pass\ndef test_slow(device): time.sleep({})\n"
    second = write_tests(body.format(1000), "test_second.py")
    failing = write_tests("def test_wrong(device): assert 1 == 2\n", "test_failing.py")
    every, noted = [first, failing, second], []

    def note(summary):
        noted.append(summary)
        if summary["summary"].startswith("2 passed, 1 failed") and len(summary["finished"]) == 2:
            raise recording.Stopped(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.kernel_tests, "NOTE_SECONDS", 0.2)
        with pytest.raises(recording.Stopped):
            recording.kernel_tests.run(every, time.monotonic() + 200, note)
    stopped = noted[-1]
    named = "failed: test_failing.py::test_wrong"
    assert stopped["summary"].endswith(f" s; 1 file not finished; {named}")
    assert stopped["finished"] == {
        first: {"passed": 1, "failed": 0, "skipped": 0},
        failing: {"passed": 0, "failed": 1, "skipped": 0},
    }
    assert (stopped["exit_code"], stopped["in_time"]) == (1, False)
    record = Record.reopen(path)
    record.content["tests"] = stopped
    record.write()
    write_tests("assert False, 'it ran again'", "test_first.py")
    write_tests(body.format(0), "test_second.py")
    recording.run_tests(path, time.monotonic() + 200, every)
    done = report.load(path)["tests"]
    assert re.fullmatch(rf"3 passed, 1 failed in \d+ s; {named}", done["summary"])
    assert done["seconds"] > stopped["seconds"]
    assert list(done["failed"]) == [failing]
    assert [line.partition("::")[2] for line in done["failed"][failing]] == [
        "test_wrong: assert 1 == 2"
    ]
    assert list(done["finished"]) == every
    assert done["in_time"]


def test_a_process_that_the_driver_does_not_let_go_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(recording.kernel_tests, "END_SECONDS", 0.01)
    file = recording.kernel_tests._File("test_any.py", tmp_path / "outcomes.jsonl")
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(program) as file.process:
        with monkeypatch.context() as patch:
            patch.setattr(file.process, "kill", lambda: None)
            file.end()
        assert file.process.poll() is None
        file.process.kill()


def test_tests_end_with_the_process_that_wanted_to_know(tmp_path):
    outcomes = resuming.Outcomes(tmp_path / "outcomes.jsonl")
    outcomes.pytest_runtest_logstart("test_known")
    outcomes.parent = -1
    with pytest.raises(pytest.exit.Exception, match="is gone"):
        outcomes.pytest_runtest_logstart("test_other")
    assert list(read(tmp_path / "outcomes.jsonl")) == ["test_known"]


def test_every_test_that_runs_on_a_device_is_among_the_kernel_tests():
    files = recording.kernel_tests.files()
    assert len(files) == len(set(files))
    # What only a GPU can answer, and nothing has answered before, comes first.
    assert files[0] == "tests/tlazy_kernels/test_gpu.py"
    asks = re.compile(r"def \w+\([^)]*\bdevice: str|def \w+\([^)]*\bdevice\b[^)=]*\)[^\n]*:\n")
    of_devices = {
        str(path.relative_to(ROOT))
        for folder in ("tests/tlazy", "tests/tlazy_kernels")
        for path in (ROOT / folder).rglob("test_*.py")
        if asks.search(path.read_text()) or 'usefixtures("device")' in path.read_text()
    }
    assert len(of_devices) > 20
    assert of_devices - set(files) == set()


def three_problems(suite, device):
    operation = Linear(8, 8, 8, bias=False)  # on meta tensors, for one torch imports its compiler
    names = ("fine", "fatal", "after")
    return [Problem(suite, name, operation, torch.float32, ("forward",)) for name in names]


def fatal(run, path):
    """`run`, which ends the process at the second problem, as a lost device does."""

    def end_or_run(operation, *rest):
        if json.loads(Path(path).read_text())["rows"][-1]["problem"] == "fatal":
            os._exit(11)
        return run(operation, *rest)

    return end_or_run


def measure_with_a_fatal_kernel(path, device, names, deadline):
    """In a worker."""
    Linear.fused = fatal(Linear.fused, path)
    tasks.command.suite_problems = three_problems
    return tasks.measure_suites(path, device, names, deadline)


def measure_with_a_fatal_reference(path, device, names, deadline):
    """In a worker: whoever is to be compared."""
    correctness.expected = fatal(correctness.expected, path)
    tasks.command.suite_problems = three_problems
    return tasks.measure_suites(path, device, names, deadline)


def test_a_reference_that_ends_the_process_costs_its_own_rows_only(path, monkeypatch):
    monkeypatch.setattr(tasks, "measure_suites", measure_with_a_fatal_reference)
    assert recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    rows = report.load(path)["rows"]
    assert [row["problem"] for row in rows if row["status"] == "failed"] == ["fatal"] * 2
    assert {row["problem"] for row in rows if row["status"] == "ok"} == {"fine", "after"}


def test_a_kernel_that_ends_the_process_costs_its_own_row_only(path, monkeypatch):
    monkeypatch.setattr(tasks, "measure_suites", measure_with_a_fatal_kernel)
    assert recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    content = report.load(path)
    status = {(row["problem"], row["peer"]): row["status"] for row in content["rows"]}
    assert status == {
        (problem, peer): "failed" if (problem, peer) == ("fatal", "tlazy") else "ok"
        for problem in ("fine", "fatal", "after")
        for peer in ("tlazy", "eager")
    }


def pretend_to_compile(device, part, deadline):
    """In a worker: leave a file named after its process, and then hang."""
    Path(os.environ["NOTES"], f"{os.getpid()} {part}").touch()
    time.sleep(1000)


def test_kernels_are_compiled_beside_the_tests_on_a_gpu_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "compile_kernels", pretend_to_compile)
    monkeypatch.setattr(tasks, "COMPILERS", 2)
    monkeypatch.setenv("NOTES", str(tmp_path))
    with recording.compiling("cuda", float("inf")):
        end = time.monotonic() + 120
        while len(found := list(tmp_path.iterdir())) < tasks.COMPILERS:
            assert time.monotonic() < end
            time.sleep(0.1)
    started, parts = zip(*(path.name.split() for path in found), strict=True)
    assert sorted(parts) == ["0", "1"]
    for process in multiprocessing.active_children():  # those that were killed may be named yet
        process.join(30)
    assert not any(Path(f"/proc/{process}").exists() for process in started)
    with recording.compiling("cpu", float("inf")):
        assert len(list(tmp_path.iterdir())) == tasks.COMPILERS


def test_every_problem_is_computed_by_one_of_those_that_compile(monkeypatch):
    computed = []
    fused = Linear.fused

    def noting(operation, *tensors):
        computed.append((operation.m, tensors[0].requires_grad))
        if operation.m == 3:
            raise RuntimeError("out of memory")
        return fused(operation, *tensors)

    monkeypatch.setattr(Linear, "fused", noting)
    problems = [Problem("goals", f"{m}", Linear(m, 4, 4), torch.float32) for m in range(1, 8)]
    monkeypatch.setattr(tasks.command, "suite_problems", lambda suite, device: problems)
    for part in range(tasks.COMPILERS):
        tasks.compile_kernels("cpu", part, float("inf"))
    assert sorted(computed) == [(m, grad) for m in range(1, 8) for grad in (False, True)]
    assert tasks.compile_kernels("cpu", 0, time.monotonic() - 1) == workers.OUT_OF_TIME


def test_other_suites_are_compiled_for_tlazy_alone_which_launches_nothing_meanwhile(monkeypatch):
    done = []

    def noting(problem, which, peer, device):
        threads = torch.autograd.is_multithreading_enabled()
        assert not inductor.autotune_local_cache
        done.append((problem.suite, peer, launch._compiled_ahead.get() is not None, threads))

    linear = Linear(8, 4, 4)
    monkeypatch.setattr(
        tasks.command,
        "suite_problems",
        lambda suite, device: [
            Problem(suite, suite, linear, torch.float32, exact=suite != "goals")
        ],
    )
    monkeypatch.setattr(tasks, "SUITES", {"goals": None, "models": None})
    monkeypatch.setattr(tasks, "default_peers", lambda problem, device: ("tlazy", "compile"))
    monkeypatch.setattr(tasks, "compute_once", noting)
    for part in range(tasks.COMPILERS):
        tasks.compile_kernels("cpu", part, float("inf"))
    assert set(done) == {
        ("goals", "tlazy", True, False),
        ("goals", "compile", False, False),
        ("models", "tlazy", True, False),
    }
    assert torch.autograd.is_multithreading_enabled()
    assert launch._compiled_ahead.get() is None


def hang(path, device, names, deadline):
    time.sleep(1000)


def test_what_hangs_is_ended(path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "measure_suites", hang)
    monkeypatch.setattr(workers, "STUCK_SECONDS", 1.0)
    assert not recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    assert "hangs" in capsys.readouterr().err


def test_what_a_process_that_died_was_writing_does_not_stay(path, monkeypatch):
    def dies_writing(*_):
        path.with_name(f".{path.stem}-0123abcd.json").touch()
        return workers.LOST

    monkeypatch.setattr(workers, "run", dies_writing)
    assert not recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    assert list(path.parent.iterdir()) == [path]


def test_a_record_that_was_left_alone_before_a_process_began_does_not_make_it_hang(path):
    hour = 3600.0
    os.utime(path, (time.time() - hour,) * 2)
    left = workers._stuck_at(path, time.time()) - time.monotonic()
    assert left == pytest.approx(workers.STUCK_SECONDS, abs=5)
    left = workers._stuck_at(path, time.time() - 10) - time.monotonic()
    assert left == pytest.approx(workers.STUCK_SECONDS - 10, abs=5)
    path.touch()
    left = workers._stuck_at(path, time.time() - hour) - time.monotonic()
    assert left == pytest.approx(workers.STUCK_SECONDS, abs=5)


def try_forever(path, device, names, deadline):
    """In a worker: try the problems "crashed", once, and "slow", which is not done in time."""
    record = Record.reopen(Path(path))
    problem = "slow" if record.rows else "crashed"
    record.put(row("tlazy", None, problem=problem, note=rows.TRIED))
    if problem == "crashed":
        os._exit(11)
    Path(path).with_suffix(".slow").touch()
    time.sleep(1000)


def test_what_the_budget_or_somebody_ended_is_measured_later_and_what_crashed_is_not(
    path, monkeypatch
):
    monkeypatch.setattr(tasks, "measure_suites", try_forever)
    monkeypatch.setattr(workers, "OVERRUN_SECONDS", 0.0)
    began = path.with_suffix(".slow")
    # Once the second problem has begun, the deadline has come.
    clock = SimpleNamespace(
        monotonic=lambda: 12.0 * began.exists(), time=time.time, sleep=time.sleep
    )
    for module in (recording, workers):
        monkeypatch.setattr(module, "time", clock)
    assert not recording.run_suites(path, "cpu", ("goals",), 12.0)
    content = report.load(path)
    assert {row["problem"]: (row["status"], row["note"]) for row in content["rows"]} == {
        "crashed": ("failed", rows.TRIED),
        "slow": ("not measured", rows.UNFINISHED),
    }


def test_a_worker_ends_with_the_recording_process():
    code = "import time\nfrom perf import workers\nworkers._work(time.sleep, (1000,), parent=-1)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), timeout=100)
    assert done.returncode == workers.LOST


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """Begins to go on with a record; gives what the worker answers."""
    monkeypatch.setattr(tasks.machine, "measure_ceilings", lambda *args: Ceilings(1e9, {}))

    def begin(path):
        answer = tmp_path / "answer.json"
        tasks.begin(tmp_path / "elsewhere", "cpu", "another command", path, answer)
        return json.loads(answer.read_text())

    return begin


def test_a_record_is_gone_on_with_in_its_place(tmp_path, resumed):
    record = tasks.new_record(tmp_path / "out", CPU, "the first command")
    record.content["ceilings"]["bandwidth"] = 2e9
    record.put(row("tlazy", 5.0))
    before = record.path.read_text()
    assert resumed(record.path) == {"path": str(record.path)}
    assert record.path.read_text() == before
    record.content["ceilings"]["bandwidth"] = None
    record.write()
    assert resumed(record.path) == {"path": str(record.path)}
    assert report.load(record.path)["ceilings"]["bandwidth"] == 1e9
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_record_can_be_gone_on_with_before_any_test_has_run(tmp_path):
    path = tasks.new_record(tmp_path, CPU, "the first command").path
    recording.check_resumable(path)
    tests = report.load(path)["tests"]
    count = len(recording.kernel_tests.files())
    assert tests["summary"] == f"nothing ran in 0 s; {count} files not finished"
    assert (tests["exit_code"], tests["in_time"]) == (1, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": {"device": "Another"}}, "records of different devices: Another and "),
        ({"versions": {"torch": "1.0"}}, "was measured with {'python': "),
    ],
)
def test_a_record_of_another_device_or_of_other_versions_is_refused(
    changes, message, tmp_path, resumed
):
    record = tasks.new_record(tmp_path / "out", CPU, "the first command")
    for part, values in changes.items():
        record.content[part] |= values
    record.write()
    before = record.path.read_text()
    assert message in resumed(record.path)["error"]
    assert record.path.read_text() == before


def test_the_kernel_tests_need_only_torch_triton_and_pytest(tmp_path):
    # The interpreter, which stands for the GPU here, is written with numpy.
    env = bare(tmp_path, HIDDEN - {"numpy"})
    outcomes = tmp_path / "outcomes.jsonl"
    program, *options, _ = recording.kernel_tests.command("", outcomes)
    run, skipped = "test_infinity_times_zero_is_nan", "test_linear_agrees"  # which searches
    options += [*recording.kernel_tests.files(), "-k", f"{run} or {skipped}"]
    done = subprocess.run([program, *options], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    became = {
        re.split(r"::|\[", test)[1]: event["outcome"] for test, event in read(outcomes).items()
    }
    assert became == {run: "passed", skipped: "skipped"}
