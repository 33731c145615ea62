"""What a campaign leaves behind: accounts of its wall time, interruptions, and the checkpoints that it can go back to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

#: Accounts of the ledger: s of wall time each, in the order in which they are told.
ACCOUNTS = ("productive", "lost_work", "checkpoint", "detection", "restart", "waiting", "degraded", "growth")


@dataclass(frozen=True)
class Interruption:
    """A fault that stopped the job. time, lost, restart: s; restart: until it trained again, detection and waiting included."""

    time: float
    cause: str
    component: str
    lost: float
    restart: float


@dataclass
class Log:
    """What a campaign leaves behind. spent: s by account.  done: tokens that count; by_era: of them, in each era.

    checkpoints, in_memory: written, to storage and to nodes.  shrunk: s of training with fewer replicas.  faults: of each
    class.  eras: (s, index) when each was taken up.  trace: (s, done) wherever the pace of progress changed.
    """

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0.0))
    wall: float = 0.0
    done: float = 0.0
    by_era: list[float] = field(default_factory=lambda: [0.0])
    checkpoints: int = 0
    in_memory: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    interruptions: list[Interruption] = field(default_factory=list)
    shrunk: float = 0.0
    eras: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    trace: list[tuple[float, float]] = field(default_factory=list)

    def advance(self, done: float, seconds: float, counted: float, era: int) -> None:
        """So long a training in an era. done: tokens after it; counted: s that the whole cluster would have taken."""
        self.done = done
        # Not a sum of its own, whose roundings would add up.
        self.by_era[era] = done - sum(self.by_era[:era])
        self.spent["productive"] += counted
        self.spent["degraded"] += seconds - counted

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dict(vars(self)) | {"interruptions": [astuple(item) for item in self.interruptions]}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Log:
        """What `to_plain` was asked of, also by way of JSON."""
        log = cls(**values)
        log.interruptions = [Interruption(*item) for item in values["interruptions"]]
        log.eras = [(when, index) for when, index in values["eras"]]
        log.trace = [(when, done) for when, done in values["trace"]]
        return log

    def mark(self, now: float) -> None:
        """The pace changes here."""
        self.trace.append((now, self.done))


@dataclass(frozen=True)
class Saved:
    """A checkpoint. began, durable: s, when its write began and when it can be restarted from.

    done, by_era: tokens; productive, degraded: s of training until then.  memory: held by nodes, not in storage.
    """

    done: float
    by_era: tuple[float, ...]
    productive: float
    degraded: float
    began: float
    durable: float
    memory: bool = False


class Checkpoints:
    """Those that the job can go back to, at first its start. eras: how many; saved: the fields of each, of another."""

    def __init__(self, eras: int, saved: Iterable[Sequence[Any]] = ()) -> None:
        self.saved = [Saved(*fields) for fields in saved] or [Saved(0.0, (0.0,) * eras, 0.0, 0.0, 0.0, 0.0)]

    @property
    def last(self) -> Saved:
        return self.saved[-1]

    @property
    def stored(self) -> Saved:
        """The last in storage."""
        return next(saved for saved in reversed(self.saved) if not saved.memory)

    def add(self, log: Log, began: float, durable: float, *, memory: bool = False) -> None:
        """What the job has done is written. began, durable: s.  memory: in the place of what the nodes held before."""
        spent = log.spent
        self.saved.append(
            Saved(log.done, tuple(log.by_era), spent["productive"], spent["degraded"], began, durable, memory)
        )
        if memory:
            self.saved[:-1] = [saved for saved in self.saved[:-1] if not saved.memory]
            log.in_memory += 1
        else:
            log.checkpoints += 1

    def forget(self, now: float, sound: float) -> None:
        """Drops what nothing can lead back to: all before the last that is durable and begun by `sound`."""
        for i in range(len(self.saved) - 1, 0, -1):
            saved = self.saved[i]
            if not saved.memory and saved.durable <= now and saved.began <= sound:
                del self.saved[:i]
                return

    def roll_back(self, log: Log, now: float, sound: float, *, held: bool = True) -> float:
        """Goes back to the last that is durable and was begun by `sound`. Returns s of training that are lost.

        held: whether what is in memory is still there.
        """
        if not held:
            self.saved = [saved for saved in self.saved if not saved.memory]
        while len(self.saved) > 1 and (self.last.durable > now or self.last.began > sound):
            self.saved.pop()
        last, spent = self.last, log.spent
        lost = (spent["productive"] - last.productive) + (spent["degraded"] - last.degraded)
        log.done, log.by_era = last.done, list(last.by_era)
        spent["productive"], spent["degraded"] = last.productive, last.degraded
        spent["lost_work"] += lost
        return lost
