"""Where a run of campaigns is, in a SQLite file, so that it can go on from there after whatever ended it.

Each write is one transaction: a run that is killed leaves the file as it was before or after it. The file knows by a hash which
run it is of. All in it is numbers and JSON: reading one runs nothing that it holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from colossim import __version__
from colossim.engine.log import Log
from colossim.engine.setting import State
from colossim.errors import Problem, ScenarioError, SimulationError
from colossim.scenario.variants import Variant

#: s of a replica's play between two writes.
EVERY = 5.0
_FORMAT = "colossim bookmark 1"
_TABLES = """
CREATE TABLE run (format TEXT, hash TEXT);
CREATE TABLE steps (
    variant INTEGER, era INTEGER, state TEXT, seconds REAL, crc INTEGER, PRIMARY KEY (variant, era, state)
);
CREATE TABLE replicas (
    variant INTEGER, replica INTEGER, over INTEGER, text TEXT, crc INTEGER, PRIMARY KEY (variant, replica)
);
"""


def hash_of(variants: list[Variant], replicas: int) -> str:
    """What two runs have in common if one may go on where the other stopped: all that their numbers depend on."""
    told: list[Any] = [__version__, replicas]
    for label, scenario, measured in variants:
        graph = scenario.cluster.graph
        drawn = Path(graph).read_bytes().hex() if isinstance(graph, str | Path) and Path(graph).is_file() else ""
        told.append([label, scenario.model_dump_json(), sorted(scenario.paths), drawn, repr(measured)])
    return sha256(json.dumps(told).encode()).hexdigest()


class Bookmark:
    """An open file. A second run can't open it meanwhile."""

    def __init__(self, path: Path, mark: str, *, resume: bool = False, force: bool = False) -> None:
        """Makes the file, or goes on with it. mark: of `hash_of`; force: replaces what is there.

        Raises ScenarioError: where a file stands in the way of a new one, or where what is to go on is missing, broken, in use
        or of another run.
        """
        self.path = path
        self._new = not resume
        if resume and not path.is_file():
            _refuse("--resume", f"there is no file `{path}`: leave --resume out to begin")
        if not resume:
            if path.exists() and not (force and path.is_file()):
                _refuse("--checkpoint", f"`{path}` is there: --resume goes on with it, --force replaces it")
            _make(path, mark)
        self._file = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        try:
            self._check_run(mark)
        except ScenarioError:
            self._file.close()
            raise

    def _check_run(self, mark: str) -> None:
        """Takes the file for itself. Raises ScenarioError if it can't be gone on with."""
        try:
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("BEGIN EXCLUSIVE")
            self._file.execute("COMMIT")
            sound = self._file.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            rows = self._file.execute("SELECT format, hash FROM run").fetchall() if sound else []
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                _refuse("--checkpoint", f"`{self.path}` is in use by another run")
            if "readonly" in str(error):
                _refuse("--checkpoint", f"`{self.path}` cannot be written: it is read-only")
            rows = []
        if len(rows) != 1 or rows[0][0] != _FORMAT:
            self._broken()
        if rows[0][1] != mark:
            same = "scenario, --set, --case, --replicas and version"
            _refuse("--resume", f"`{self.path}` is of another run: {same} must be those that it began with")

    def shelf(self, variant: int) -> Shelf:
        """What is kept of one variant, by its place among them."""
        return Shelf(self, variant)

    def ask(self, what: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows that a query finds. Raises ScenarioError if the file is broken."""
        try:
            return self._file.execute(what, values).fetchall()
        except sqlite3.DatabaseError:
            self._broken()

    def check(self, crc: int, *row: Any) -> None:
        """Raises ScenarioError if a row isn't as it was written."""
        if crc != _crc(*row):
            self._broken()

    def put(self, what: str, *values: Any) -> None:
        """One transaction. Raises SimulationError if it can't be written."""
        try:
            self._file.execute(what, values)
        except sqlite3.Error as error:
            raise SimulationError(f"`{self.path}` cannot be written: {error}") from None

    def close(self, *, failed: bool = False) -> None:
        """failed: a new file that holds nothing is taken away again."""
        empty = False
        if failed and self._new:
            with contextlib.suppress(sqlite3.Error):
                counts = self._file.execute("SELECT (SELECT COUNT(*) FROM steps) + (SELECT COUNT(*) FROM replicas)")
                empty = counts.fetchone()[0] == 0
        self._file.close()
        if empty:
            self.path.unlink(missing_ok=True)

    def _broken(self) -> NoReturn:
        _refuse(
            "--resume", f"`{self.path}` is broken, or no file of --checkpoint: --force without --resume begins anew"
        )


class Shelf:
    """What is kept of one scenario: steps that were played, and where its replicas are."""

    def __init__(self, bookmark: Bookmark, variant: int) -> None:
        self._bookmark, self._variant = bookmark, variant

    def steps(self) -> dict[tuple[int, State], float]:
        """s a step by era and state."""
        rows = self._bookmark.ask("SELECT era, state, seconds, crc FROM steps WHERE variant = ?", self._variant)
        found = {}
        for era, state, seconds, crc in rows:
            self._bookmark.check(crc, era, state, seconds)
            found[era, _tuples(json.loads(state))] = seconds
        return found

    def put_step(self, era: int, state: State, seconds: float) -> None:
        """A step that was played."""
        row = (era, json.dumps(state), seconds)
        self._bookmark.put("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", self._variant, *row, _crc(*row))

    def replicas(self) -> dict[int, str | Log]:
        """Where each replica is that has begun: its log if it is over."""
        rows = self._bookmark.ask("SELECT replica, over, text, crc FROM replicas WHERE variant = ?", self._variant)
        found: dict[int, str | Log] = {}
        for replica, over, text, crc in rows:
            self._bookmark.check(crc, replica, over, text)
            found[replica] = Log.from_plain(json.loads(text)) if over else text
        return found

    def put(self, replica: int, where: str | Log) -> None:
        """Where a replica is now."""
        row = (replica, int(isinstance(where, Log)), where if isinstance(where, str) else json.dumps(where.to_plain()))
        self._bookmark.put("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?)", self._variant, *row, _crc(*row))


@contextmanager
def bookmarked(
    path: Path | None,
    variants: list[Variant],
    replicas: int,
    *,
    resume: bool,
    force: bool,
    tell: Callable[[str], None],
) -> Iterator[Bookmark | None]:
    """The file of a run, if it keeps one; of a run that fails before anything was kept none is left.

    tell: told how to go on after an interrupt. Raises as `Bookmark` does.
    """
    if path is None:
        yield None
        return
    bookmark, failed = None, False
    try:
        bookmark = Bookmark(path, hash_of(variants, replicas), resume=resume, force=force)
        yield bookmark
    except KeyboardInterrupt:
        tell(f"the same command with --resume goes on from `{path}`")
        raise
    except Exception:
        failed = True
        raise
    finally:
        if bookmark is not None:
            bookmark.close(failed=failed)


def _make(path: Path, mark: str) -> None:
    """Beside its place, and then there at once: a run that is killed leaves no half file. Raises ScenarioError."""
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        with contextlib.closing(sqlite3.connect(name)) as file:
            file.executescript(_TABLES)
            with file:
                file.execute("INSERT INTO run VALUES (?, ?)", (_FORMAT, mark))
        # What the file that is replaced left half written isn't of this one.
        Path(f"{path}-journal").unlink(missing_ok=True)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except (OSError, sqlite3.Error) as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) else error
        _refuse("--checkpoint", f"`{path}` cannot be written: {why}")


def _crc(*row: Any) -> int:
    return zlib.crc32(repr(row).encode())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _refuse(option: str, message: str) -> NoReturn:
    raise ScenarioError([Problem(option, message)])
