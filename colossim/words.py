"""What the commands share: options, the terminal, pictures."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

SET = click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change a field, such as job.micro_batch=2."
)
PLOT = click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it as PNG.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def console() -> Console:
    """The terminal; a reader that has had enough ends it."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Pipe()


def picture(axes: Any, path: Path) -> None:
    """Writes a plot, whole or not at all."""
    from colossim.plot import save
    from colossim.result.write import whole

    whole(path, partial(save, axes))


def progress(quiet: bool) -> AbstractContextManager[Any]:
    """A bar on stderr; called with what is being done and the share of it that is done."""
    if quiet:
        return nullcontext(lambda what, share: None)
    from colossim.result.progress import Progress

    return Progress()
