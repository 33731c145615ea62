"""The command line: words and exit codes. Everything it says is made elsewhere.

Exit codes: 0 done, 1 the simulation cannot proceed, 2 bad usage or a bad scenario, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from colossim import __version__
from colossim.cli_calibrate import calibrate
from colossim.cli_collectives import collectives, validate_collectives
from colossim.words import JSON, PLOT, SET, console, picture, progress

if TYPE_CHECKING:
    from colossim.scenario.variants import Variant

#: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h (mallopt(3)).
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
#: What click raises for a bare `colossim`; before version 8.2 it prints the help by itself.
_NO_WORDS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main() -> NoReturn:
    """Runs the command line and exits; no traceback for anything that a user did."""
    if "_COLOSSIM_COMPLETE" in os.environ:
        commands.main(prog_name="colossim")
    _reuse_memory()
    code = _run(sys.argv[1:])
    _let_go()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    _write_what_can_be_written()
    try:
        # click's own `main` has words of its own for interrupts and broken pipes.
        with commands.make_context("colossim", list(arguments)) as context:
            code = commands.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        if sys.stderr is not None and sys.stderr.isatty():
            # Ends the line that the terminal began with ^C.
            click.echo(err=True)
        click.echo("interrupted", err=True)
        return 130
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        click.echo(_usage(error), err=True)
        return 2
    except BrokenPipeError:
        # The reader has had enough.
        return 0
    except OSError as error:
        what = f"`{error.filename}`" if error.filename else "the output"
        click.echo(f"{what} cannot be written: {error.strerror or error}", err=True)
        return 1
    except MemoryError:
        click.echo("this needs more memory than the machine has: fewer GPUs or steps need less", err=True)
        return 1
    except Exception as error:
        from colossim.errors import ScenarioError, SimulationError

        if isinstance(error, ScenarioError):
            for problem in error.problems:
                click.echo(str(problem), err=True)
            return 2
        if isinstance(error, SimulationError):
            click.echo(str(error), err=True)
            return 1
        raise


def _usage(error: click.ClickException) -> str:
    """What is wrong with the words of a command, in one line; the help, if there are none."""
    if isinstance(error, _NO_WORDS):
        return str(error.format_message())
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{context.command_path}: {message} (`{context.command_path} --help`)"


def _reuse_memory() -> None:
    """Large arrays are laid into memory that others have left, where the C library can be told so.

    glibc gives each one back and asks the system for the next, page by page: a fifth of the time of a hashed step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for option, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1)):
            library.mallopt(option, value)


def _write_what_can_be_written() -> None:
    """Characters that the encoding of stdout lacks become question marks, not tracebacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _let_go() -> None:
    """Flushes, and gives up what nobody takes: a closed pipe or a full disk would make Python complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="colossim %(version)s")
def commands() -> None:
    """Simulates GPU training clusters: how long a step takes, and why."""


commands.add_command(collectives)
commands.add_command(calibrate)


@commands.command()
@click.argument("scenario")
@SET
@click.option("--case", metavar="NAME", help="Play one of the scenario's cases only.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write summary.json, steps.csv and plots there.",
)
@click.option("--force", is_flag=True, help="Replace the files of another run in --out.")
@JSON
@click.option("--no-plots", is_flag=True, help="Draw nothing.")
@click.option(
    "--replicas", type=click.IntRange(1), default=1, metavar="N", help="Seeds of a campaign; mean and 90 % are told."
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes for them; all cores when absent.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep a campaign there as it goes.",
)
@click.option("--resume", is_flag=True, help="Go on from --checkpoint's file.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(
    scenario: str,
    changes: tuple[str, ...],
    case: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    no_plots: bool,
    replicas: int,
    workers: int | None,
    checkpoint: Path | None,
    resume: bool,
    quiet: bool,
) -> int:
    """Plays SCENARIO (a file, or the name of one that ships) and shows the result."""
    from colossim.batch import play_all
    from colossim.bookmark import bookmarked
    from colossim.campaign import is_campaign
    from colossim.errors import Problem, ScenarioError
    from colossim.result.summary import show_measured, show_rows
    from colossim.scenario.variants import load_variants

    variants = load_variants(scenario, set=changes, case=case)
    if replicas > 1 and not any(is_campaign(variant.scenario) for variant in variants):
        message = "seeds are a campaign's: write `faults` or `run.duration`, or leave it out"
        raise ScenarioError([Problem("--replicas", message)])
    if resume and checkpoint is None:
        raise click.UsageError("--resume goes on from the file of --checkpoint: name it")
    if checkpoint is not None and not any(is_campaign(variant.scenario) for variant in variants):
        message = "keeps campaigns: write `faults` or `run.duration`, or leave it out"
        raise ScenarioError([Problem("--checkpoint", message)])
    if variants[0].scenario.jobs:
        return _run_jobs(variants, out, force, as_json, quiet)
    keeping = partial(bookmarked, checkpoint, variants, replicas, resume=resume, force=force)
    with keeping(tell=partial(click.echo, err=True)) as bookmark, progress(quiet) as tell:
        rows = play_all(
            variants,
            out=out,
            force=force,
            plots=not no_plots,
            progress=tell,
            replicas=replicas,
            workers=workers or os.cpu_count() or 1,
            bookmark=bookmark,
        )
    only = rows[0].played if len(rows) == 1 else None
    if as_json and only is not None:
        click.echo(only.to_json())
    elif as_json:
        found = {"scenario": variants[0].scenario.name, "cases": [row.to_dict() for row in rows]}
        click.echo(json.dumps(found, indent=2, allow_nan=False, default=list))
    elif only is not None and rows[0].fabric is None:
        show_measured(rows[0], console())
    else:
        show_rows(rows, console())
    if out is not None and any(row.played is not None for row in rows):
        click.echo(f"written to {out}", err=True)
    elif out is None and not as_json and not no_plots:
        click.echo("nothing was written: --out DIR writes summary.json, steps.csv and plots", err=True)
    return 0 if any(row.played is not None for row in rows) else 1


