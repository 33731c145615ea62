"""Processes that share work, and end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from threading import Thread

from colossim.errors import SimulationError


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes. Interrupted, they die at once and without words. Raises SimulationError if one is killed."""
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    try:
        yield pool
    except BrokenProcessPool:
        raise SimulationError("a process was killed: fewer --workers need less memory") from None
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In each process: an interrupt ends it, and so does the end of the one that began it, also if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
