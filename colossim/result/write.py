"""A result's files: under `--out` only, whole or not at all, and never over somebody else's."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossim.errors import Problem, ScenarioError
from colossim.result.campaign import INTERRUPTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from colossim.result.fabric import FabricResult
    from colossim.result.result import Result

#: What a run writes; nothing else in the folder is touched.
FILES = (
    "summary.json", "steps.csv", "interruptions.csv", "throughput.png", "breakdown.png", "timeline.png", "power.png",
    "goodput.png", "lost-time.png", "interval.png", "growth.png",
)  # fmt: skip
#: How the names of half-written files go on (`tempfile`).
_HALF = re.compile(r"\.[a-z0-9_]{8}")


def prepare_out(folder: Path, *, force: bool = False) -> None:
    """Makes the folder, and makes sure that it can be written, before anything is simulated.

    Raises ScenarioError if it can't, or if it holds another run's files and `force` isn't given.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ScenarioError([Problem("--out", f"cannot write into `{folder}`: {error.strerror}")]) from None
    held = [name for name in FILES if (folder / name).exists()]
    if held and not force:
        raise ScenarioError(
            [
                Problem(
                    "--out",
                    f"`{folder}` holds a run ({', '.join(held)}): use --force to replace it, or another folder",
                )
            ]
        )


def forget_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders that hold nothing: a run that failed leaves none behind."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write(result: Result, folder: Path, *, plots: bool = True) -> list[Path]:
    """Writes summary.json, steps.csv, of a campaign interruptions.csv and, with `plots`, the pictures.

    Returns what was written. Raises OSError, with the file's name.
    """
    tables = {"steps": table(result.steps)}
    if result.campaign is not None:
        rows = [{"seed": seed, **row} for seed, row in result.campaign.by_seed(result.seed)]
        tables["interruptions"] = table(rows, ("seed", *INTERRUPTION))
    made = [write_summary(result, folder)]
    for name, text in tables.items():
        made.append(whole(folder / f"{name}.csv", partial(_fill, text)))
    if plots:
        from colossim.plot import save

        for name, draw in _pictures(result).items():
            made.append(whole(folder / f"{name}.png", partial(save, draw(result))))
    return made


def _pictures(result: Result) -> dict[str, Callable[[Result], Axes]]:
    from colossim import plot

    found: dict[str, Callable[[Result], Axes]] = {
        "throughput": plot.throughput,
        "breakdown": plot.breakdown,
        "timeline": plot.timeline,
        "power": plot.power,
    }
    if result.campaign is not None:
        found |= {"goodput": plot.goodput, "lost-time": plot.lost_time}
        if result.campaign.best_s is not None and result.campaign.growth is None:
            # Of a cluster that changes each stretch has a best interval of its own.
            found["interval"] = plot.interval
        if result.campaign.growth is not None:
            found["growth"] = plot.growth
    return found


def write_summary(result: Result | FabricResult, folder: Path) -> Path:
    """Writes summary.json over that of a run that was here before, and takes its pictures and steps away.

    Raises OSError, with the file's name.
    """
    for name in FILES[1:]:
        # Those of the run that was here before would be a lie, also if this one is interrupted.
        (folder / name).unlink(missing_ok=True)
    for name in FILES:
        # Of a run that was killed while it wrote.
        for left in folder.glob(f".{name}.*"):
            if _HALF.fullmatch(left.name.removeprefix(f".{name}")):
                left.unlink(missing_ok=True)
    return whole(folder / "summary.json", lambda file: file.write(result.to_json().encode() + b"\n"))


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """Rows as CSV. names: of columns; the first row's when absent."""
    out = io.StringIO()
    written = csv.DictWriter(out, fieldnames=list(names or rows[0]), lineterminator="\n")
    written.writeheader()
    written.writerows(rows)
    return out.getvalue()


def _fill(text: str, file: Any) -> None:
    file.write(text.encode())


def whole(path: Path, fill: Callable[[Any], object]) -> Path:
    """Writes beside the file and renames, so that an interrupted run leaves no half file. Raises OSError with its name."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
