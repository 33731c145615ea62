"""How long the host takes to launch a pass's kernels, part by part: a floor under what the GPU takes for them (models.md 2).

Operators were counted in Megatron-LM of 2021 to 2023: 16 of a layer's forward pass without collectives and 32 of its
backward pass (megatron/model/transformer.py); of the head the vocabulary-parallel cross entropy and the loss's mean 33 and
10 (core/tensor_parallel/cross_entropy.py, pretrain_gpt.py), of the embedding 9 and 5 (core/tensor_parallel/layers.py). A
collective is one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from colossim.catalog.types import Host
from colossim.scenario.job import JobSpec, Recompute
from colossim.workload.program import Collective, Op, launched_apart
from colossim.workload.schedule import Kind

#: Operators of a layer's forward pass.
OPERATORS = 16
#: Layers' worth of launching that the ends of the model take.
EMBEDDING = (9 + 5) / 48
HEAD = (33 + 10) / 48


def launch_seconds(
    host: Host, job: JobSpec, kind: Kind, layers: Sequence[int], ends: tuple[bool, bool], body: tuple[Op, ...],
    *, begins: bool, share: float = 1.0,
) -> tuple[float, ...]:  # fmt: skip
    """s that the host needs for each part of a pass: embedding, layers and head, or the other way round.

    layers: numbers of the stage's.  ends: whether embedding and head are here.  begins: whether the chunk begins a micro-batch,
    which costs once.  share: of a backward pass that is played in two.
    """
    first, last = ends
    # By operator nearly all kernels are launched again.
    again = {
        how: host.backward_full if how in ("full", "selective-op") else host.backward for how in get_args(Recompute)
    }
    forward = kind == "F"
    once = 1.0 if forward else host.backward
    middle = sum(1.0 if forward else again[job.recomputed(i)] for i in layers)
    floors = [*([EMBEDDING * once] if first else []), middle, *([HEAD * once] if last else [])]
    floors = floors if forward else floors[::-1]
    calls = [sum(isinstance(op, Collective) for op in part) for part in launched_apart(body)]
    seconds = [host.forward * (share * floor + n / OPERATORS) for floor, n in zip(floors, calls, strict=True)]
    seconds[first if forward else last] += share * host.micro_batch if begins else 0.0
    return tuple(seconds)
