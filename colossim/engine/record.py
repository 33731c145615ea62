"""What one played step leaves behind: when each rank class did what, and what crossed each link class.

The engine writes a `StepRecord`; results, plots and traces read it and nothing else of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What a rank does at an instant: the keys of `breakdown_s`, in its order.
CATEGORIES = (
    "compute",
    "tensor_comm",
    "context_comm",
    "expert_comm",
    "pipeline_comm",
    "pipeline_bubble",
    "data_comm",
    "optimizer",
    "straggler",
    "other",
)
#: What people call them.
LABEL = {
    "compute": "compute",
    "tensor_comm": "tensor comm",
    "context_comm": "context comm",
    "expert_comm": "expert comm",
    "pipeline_comm": "pipeline comm",
    "pipeline_bubble": "pipeline bubble",
    "data_comm": "data comm",
    "optimizer": "optimizer",
    "straggler": "stragglers",
    "other": "launches, other",
}


@dataclass(frozen=True)
class Timeline:
    """The step as one rank class lived it: intervals in order, without gaps or overlaps, from 0 to the step's end.

    stage: pipeline stage.  hardware: node type.  count: ranks of this stage, type and kind of replica.  rank: the lowest
    of the class that is shown.
    start, end: (intervals,) seconds.  category: (intervals,) index into CATEGORIES.
    direction: (intervals,) 0 forward, 1 backward (of the inputs, if the weights have passes of their own), 3 weights,
    2 outside the pipeline.
    micro_batch, chunk: (intervals,) of the pass, -1 outside the pipeline.
    """

    stage: int
    hardware: str
    count: int
    rank: int
    start: Floats
    end: Floats
    category: Ints
    direction: Ints
    micro_batch: Ints
    chunk: Ints

    def seconds(self) -> Floats:
        """(categories,) seconds spent in each category; they add up to the step."""
        spent = np.bincount(self.category, weights=self.end - self.start, minlength=len(CATEGORIES))
        return spent.astype(np.float64)


@dataclass(frozen=True)
class LinkUse:
    """One link class through the step.

    name: for people, such as "NIC out".  kind: nvlink-out, nvlink-in, nic-out, nic-in, leaf-up, leaf-down, ...
    count: links in the class.  capacity: bytes/s of one link.  bytes: carried by one link in the step.
    busy: seconds in which the link carried anything; of a mean of many links, or of hidden traffic, the least time.
    times, rate: step function of one link's throughput: rate[i] bytes/s in [times[i], times[i+1]), times from 0 to
    the step's end, so len(times) == len(rate) + 1. What overlap hides of a collective is in `bytes`, in no instant's rate.
    """

    name: str
    kind: str
    count: int
    capacity: float
    bytes: float
    busy: float
    times: Floats
    rate: Floats


@dataclass(frozen=True)
class StepRecord:
    """One training step, played.

    step_time: seconds, to the global barrier.  timelines: one a rank class, ordered by stage, then rank.
    links: one a link class.  critical: index of the timeline that computes longest, whose seconds are the breakdown.
    processes: SimPy processes played (the ranks when folding is off).  events: SimPy events.
    rank_end: (classes,) seconds at which each class had finished, before the barrier.
    """

    step_time: float
    timelines: tuple[Timeline, ...]
    links: tuple[LinkUse, ...]
    critical: int
    processes: int
    events: int
    rank_end: Floats
