"""All variants of a scenario, played one after the other, each into a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from colossim.bookmark import Bookmark
from colossim.errors import SimulationError
from colossim.growth import Known
from colossim.jobs import simulate_jobs
from colossim.layout import Progress
from colossim.offered import offer
from colossim.result.jobs import JobsResult
from colossim.result.row import Row
from colossim.result.write import forget_empty, prepare_out, whole, write, write_summary
from colossim.scenario.variants import Variant
from colossim.simulation import simulate


def play_all(
    variants: Sequence[Variant],
    *,
    out: Path | None = None,
    force: bool = False,
    plots: bool = True,
    progress: Progress | None = None,
    replicas: int = 1,
    workers: int = 1,
    bookmark: Bookmark | None = None,
) -> list[Row]:
    """Plays each variant. One of several that cannot be played is a row that says why; a single one raises.

    out: folder for files; several variants write into folders of their own below it.  replicas, workers: of a campaign's
    seeds; bookmark: where campaigns are kept as they go. Raises ScenarioError if a folder can't be used (before anything is
    played), SimulationError if the only variant can't be played.
    """
    several = len(variants) > 1
    known = Known()
    names = _folders([variant.label for variant in variants])
    folders = [None if out is None else out / name if several else out for name in names]
    new = [folder for folder in (*folders, out) if folder is not None and not os.path.exists(folder)]
    rows = []
    try:
        for folder in folders:
            if folder is not None:
                prepare_out(folder, force=force)
        for i, (variant, folder) in enumerate(zip(variants, folders, strict=True)):

            def tell(what: str, share: float, i: int = i, label: str = variant.label) -> None:
                if progress is not None:
                    progress(f"{label}: {what}" if several else what, (i + share) / len(variants))

            measured = variant.measured.step_time if variant.measured is not None else None
            if variant.scenario.traffic is not None:
                fabric = offer(variant.scenario, tell)
                rows.append(Row(variant.label, None, measured, fabric=fabric))
                if folder is not None:
                    write_summary(fabric, folder)
                continue
            try:
                shelf = None if bookmark is None else bookmark.shelf(i)
                result = simulate(variant.scenario, tell, replicas=replicas, workers=workers, shelf=shelf, known=known)
            except SimulationError as error:
                if not several:
                    raise
                rows.append(Row(variant.label, None, measured, str(error)))
                continue
            rows.append(Row(variant.label, result, measured))
            if folder is not None:
                tell("writing", 0.99)
                write(result, folder, plots=plots)
    finally:
        forget_empty(new)
    return rows


def play_jobs(
    variants: Sequence[Variant], *, out: Path | None = None, force: bool = False, progress: Progress | None = None
) -> list[tuple[str, JobsResult]]:
    """Plays each variant of a scenario with several jobs: (label, result). out: folder for its summary.json.

    Raises as `simulate_jobs` does, ScenarioError if the folder can't be used.
    """
    names = _folders([variant.label for variant in variants])
    folders = [None if out is None else out / name if len(variants) > 1 else out for name in names]
    new = [folder for folder in (*folders, out) if folder is not None and not os.path.exists(folder)]
    found = []
    try:
        for folder in folders:
            if folder is not None:
                prepare_out(folder, force=force)
        for variant, folder in zip(variants, folders, strict=True):
            result = simulate_jobs(variant.scenario, progress)
            found.append((variant.label, result))
            if folder is not None:
                whole(folder / "summary.json", partial(_put, result.to_json().encode() + b"\n"))
    finally:
        forget_empty(new)
    return found


def _put(text: bytes, file: Any) -> None:
    file.write(text)


def _folders(labels: list[str]) -> list[str]:
    """Labels as names of folders: inside --out whatever they are, and each its own."""
    names: list[str] = []
    for label in labels:
        plain = "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in label)
        base = plain if plain.strip(".") else "_" * max(1, len(plain))
        name = base
        number = 2
        while name in names:
            name = f"{base}-{number}"
            number += 1
        names.append(name)
    return names
