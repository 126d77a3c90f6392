r"""The console command `pyro-vae`."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_vae.errors import InputError, NonFiniteError, WriteError
from pyro_vae.runtime.commands import Command, Commands
from pyro_vae.runtime.whole_file import explained, write_whole

# What takes long to import is imported by the commands that need it, so that `--help` is there at once.
if TYPE_CHECKING:
    import pandas as pd

    from pyro_vae.comparison.trained_vae import TrainedVAE
    from pyro_vae.experiment.experiment import Experiment
    from pyro_vae.runtime.terminal import Console

app = typer.Typer(
    cls=Commands,
    help="Variational autoencoders declared in Pyro: train, compare and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_Run = Annotated[Path, typer.Argument(help="A run folder.")]
_Algorithm = Annotated[str | None, typer.Option(help="Label of the algorithm; default: the first.")]
_Seed = Annotated[int | None, typer.Option(help="Seed of the trained model; default: the first.")]
_Context = Annotated[
    str | None,
    typer.Option(
        help='What the model is given: "label=3", or a table with the context columns (default: the rows\' own).'
    ),
]


def _writable(out: Path | None) -> Path | None:
    """Refuses, before any work is done, a file that could not be written."""
    if out is not None and out.suffix not in (".csv", ".npy"):
        raise InputError(f"--out: `{out}` must end in .csv or .npy.")
    if out is not None and out.is_dir():
        raise InputError(f"--out: `{out}` is a folder; name a file in it.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out: there is no folder `{out.parent}`; make it, or choose another.")
    return out


def _keep(out: Path | None, *read: Path | str | None) -> None:
    """Refuses to write over a file that is read."""
    if out is not None and out.exists() and any(each and Path(each).exists() and out.samefile(each) for each in read):
        raise InputError(f"--out: `{out}` is a file that is read; choose another.")


_Out = Annotated[
    Path | None,
    typer.Option(callback=_writable, help="A .csv or .npy file; default: CSV on standard output."),
]
_DrawSeed = Annotated[int, typer.Option(help="Seed of the draws.")]


def _print_versions(asked: bool) -> None:
    """Ends the command with what a report of a fault has to say."""
    if asked:
        from pyro_vae.runtime.environment import versions

        typer.echo(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print the versions and exit."),
    ] = False,
) -> None:
    """Takes what stands before a command."""


def _allow_code(context: typer.Context, allowed: bool) -> bool:
    """Lets this command import networks and programs of the user's own, also from the working folder."""
    if allowed:
        from pyro_vae.experiment.user_code import code_allowed

        context.with_resource(code_allowed())
        sys.path.insert(0, os.getcwd())
    return allowed


_AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        callback=_allow_code,
        is_eager=True,
        help="Let the experiment import code of your own (program: my_module:make, module: my_package.nets.Encoder).",
    ),
]


@app.command("compare", cls=Command)
def compare_command(
    file: Annotated[Path | None, typer.Argument(help="Experiment file (YAML); flags change what it says.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set's name or a file's path.")] = None,
    program: Annotated[
        str | None, typer.Option(help="Your own Pyro model and guide, my_module:make, with --allow-code; no VAE then.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="A family, {family: Normal, loc: 0, scale: 1}, mixture, vamp or flow.")
    ] = None,
    likelihood: Annotated[str | None, typer.Option(help="A family, or {family: Normal, scale: learned}.")] = None,
    posterior: Annotated[
        str | None, typer.Option(help="A family, mixture or flow; default: what the prior's support asks for.")
    ] = None,
    latent: Annotated[int | None, typer.Option(help="Number of latent dimensions.")] = None,
    inference: Annotated[str | None, typer.Option(help="Algorithms, separated by commas.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the file, such as training.batch_size=50; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes among which the runs are divided, of one thread each.")] = 1,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="A key and its values, which make candidates: prior=Normal,flow or latent=4,8; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make, or to go on with; default: runs/<data>-<time>.")
    ] = None,
    allow_code: _AllowCode = False,
) -> None:
    """Train models and algorithms x seeds on one data set, and report by how much they differ."""
    from pyro_vae.experiment.command_line import experiment_of, part, path_or_mapping

    flags = {
        "data": path_or_mapping(data),
        "program": program,
        "prior": part(prior),
        "likelihood": part(likelihood),
        "posterior": part(posterior),
        "latent": latent,
        "inference": inference,
        "training.epochs": epochs,
        "seeds": seeds,
        "device": device,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    _compare(experiment_of(file, given, settings or [], vary or []), out, workers)


def _compare(experiment: Experiment, out: Path | None, workers: int) -> None:
    """Runs an experiment, writes its folder and prints its tables."""
    from pyro_vae.comparison.compare import prepare
    from pyro_vae.comparison.folder import default_folder, new_folder, unfinished, write_run
    from pyro_vae.comparison.report.page import write_report
    from pyro_vae.comparison.report.tables import tables

    prepared = prepare(experiment, progress=True)
    for label, reason in prepared.left_out.items():
        typer.echo(f"left out: {label}: {reason}", err=True)
    if experiment.vary or experiment.models:
        candidates, seeds = len(prepared.candidates), len(experiment.seeds)
        typer.echo(f"{candidates} candidates x {seeds} seeds: {candidates * seeds} runs", err=True)
    folder = default_folder(experiment) if out is None else out
    command = shlex.join(["pyro-vae", *sys.argv[1:]])
    try:
        with new_folder(folder) as partial:
            checkpoints = unfinished(folder) / "checkpoints"
            result = prepared.run(command=command, progress=True, checkpoints=checkpoints, workers=workers)
            write_report(result, partial / "report.html")
            write_run(result, partial)  # last, for it writes the checksums of all files
    except KeyboardInterrupt:
        again = command if out is not None else f"{command} --out {shlex.quote(str(folder))}"
        typer.echo(f"stopped; it goes on with: {again}", err=True)
        raise typer.Exit(130) from None
    console = _console()
    for table in tables(result):
        console.print(table)
    for part in result.by_measure():
        found = part.verdict()
        console.print(" ".join([found.sentence, *found.doubts]), highlight=False, markup=False)
    console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False, markup=False)


