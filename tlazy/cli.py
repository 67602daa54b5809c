"""The command line: `tlazy train`, `predict`, `trace`, `bench` and `info`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except KeyboardInterrupt:  # Ctrl-C while packages load
    sys.exit(130)

from tlazy.errors import UserError, one_line, quoted, reason

BAD_INPUT = 2
INTERRUPTED = 130
SHOWN_PREDICTIONS = 20

# Depending on its version, typer imports click or brings its own: reach the class through typer.
_UsageError: Any = typer.BadParameter.__base__

FORMATS = (
    "Files: .csv (.tsv with tabs): a row is a series of one channel, its label first, a header is "
    "skipped. .npz: arrays x_train, y_train, x_test, y_test, or x and y; x has shape (N, L) or "
    "(N, C, L). .ts and .arff: sktime's and Weka's formats, any number of channels. Files named "
    "SET_TRAIN and SET_TEST side by side are one set; of any other file without a test part 30% "
    "of each class are set aside for testing."
)

app = typer.Typer(
    name="tlazy",
    help="Lazy layers on PyTorch with fused Triton kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(text: str) -> Path:
    """A path from the command line; an empty one would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty")
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 2: bad input, with one line on stderr. 130: ended by Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _check_given_once(given)
        code = app(
            args=given,
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
    except OSError as error:  # a full disk, a name that is too long
        place = f" {quoted(str(error.filename))}" if error.filename is not None else ""
        return _complain("tlazy", f"{error.strerror or reason(error)}{place}")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _check_given_once(arguments: Sequence[str]) -> None:
    """Raise UserError for an option that is there twice: of two values the last would count."""
    names = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{quoted(name)} is given {names.count(name)} times")


def _print_version(wanted: bool) -> None:
    if wanted:
        import tlazy

        print(f"tlazy {tlazy.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print tlazy's version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Lazy layers on PyTorch with fused Triton kernels."""


@app.command(epilog=FORMATS)
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
        typer.Option(
            help="The run's folder.",
            show_default="runs/DATA-MODEL-SEED",
            parser=_path,
            metavar="DIR",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, with its options.")
    ] = False,
) -> int:
    """Train a network on labelled time series.

    The run's folder gets model.safetensors (the weights), checkpoint.pt (for --resume),
    config.json, metrics.jsonl, curves.png and confusion.png.
    """
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


@app.command(epilog=FORMATS)
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a trained run.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Series to classify; labels may be missing.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Write all predictions to this new file.", parser=_path),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Classify new series with a trained network.

    In a .csv or .tsv file, a row of just as many values as the training series have steps has no
    label; an .npz file gives x (and y), or else x_test (and y_test).
    """
    from tlazy import predict as prediction
    from tlazy.outputs import check_new_file
    from tlazy.run import check_device

    check_device(device)
    if out is not None and out.exists() and file.exists() and out.samefile(file):
        raise UserError(f"--out {out} is the file to read")
    if out is not None:
        check_new_file("--out", out)
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
    from tlazy.models import MODELS
    from tlazy.run import MOST_COUNTED, check_range
    from tlazy.train import trace as trace_model

    check_range("--classes", classes, 1, MOST_COUNTED)
    for size in sizes:
        check_range("--shape", size, 1, MOST_COUNTED)

    if model not in MODELS:
        raise UserError(f"model must be one of {', '.join(MODELS)}, got {quoted(model)}")
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
            help="eager, compile, eager-channels-last, cudnn-benchmark, "
            "cudnn-benchmark-channels-last, cublaslt, triton-tutorial, causal-conv1d, fla.",
            show_default="those that fit; on a CPU eager",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the record, after every row.", parser=_path),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report to read in a browser.", parser=_path),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Name what is worse than in this record; exit code 1.",
            parser=_path,
        ),
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
        op=op,
        shape=shape,
        suite=suite,
        dtype=dtype,
        passes=passes,
        activation=activation,
        layout=layout,
        peer=peer,
        device=device,
        json=json,
        html=html,
        compare=compare,
        tune=tune,
        minutes=minutes,
    )
    return command.run(options, command.command_line(sys.argv[1:]))


@app.command()
def info() -> None:
    """Print versions, devices, and what runs on each."""
    import torch

    import tlazy
    from tlazy.bench.machine import device_name, versions

    for name, version in versions().items():
        print(f"{name:8} {version or 'none'}")
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        print(f"\n{device}: {device_name(device)}")
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            backend = tlazy.backend_of(torch.empty(1, device=device, dtype=dtype))
            print(f"  {str(dtype).removeprefix('torch.'):9} {backend}")


def _complain(command: str, message: str) -> int:
    """Put the message on one line of stderr, whatever it holds."""
    print(f"{command}: {one_line(message)}", file=sys.stderr)
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
            f"continue with: {run.continue_with}"
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
        raise UserError(
            f"--shape must be three numbers such as 8,3,150, got {quoted(text)}"
        ) from None
    if min(n, c, length) < 1:
        raise UserError(f"--shape must be three positive numbers, got {quoted(text)}")
    return n, c, length


def _show(predictions: Any, most: int) -> None:
    """Print a table of the first `most` predictions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("series", "predicted", "probability")
    if predictions.labels is not None:
        table.add_column("label")
    for i, name in enumerate(predictions.predicted[:most]):
        # As Text, so that a class called [/bold] is no markup.
        cells: list[str | Text] = [str(i), Text(name), f"{predictions.probabilities[i].max():.3f}"]
        if predictions.labels is not None:
            cells.append(Text(predictions.labels[i]))
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