def _run_jobs(variants: Sequence[Variant], out: Path | None, force: bool, as_json: bool, quiet: bool) -> int:
    """Several jobs on one fabric: a page, or an object, a variant."""
    from colossim.batch import play_jobs
    from colossim.result.jobs import show_jobs

    with progress(quiet) as tell:
        found = play_jobs(variants, out=out, force=force, progress=tell)
    if not as_json:
        for label, result in found:
            if len(found) > 1:
                click.echo(label)
            show_jobs(result, console())
    elif len(found) == 1:
        click.echo(found[0][1].to_json())
    else:
        cases = [{"case": label, **result.to_dict()} for label, result in found]
        click.echo(
            json.dumps({"scenario": found[0][1].scenario, "cases": cases}, indent=2, allow_nan=False, default=list)
        )
    if out is not None:
        click.echo(f"written to {out}", err=True)
    return 0


@commands.command()
@click.argument("scenario")
@SET
@click.option("--case", metavar="NAME", help="One of the scenario's cases.")
@JSON
def check(scenario: str, changes: tuple[str, ...], case: str | None, as_json: bool) -> None:
    """Reads SCENARIO and explains it; plays nothing."""
    from colossim.explain import explain
    from colossim.result.listing import show_sections
    from colossim.scenario.reader import load_scenario

    loaded = load_scenario(scenario, set=changes, case=case)
    sections = explain(loaded)
    if as_json:
        click.echo(json.dumps({"scenario": loaded.name, **sections}, indent=2))
    else:
        show_sections(f"{loaded.name} is sound.", sections, console())


@commands.command()
def schema() -> None:
    """Prints the JSON Schema of a scenario, for editors."""
    from colossim.scenario.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@commands.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@JSON
def catalog(kind: str | None, name: str | None, as_json: bool) -> None:
    """Lists the catalogue, or shows an entry of it: gpus, nodes, fabrics, models, software, scenarios."""
    from colossim.result import listing

    if as_json:
        click.echo(json.dumps(listing.facts(kind, name), indent=2))
    else:
        listing.show(kind, name, console())


@commands.command()
@click.option("--source", metavar="NAME", help="Only the runs of one source, or of a file of your own.")
@click.option("--collectives", "tables", is_flag=True, help="Measured collectives instead of runs.")
@PLOT
@JSON
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes; all cores when absent.")
@click.option("--quiet", is_flag=True, help="No progress.")
def validate(
    source: str | None, tables: bool, plot: Path | None, as_json: bool, workers: int | None, quiet: bool
) -> None:
    """Predicts the published runs that ship, and says how wrong it is."""
    if tables and source is not None:
        raise click.UsageError("--source names a run's scenario: with --collectives all tables are predicted")
    if tables:
        validate_collectives(as_json, plot)
        return
    from colossim.validation import validate as predict

    with progress(quiet) as tell:
        report = predict(source, tell, workers or os.cpu_count() or 1)
    if plot is not None:
        from colossim.plot import published

        picture(published(report), plot)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        from colossim.result.validation import show_validation

        show_validation(report, console())
