"""Processes that share work, and end with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context

from colossim.errors import SimulationError


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes. Interrupted, they die at once and without words. Raises SimulationError if one is killed."""
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL))
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
