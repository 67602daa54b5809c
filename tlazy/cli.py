"""The command line: `tlazy train`, `predict`, `trace`, `bench` and `info`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tlazy.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
SHOWN_PREDICTIONS = 20

# Depending on its version, typer imports click or brings its own: reach the class through typer.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="tlazy",
    help="Lazy layers on PyTorch with fused Triton kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 2: bad input, with one line on stderr. 130: ended by Ctrl-C.
    """
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="tlazy",
            standalone_mode=False,
        )
    except UserError as error:
        return _complain("tlazy", str(error))
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return BAD_INPUT
        command = error.ctx.command_path if error.ctx else "tlazy"
        return _complain(command, error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="A set in sktime's wheel, or a file: .npz, .csv, .tsv, .ts, .arff.",
        ),
    ] = "ItalyPowerDemand",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="fcn, resnet, inception or mlp.")
    ] = "fcn",
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Series in a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Adam's learning rate at the start.")] = 1e-3,
    seed: Annotated[
        int, typer.Option(help="Of weights, shuffling, dropout and, where needed, the split.")
    ] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="float32, float64, or bfloat16 (autocast)."),
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder.", show_default="runs/DATA-MODEL-SEED"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, with its options.")
    ] = False,
) -> int:
    """Train a network on labelled time series."""
    from tlazy import train as training
    from tlazy.display import display
    from tlazy.run import Options

    options = Options(data, model, epochs, batch_size, lr, seed, device, dtype)
    folder = out or options.folder
    with display() as shown:
        if resume:
            given = {name: getattr(options, name) for name in _given(context)}
            result = training.resume(folder, given, shown)
        else:
            result = training.train(options, folder, shown)
    return _report(result)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a trained run.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Series to classify; labels may be missing.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Write all predictions to this file.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Classify new series with a trained network."""
    from tlazy import predict as prediction
    from tlazy.run import check_device

    check_device(device)
    if out is not None and out.exists() and file.exists() and out.samefile(file):
        raise UserError(f"--out {out} is the file to read")
    predictions = prediction.predict(run, file, device=device)
    _show(predictions, len(predictions.predicted) if out is None else SHOWN_PREDICTIONS)
    if out is not None:
        predictions.write_csv(out)
        print(f"{len(predictions.predicted)} predictions written to {out}")
    if predictions.accuracy is not None:
        print(f"accuracy {predictions.accuracy:.2%} on {len(predictions.predicted)} series")


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="fcn, resnet, inception or mlp.")],
    shape: Annotated[
        str, typer.Option(metavar="N,C,L", help="Series, channels and steps of the input.")
    ],
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
) -> None:
    """Print a network's layers, shapes, parameters and costs; nothing is computed."""
    sizes = _parse_shape(shape)
    if classes < 1:
        raise UserError(f"--classes must be at least 1, got {classes}")
    from tlazy.models import MODELS
    from tlazy.train import trace as trace_model

    if model not in MODELS:
        raise UserError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    print(trace_model(model, MODELS[model](classes), sizes))


@app.command()
def bench(
    op: Annotated[
        str | None,
        typer.Argument(metavar="[OP]", help="linear, conv1d, depthwise, conv_transpose1d, model."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Of OP, such as 8192,4096,4096 (m,n,k) or 32,64,1000,128,3,padding=same.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="goals, kernelbench, models or sweep.",
            show_default="goals, without --shape",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="float32, float16, bfloat16 or float64."),
    ] = None,
    passes: Annotated[
        str | None, typer.Option("--pass", metavar="NAME", help="forward, backward or full.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fused activation, or none.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(metavar="NAME", help="Memory of a convolution's input: ncl, nlc.")
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="eager, compile, eager-channels-last, cudnn-benchmark, cublaslt, causal-conv1d, "
            "fla.",
            show_default="those that fit; on a CPU eager",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Sizes of a suite: full or small.", show_default="small on a CPU"
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record, after every row.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report to read in a browser.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Name what is worse than in this record; exit code 1."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search tiles instead, and write them as JSON.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Start nothing new after so many.")
    ] = None,
) -> int:
    """Measure kernels beside their peers; each is checked against float64 first."""
    from tlazy.bench import command
    from tlazy.bench.command import Options

    options = Options(
        *(op, shape, suite, dtype, passes, activation, layout, peer, device, scale),
        *(json, html, compare, tune, minutes),
    )
    return command.run(options, command.command_line(sys.argv[1:]))


@app.command()
def info() -> None:
    """Print versions, devices, and what runs on each."""
    import torch

    import tlazy
    from tlazy.run import device_name, versions

    for name, version in versions().items():
        print(f"{name:8} {version}")
    print(f"{'cuda':8} {torch.version.cuda or torch.version.hip or 'not in this build of torch'}")
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        print(f"\n{device}: {device_name(device)}")
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            backend = tlazy.backend_of(torch.empty(1, device=device, dtype=dtype))
            print(f"  {str(dtype).removeprefix('torch.'):9} {backend}")


def _complain(command: str, message: str) -> int:
    """Put the message on one line of stderr, whatever it holds."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _given(context: typer.Context) -> list[str]:
    """The training options that stand on the command line."""
    return [
        name
        for name in context.params
        if name not in ("out", "resume")
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]


def _report(result: Any) -> int:
    """Print the one line that a run ends with."""
    run = result.run
    accuracy = f"test accuracy {result.test_accuracy:.2%}"
    if result.interrupted:
        print(
            f"interrupted after epoch {result.epochs} of {run.config.options.epochs}: {accuracy}; "
            f"continue with: tlazy train --out {run.path} --resume"
        )
        return INTERRUPTED
    print(
        f"{accuracy} on {run.config.test_series} series, "
        f"{result.seconds:.1f} s of training, files in {run.path}"
    )
    return 0


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        n, c, length = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--shape must be three numbers such as 8,3,150, got {text!r}") from None
    if min(n, c, length) < 1:
        raise UserError(f"--shape must be three positive numbers, got {text!r}")
    return n, c, length


def _show(predictions: Any, most: int) -> None:
    """Print a table of the first `most` predictions."""
    from rich.console import Console
    from rich.table import Table

    table = Table("series", "predicted", "probability")
    if predictions.labels is not None:
        table.add_column("label")
    for i, name in enumerate(predictions.predicted[:most]):
        cells = [str(i), name, f"{predictions.probabilities[i].max():.3f}"]
        table.add_row(*cells, *([predictions.labels[i]] if predictions.labels is not None else []))
    Console().print(table)
