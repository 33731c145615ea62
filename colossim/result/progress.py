"""Progress on stderr, for what lasts more than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Call it with what is being done and the share that is done. Silent for the first second.

    On a terminal a bar; elsewhere a line every few seconds.
    """

    _QUIET_FOR = 1.0
    _LINE_EVERY = 10.0

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = self._began
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now - self._began < self._QUIET_FOR:
            return
        if sys.stderr is None:
            return
        if not sys.stderr.isatty():
            if now - self._told >= self._LINE_EVERY:
                self._told = now
                print(f"{what}: {100 * share:.0f} %", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(24),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=1.0)
        self._bar.update(self._task, completed=share, description=what)
