import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tlazy
from tlazy import cli, models

ROOT = Path(__file__).parents[2]
FAST = ("--model", "mlp", "--epochs", "2", "--device", "cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def arrays(length=12):
    generator = np.random.default_rng(0)
    y = np.arange(14) % 2
    x = generator.normal(size=(14, 1, length)) + y[:, None, None]
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


def with_nan():
    x = arrays()["x_train"]
    x[3, 0, 7] = np.nan
    return x


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a good data set beside it."""
    np.savez(tmp_path / "good.npz", **arrays())
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(here, capsys, no_pictures):
    """A finished run in the folder `run`, but for its pictures."""
    assert cli.main(["train", "--data", "../good.npz", *FAST, "--out", "run"]) == 0
    capsys.readouterr()
    return here / "run"


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_refused(arguments, message, capsys, folder):
    """Exit code 2, one line on stderr that says `message`, and nothing touched in `folder`."""
    before = content(folder)
    capsys.readouterr()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.endswith("\n")
    assert error.startswith("tlazy")
    assert re.search(message, error), error
    assert content(folder) == before


BAD_DATA = {
    "NaN": ({"x_train": with_nan()}, "training part: series 3, channel 0, step 7 is NaN"),
    "one class only": ({"y_train": np.zeros(14)}, "one class only"),
    "a label unseen in training": ({"y_test": np.arange(14)}, "series 2 .* labelled '2'"),
    "labels that do not fit": ({"y_train": np.zeros(3)}, "shape"),
    "another length for testing": (
        {"x_test": arrays(11)["x_train"]},
        "1 channel of 12 steps, test series 1 channel of 11 steps",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_in_one_line_and_nothing_is_written(case, here, capsys):
    changes, message = BAD_DATA[case]
    np.savez(here.parent / "bad.npz", **{**arrays(), **changes})
    assert_refused(["train", "--data", "../bad.npz", *FAST], message, capsys, here)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.npz", "no zip archive", "malformed"),
        ("bad.csv", "1,0.5,0.5\n2,0.5,x\n", "line 2, column 3: 'x' is not a number"),
        ("bad.csv", "1,0.5,0.5\n2,0.5,nan\n1,1,1\n2,2,2\n", "step 1 is NaN"),
        ("bad.tsv", "1\t0.5\t0.5\n2\t0.5\n1\t1\t1\n2\t2\t2\n", "unequal lengths"),
        ("bad.ts", "no header\n", "malformed"),
        ("bad.arff", "no header\n", "malformed"),
        ("bad.txt", "1 2 3\n", "unknown kind of file"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(name, text, message, here, capsys):
    pytest.importorskip("sktime", reason="reads .ts and .arff, and brings scikit-learn")
    (here.parent / name).write_text(text)
    assert_refused(["train", "--data", f"../{name}", *FAST], message, capsys, here)


def test_a_published_set_of_unequal_lengths_is_refused_in_one_line(here, capsys):
    pytest.importorskip("sktime", reason="the set is in its wheel")
    assert_refused(["train", "--data", "JapaneseVowels"], "unequal lengths", capsys, here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "../none.npz"], r"no such file: \.\./none\.npz"),
        (["--data", ".."], "not a file"),
        (["--data", "."], "is a folder, not a file"),
        (["--data", "/"], "is a folder, not a file"),
        (["--data", ""], "--data is empty"),
        (["--data", "x" * 300], "File name too long 'x{30}…x{29}'"),
        (["--model", "lstm"], "--model must be one of fcn, resnet, inception, mlp, got 'lstm'"),
        (["--device", "tpu"], "--device must be one of auto, cpu, cuda"),
        (["--dtype", "int8"], "--dtype must be one of float32, bfloat16, float64"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "many"], "--epochs"),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["--lr", "0"], "--lr must be positive"),
        (["--epochs", "9" * 20], "--epochs must be from 1 to"),
        (["--epochs", "9" * 5000], "--epochs"),
        (["--batch-size", "9" * 23], "--batch-size must be from 1 to"),
        (["--seed", "9" * 20], "--seed must be from 0 to"),
        (["--lr", "1e38"], r"--lr must be at most 1e\+30"),
        (["--model", "x" * 5000], "--model must be one of .*…"),
        (["--out", ""], "'--out': it is empty"),
        (["--out", "x" * 300], "cannot write to x+: File name too long"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--sed", "1"], "--sed"),
        (["--out", "../good.npz"], "not a folder"),
        (["--out", "../good.npz/run"], "cannot write"),
        (["--resume"], r"runs/good-fcn-0 holds no run"),
        (["--resume", "--out", "nowhere"], "nowhere holds no run"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(arguments, message, here, capsys):
    if "--data" not in arguments:
        arguments = ["--data", "../good.npz", *arguments]
    assert_refused(["train", *arguments], message, capsys, here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused_in_one_line(here, capsys):
    here.chmod(0o500)
    try:
        assert_refused(["train", "--data", "../good.npz", *FAST], "cannot write", capsys, here)
    finally:
        here.chmod(0o700)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_in_one_line(here, run, capsys):
    cuda = ["--device", "cuda"]
    refused = "--device cuda: .*; use --device cpu or auto"
    assert_refused(["train", "--data", "../good.npz", *cuda], refused, capsys, here)
    assert_refused(["predict", "run", "../good.npz", *cuda], refused, capsys, here)


def test_a_set_from_the_wheel_without_sktime_names_the_extra(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sktime", None)
    assert_refused(["train"], r"pip install 'tlazy\[data\]'", capsys, here)


def test_without_matplotlib_training_says_what_is_missing_and_goes_on(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "tlazy.plot", raising=False)
    monkeypatch.delattr(tlazy, "plot", raising=False)
    assert cli.main(["train", "--data", "../good.npz", *FAST, "--out", "run"]) == 0
    assert "pip install 'tlazy[plot]'" in capsys.readouterr().out
    assert {"model.safetensors", "metrics.jsonl"} < set(content(here / "run"))


def test_a_model_too_short_for_its_kernel_is_refused_in_one_line(here, capsys, monkeypatch):
    def valid(classes):
        conv = tlazy.nn.LazyConv1d(4, 20)
        return tlazy.nn.Sequential(conv, torch.nn.Flatten(), tlazy.nn.LazyLinear(classes))

    monkeypatch.setitem(models.MODELS, "valid", valid)
    arguments = ["--data", "../good.npz", "--model", "valid"]
    refused = "model valid cannot take 14 series of 1 channel of 12 steps"
    assert_refused(["train", *arguments], refused, capsys, here)


def test_a_last_batch_of_one_series_of_one_step_is_refused_before_training(here, capsys):
    np.savez(here.parent / "short.npz", **arrays(1))
    arguments = ["--data", "../short.npz", "--model", "fcn", "--batch-size", "13"]
    assert_refused(
        ["train", *arguments], "cannot take 1 series of 1 channel of 1 step", capsys, here
    )


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(here, run, capsys):
    arguments = ["train", "--data", "../good.npz", *FAST, "--out", "run"]
    assert_refused(arguments, "already holds a run", capsys, here)
    (run / "config.json").unlink()
    assert_refused(arguments, "already holds a run", capsys, here)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "9"),
        ("--lr", "0.5"),
        ("--seed", "1"),
        ("--model", "fcn"),
        ("--batch-size", "3"),
        ("--dtype", "float64"),
        ("--data", "../other.npz"),
    ],
)
def test_resume_with_an_option_that_is_not_the_runs_is_refused(option, value, run, here, capsys):
    np.savez(here.parent / "other.npz", **arrays(9))
    refused = f"--resume: {option} {re.escape(value)} differs from the run's"
    assert_refused(["train", "--out", "run", "--resume", option, value], refused, capsys, here)


def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_checkpoint(
    run, here, capsys, full_disk
):
    resume = ["train", "--out", "run", "--resume"]
    with full_disk():
        assert_refused(resume, "cannot write to run: File too large", capsys, here)
    assert cli.main(resume) == 0


def test_resume_after_the_data_has_changed_is_refused(run, here, capsys):
    np.savez(here.parent / "good.npz", **arrays(9))
    assert_refused(["train", "--out", "run", "--resume"], "has changed", capsys, here)


def test_resume_with_the_runs_own_options_is_accepted(run, capsys):
    arguments = ["--data", "../good.npz", *FAST, "--out", "run", "--resume"]
    assert cli.main(["train", *arguments]) == 0
    assert "resuming after epoch 2 of 2" in capsys.readouterr().out


DAMAGE = {
    "no JSON": ("config.json", b"{", "config.json is damaged"),
    "a missing entry": ("config.json", b"{}", "'options' is missing"),
    "no object": ("config.json", b"[]", "must be of type Config"),
    "an empty config": ("config.json", b"", "config.json is damaged: it is empty"),
    "endless nesting": ("config.json", b"[" * 100000, "config.json is damaged"),
    "an empty checkpoint": ("checkpoint.pt", b"", "checkpoint.pt is damaged: it is empty"),
    "a truncated checkpoint": ("checkpoint.pt", b"PK", "checkpoint.pt is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_resuming_a_damaged_run_is_refused_in_one_line(case, run, here, capsys):
    name, damage, message = DAMAGE[case]
    (run / name).write_bytes(damage)
    assert_refused(["train", "--out", "run", "--resume"], message, capsys, here)


WRONG_ENTRIES = [
    ("threads", -2, "'threads' must be 1 to"),
    ("threads", 10**9, "'threads' must be 1 to"),
    ("classes", ["0"], "'classes' must be two or more"),
    ("classes", ["0", "0"], "'classes' must be two or more, all different"),
    ("classes", ["0", "2" * 5000], "'classes'.*at most 200"),
    ("classes", [0, 1], "'classes' must be of type str, got '0'"),
    ("length", "x", "'length' must be of type int, got 'x'"),
    ("length", True, "'length' must be of type int"),
    ("channels", 0, "'channels' must be positive"),
    ("channels", 2, "'normalization' is not for 2 channels"),
    ("normalization", {"mean": [0], "std": [0]}, "'normalization' must be finite"),
    ("normalization", {"mean": [0]}, "'normalization.std' is missing"),
    ("options", {}, "'options.data' is missing"),
    ("name", None, "'name' must be of type str"),
    ("more", 1, "'more' is unknown"),
    ("versions", {"torch": 2}, "'versions' must be of type str"),
]


def test_a_wrong_entry_of_the_configuration_is_named(run, here, capsys):
    config = json.loads((run / "config.json").read_text())
    for key, value, message in WRONG_ENTRIES:
        (run / "config.json").write_text(json.dumps({**config, key: value}))
        for arguments in (["train", "--out", "run", "--resume"], ["predict", "run", "../good.npz"]):
            assert_refused(arguments, f"config.json is damaged: {message}", capsys, here)


CONTRADICTIONS = {"classes": ["0", "2"], "length": 13, "test_series": 3}


def test_a_configuration_that_is_not_of_its_data_is_named(run, here, capsys):
    config = json.loads((run / "config.json").read_text())
    for key, value in CONTRADICTIONS.items():
        (run / "config.json").write_text(json.dumps({**config, key: value}))
        refused = f"config.json is damaged: '{key}' is .*, .*good.npz has"
        assert_refused(["train", "--out", "run", "--resume"], refused, capsys, here)


def test_predicting_with_a_damaged_run_is_refused_in_one_line(run, here, capsys):
    weights = run / "model.safetensors"
    good = weights.read_bytes()
    predict = ["predict", "run", "../good.npz"]
    weights.write_bytes(good[:100])
    assert_refused(predict, "model.safetensors is damaged", capsys, here)
    config = json.loads((run / "config.json").read_text())
    config["options"]["model"] = "fcn"
    weights.write_bytes(good)
    (run / "config.json").write_text(json.dumps(config))
    assert_refused(predict, "of another model", capsys, here)
    weights.unlink()
    assert_refused(predict, "holds no trained model", capsys, here)
    assert_refused(["predict", "nowhere", "../good.npz"], "holds no run", capsys, here)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3, 12)), "3 channels of 12 steps.* 1 channel of 12 steps"),
        (np.zeros((2, 1, 5)), "1 channel of 5 steps.* 1 channel of 12 steps"),
        (np.full((2, 1, 12), np.nan), "series 0, channel 0, step 0 is NaN"),
        (np.zeros((0, 1, 12)), "no series"),
    ],
)
def test_series_that_do_not_fit_the_run_are_not_predicted(x, message, run, here, capsys):
    np.savez(here.parent / "new.npz", x=x)
    arguments = ["predict", "run", "../new.npz", "--out", "predicted.csv"]
    assert_refused(arguments, message, capsys, here)


def test_predict_refuses_to_replace_its_input_and_to_write_where_it_cannot(run, here, capsys):
    same = ["predict", "run", "../good.npz", "--out", "../good.npz"]
    assert_refused(same, "is the file to read", capsys, here.parent)
    for name, why in (
        ("none/predicted.csv", "there is no folder none"),
        ("run/config.json", "give another --out"),
        ("run", "give another --out"),
        ("x" * 300, "File name too long"),
        ("/proc/predicted.csv", "cannot write to the folder /proc"),  # where root has permission
    ):
        before = content(here)
        assert cli.main(["predict", "run", "../good.npz", "--out", name]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(f"tlazy: .*{why}.*\n", printed.err)
        assert printed.out == ""
        assert content(here) == before


def test_labels_that_the_network_never_saw_are_not_scored(run, here, capsys):
    np.savez(here.parent / "new.npz", x=arrays()["x_test"], y=np.arange(14) + 1)
    predict = ["predict", "run", "../new.npz"]
    refused = r"new\.npz: series 1 .* labelled '2', which the network never saw.* 0, 1$"
    assert_refused(predict, refused, capsys, here)
    np.savez(here.parent / "new.npz", x=arrays()["x_test"], y=["?", *"01" * 6, "1"])
    assert_refused(predict, "series 0 .* has no label", capsys, here)


def test_a_class_may_be_named_in_markup_or_mathematics(here, capsys):
    names = np.array(["[/bold]", "$x_{$"])
    labels = {key: names[arrays()[key]] for key in ("y_train", "y_test")}
    np.savez(here.parent / "odd.npz", **{**arrays(), **labels})
    assert cli.main(["train", "--data", "../odd.npz", *FAST, "--out", "run"]) == 0
    assert cli.main(["train", "--out", "run", "--resume"]) == 0
    assert cli.main(["predict", "run", "../odd.npz"]) == 0
    printed = capsys.readouterr()
    assert "│ [/bold]" in printed.out
    assert printed.err == ""


def test_predict_writes_class_and_probabilities_of_every_series(run, here, capsys):
    assert cli.main(["predict", "run", "../good.npz", "--out", "predicted.csv"]) == 0
    printed = capsys.readouterr().out
    with (here / "predicted.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = sum(row["predicted"] == row["label"] for row in rows) / 14
    assert f"accuracy {hits:.2%} on 14 series" in printed
    for row in rows:
        probabilities = {"0": float(row["p(0)"]), "1": float(row["p(1)"])}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(probabilities, key=probabilities.get)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert metrics[-1]["test_accuracy"] == pytest.approx(hits)


def test_predict_takes_series_without_labels(run, here, capsys):
    x = arrays()["x_test"][:, 0]
    np.savetxt(here / "new.csv", x, delimiter=",")
    assert cli.main(["predict", "run", "new.csv"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" not in printed
    assert len(re.findall(r"│ +\d+ +│", printed)) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "extra"], "extra"),
        (["nonsense"], "nonsense"),
        (["predict"], "RUN_DIR"),
        (["trace", "lstm", "--shape", "8,3,150"], "must be one of fcn"),
        (["trace", "fcn", "--shape", "8,3"], "three numbers such as 8,3,150, got '8,3'"),
        (["trace", "fcn", "--shape", "8,0,150"], "three positive numbers"),
        (["trace", "fcn"], "--shape"),
        (["trace", "fcn", "--shape", "8,3,150", "--classes", "0"], "--classes must be"),
        (["trace", "fcn", "--shape", "8,3,150", "--classes", "9" * 20], "--classes must be from 1"),
        (["trace", "fcn", "--shape", "8,3," + "9" * 20], "--shape must be from 1 to"),
        (["trace", "fcn", "--shape", "8,3," + "9" * 5000], "--shape must be three numbers .*…"),
        (["predict", "run", "file", "--device", "tpu"], "--device must be one of"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, here, capsys):
    assert_refused(arguments, message, capsys, here)


def test_trace_prints_the_table_that_the_library_gives(capsys):
    assert cli.main(["trace", "fcn", "--shape", "8,3,150", "--classes", "5"]) == 0
    table = str(tlazy.trace(models.fcn(5), tlazy.Spec(8, 3, 150)))
    assert capsys.readouterr().out == table + "\n"


def test_the_version_and_the_formats_of_files_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tlazy {tlazy.__version__}\n"
    for command in ("train", "predict"):
        assert cli.main([command, "--help"]) == 0
        printed = capsys.readouterr().out
        for text in ("label first", "x_train, y_train, x_test, y_test", "SET_TRAIN", "30%"):
            assert text in printed


def test_an_interrupt_while_packages_load_ends_with_130(monkeypatch, capsys):
    class Loading:
        def find_spec(self, name, path, target=None):
            if name == "tlazy.train":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tlazy.train", raising=False)
    monkeypatch.delattr(tlazy, "train", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Loading(), *sys.meta_path])
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err.count("\n") <= 1


def test_info_names_versions_devices_and_backends(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for text in (tlazy.__version__, torch.__version__, np.__version__, "cpu: "):
        assert text in printed
    assert f"float32   {tlazy.backend_of(torch.empty(1))}" in printed


def start_training(here, *arguments):
    """`tlazy train` as a process of its own, after its first epoch."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tlazy", "train", "--data", "../good.npz", *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch"):
            return process
    raise AssertionError(process.communicate())


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def test_a_run_ended_by_a_signal_resumes_to_bitwise_the_same_weights(here, no_pictures):
    options = ["--epochs", "60", "--device", "cpu"]
    assert cli.main(["train", "--data", "../good.npz", *options, "--out", "whole"]) == 0
    whole, model = weights(here / "whole"), (here / "whole" / "model.safetensors").read_bytes()
    for number in (signal.SIGINT, signal.SIGKILL):
        ended = here / number.name
        process = start_training(here, *options, "--out", ended.name)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        epochs = len(torch.load(ended / "checkpoint.pt", weights_only=True)["history"])
        assert 1 <= epochs < 60
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert f"interrupted after epoch {epochs} of 60" in out
            assert err == ""
            assert len((ended / "metrics.jsonl").read_text().splitlines()) == epochs
            if importlib.util.find_spec("matplotlib"):
                for picture in ("curves.png", "confusion.png"):
                    assert (ended / picture).read_bytes().startswith(b"\x89PNG")
            assert cli.main(["predict", ended.name, "../good.npz"]) == 0

        assert cli.main(["train", "--out", ended.name, "--resume"]) == 0
        resumed = weights(ended)
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)
        assert (ended / "model.safetensors").read_bytes() == model


def test_a_run_killed_before_its_first_checkpoint_starts_again(run, here):
    wanted = weights(run)
    for path in run.iterdir():
        if path.name != "config.json":
            path.unlink()
    assert cli.main(["train", "--out", "run", "--resume"]) == 0
    assert all(torch.equal(wanted[key], value) for key, value in weights(run).items())


@pytest.mark.parametrize("second", [["--peer", "compile"], ["--peer=compile"]])
def test_an_option_that_is_given_twice_is_refused(second, capsys):
    assert cli.main(["bench", "linear", "--shape", "4,4,4", "--peer", "eager", *second]) == 2
    assert capsys.readouterr() == ("", "tlazy: '--peer' is given 2 times\n")


@pytest.mark.parametrize("module", ["tlazy", "tlazy.cli"])
def test_python_runs_the_command_by_either_name(module):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tlazy {tlazy.__version__}\n")
