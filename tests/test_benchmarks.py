"""`pytest perf`: its records are where pytest-benchmark looks, and can be compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "perf" / "results" / "pytest-benchmark"


def pytest_perf(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # pytest-benchmark measures nothing in a worker
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--benchmark-warmup=off"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_run_is_compared_with_the_recorded_one():
    chosen = ["perf/test_calls.py", "-k", "test_call and linear and forward"]
    done = pytest_perf(*chosen, "--benchmark-compare", "--benchmark-group-by=group")
    newest = max(RECORDS.rglob("[0-9]*.json"), key=lambda path: path.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Comparing against benchmarks from: {newest.name}" in done.stderr
    for peer in ("torch.nn", "tlazy.nn"):
        assert f"test_call[{peer}-forward-linear] ({newest.name[:4]}" in done.stdout
        assert f"test_call[{peer}-forward-linear] (NOW)" in done.stdout


def test_what_became_slower_than_recorded_fails_when_asked(tmp_path):
    record = json.loads(max(RECORDS.rglob("[0-9]*.json"), key=lambda path: path.name).read_text())
    for benchmark in record["benchmarks"]:
        benchmark["stats"]["min"] /= 100
    fast = tmp_path / "0001_fast.json"
    fast.write_text(json.dumps(record))
    chosen = ["perf/test_calls.py", "-k", "test_call and linear and forward"]
    done = pytest_perf(*chosen, f"--benchmark-compare={fast}", "--benchmark-compare-fail=min:5%")
    assert done.returncode != 0
    assert "Performance has regressed" in done.stderr + done.stdout


def test_records_say_what_was_measured_and_not_whose_machine_it_was():
    for path in RECORDS.rglob("*.json"):
        record = json.loads(path.read_text())
        assert "node" not in record["machine_info"]
        assert record["machine_info"]["cpu"]["brand_raw"]
        groups = {benchmark["group"] for benchmark in record["benchmarks"]}
        for word in ("linear", "conv1d", "trace", "compiling", "construct", "torch.compile"):
            assert any(word in group for group in groups), word
