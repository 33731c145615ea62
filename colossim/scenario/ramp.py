"""The ramp of the global batch at the beginning of a run, as Megatron-Core steps through it."""

from __future__ import annotations

import math

from colossim.scenario.job import BatchRamp


def stretches(ramp: BatchRamp, batch: int) -> list[tuple[int, int]]:
    """(sequences a step, steps) of each batch size below the full `batch`, in order.

    After c sequences a step takes start + int(c / (samples / n)) increment, n = (batch - start) / increment, and the full
    batch once c > samples; sizes that a step jumps over don't occur (Megatron-Core, num_microbatches_calculator.py,
    RampupBatchsizeNumMicroBatchesCalculator.update). Quotients are floats there, and so they are here.
    """
    per_increment = ramp.samples / ((batch - ramp.start) // ramp.increment)

    def increments(consumed: int) -> int:
        return int(consumed / per_increment)

    def size(consumed: int) -> int:
        return batch if consumed > ramp.samples else ramp.start + increments(consumed) * ramp.increment

    found = []
    consumed = 0
    while (now := size(consumed)) < batch:
        # About as many steps as reach the next size; rounding of the quotients decides on the last one.
        steps = max(1, math.ceil((per_increment * (increments(consumed) + 1) - consumed) / now))
        while steps > 1 and size(consumed + (steps - 1) * now) != now:
            steps -= 1
        while size(consumed + steps * now) == now:
            steps += 1
        found.append((now, steps))
        consumed += steps * now
    return found
