"""What a ramp of the global batch costs, and the time to train with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: (sequences a step, steps, s a step) of each batch size below the full one.
Sizes = Sequence[tuple[int, int, float]]


def cost_of_ramp(sizes: Sizes, batch: int, step: float) -> dict[str, Any] | None:
    """What is to be told of it; None if there is none. batch: the full one's sequences.  step: s of its step.

    extra_s: beyond what its sequences would take at the full batch.
    """
    if not sizes:
        return None
    sequences = sum(size * steps for size, steps, _ in sizes)
    time = sum(steps * seconds for _, steps, seconds in sizes)
    return {
        "sequences": sequences,
        "steps": sum(steps for _, steps, _ in sizes),
        "time_s": time,
        "extra_s": time - sequences / batch * step,
        "sizes": [{"global_batch": size, "steps": steps, "step_time_s": seconds} for size, steps, seconds in sizes],
    }


def time_to_train(sequences: float, sizes: Sizes, batch: int, step: float) -> float:
    """s of a run of so many sequences: through the ramp as far as they go, the rest in steps of the full batch."""
    total, left = 0.0, sequences
    for size, steps, seconds in sizes:
        taken = min(float(steps), left / size)
        total += taken * seconds
        left -= taken * size
    return total + left / batch * step
