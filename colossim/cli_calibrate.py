"""The command `calibrate`: words only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from colossim.words import JSON, console, progress


@click.command()
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME",
    help="Published runs of this name, or a file of your own; repeat it.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Writes a catalogue file for `catalog:`.")
@JSON
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes; all cores when absent.")
@click.option("--quiet", is_flag=True, help="No progress.")
def calibrate(sources: tuple[str, ...], out: Path | None, as_json: bool, workers: int | None, quiet: bool) -> None:
    """Fits constants of GPUs and stacks on measured steps, and tries the fit on configurations left out.

    Which constants, and how far they may move: colossim/catalog/constants.yaml. Without --source all published runs are
    used, from what the entries say; with it the fit begins at what ships.
    """
    from colossim.calibrate import catalogue_text, fit_sources
    from colossim.result.calibration import facts, show_calibration
    from colossim.result.write import whole

    with progress(quiet) as tell:
        fitted = fit_sources(sources, workers or os.cpu_count() or 1, tell)
    if out is not None:
        text = catalogue_text(fitted)
        whole(out, lambda path: path.write_text(text, encoding="utf-8"))
    if as_json:
        click.echo(json.dumps(facts(fitted), indent=2))
    else:
        show_calibration(fitted, console())