@app.command(cls=Command)
def schema() -> None:
    """Print the JSON schema of the experiment file."""
    from pyro_vae.experiment.experiment import Experiment

    sys.stdout.write(json.dumps(Experiment.model_json_schema(), indent=2) + "\n")


@app.command(cls=Command)
def families(
    name: Annotated[str | None, typer.Argument(help="A family, such as Normal; default: all of them.")] = None,
) -> None:
    """Print what every distribution can be (prior, likelihood, posterior), or one of them with examples."""
    from pyro_vae.vae.families.table import families_table, family_page

    if name is None:
        _console().print(families_table(), highlight=False)
    else:
        sys.stdout.write(family_page(name) + "\n")


@app.command(cls=Command)
def score(
    run: _Run,
    data: Annotated[Path, typer.Argument(help="Rows to score, in the training data's own units.")],
    algorithm: _Algorithm = None,
    seed: _Seed = None,
    num_samples: Annotated[int, typer.Option(help="Importance samples for each row.")] = 1000,
    draw_seed: _DrawSeed = 0,
    context: _Context = None,
    out: _Out = None,
    allow_code: _AllowCode = False,
) -> None:
    """Print log p(x) of each row (nats, own units), its error and how far to trust it: the lowest are outliers."""
    _keep(out, data, context)
    trained = _trained(run, algorithm, seed, allow_code)
    scores = trained.score(data, num_samples, context=context, seed=draw_seed, progress=True)
    _write(scores, out, _from(scores, "row"))


@app.command(cls=Command)
def encode(
    run: _Run,
    data: Annotated[Path, typer.Argument(help="Rows to encode, in the training data's own units.")],
    algorithm: _Algorithm = None,
    seed: _Seed = None,
    draw_seed: _DrawSeed = 0,
    context: _Context = None,
    out: _Out = None,
    allow_code: _AllowCode = False,
) -> None:
    """Print the mean and the standard deviation of q(z|x) of each row."""
    _keep(out, data, context)
    trained = _trained(run, algorithm, seed, allow_code)
    codes = trained.encode(data, context=context, seed=draw_seed)
    _write(codes, out, _from(codes, "z0"))


@app.command(cls=Command)
def sample(
    run: _Run,
    n: Annotated[int, typer.Option("-n", help="Number of draws.", min=1)] = 100,
    algorithm: _Algorithm = None,
    seed: _Seed = None,
    draw_seed: _DrawSeed = 0,
    context: _Context = None,
    out: _Out = None,
    allow_code: _AllowCode = False,
) -> None:
    """Print draws of x from a trained model, in the data's own units and columns."""
    _keep(out, context)
    trained = _trained(run, algorithm, seed, allow_code)
    _write(trained.sample(n, context=context, seed=draw_seed), out, trained.units.cell_names)


@app.command(cls=Command)
def impute(
    run: _Run,
    data: Annotated[Path, typer.Argument(help="Rows with missing cells, in the training data's own units.")],
    algorithm: _Algorithm = None,
    seed: _Seed = None,
    draw_seed: _DrawSeed = 0,
    context: _Context = None,
    out: _Out = None,
    allow_code: _AllowCode = False,
) -> None:
    """Print the rows with their missing cells filled by what the model expects of them; observed cells are kept."""
    _keep(out, data, context)
    trained = _trained(run, algorithm, seed, allow_code)
    _write(trained.impute(data, context=context, seed=draw_seed), out, trained.units.cell_names)


def _trained(run: Path, algorithm: str | None, seed: int | None, allow_code: bool) -> TrainedVAE:
    from pyro_vae.comparison.folder import load

    return load(run, algorithm, seed, allow_code=allow_code)


def main() -> None:
    """Runs the command; an input that cannot be used is one line on standard error and exit code 2."""
    try:
        try:
            app()
        finally:
            _flush()
    except (InputError, NonFiniteError, WriteError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        sys.stderr.write(f"{where}{explained(error)}\n")
        sys.exit(2)


def _flush() -> None:
    """Writes what standard output holds back; where it cannot, nothing is tried again at the end of the process."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        _drop_output()
    except OSError as error:
        _drop_output()
        raise WriteError(f"standard output is not written: {explained(error)}") from None


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    from pyro_vae.runtime.terminal import Console

    console = Console()
    return console if console.is_terminal else Console(width=100)


def _from(table: pd.DataFrame, first: str) -> list[str]:
    """The names of a table's columns from one on: what the model says of rows stands behind their own columns."""
    names = table.columns.tolist()
    return names[names.index(first) :]


def _write(table: pd.DataFrame, out: Path | None, cells: Sequence[str]) -> None:
    """Writes a table, as a whole or not at all; a .npy file has no column names, and the columns `cells` alone."""
    if out is None:
        sys.stdout.write(table.to_csv(index=False))
    elif out.suffix == ".npy":
        import numpy as np
        import pandas as pd

        table = table[list(cells)]
        words = [str(name) for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
        if words:
            raise InputError(f"--out: column `{words[0]}` holds words, which a .npy file cannot; write a .csv file.")
        content = io.BytesIO()
        np.save(content, table.to_numpy(dtype=np.float64))
        write_whole(out, content.getbuffer())
    else:
        write_whole(out, table.to_csv(index=False).encode())
