"""Activations that wait on the host, and the optimizer's step there: what is copied, when, and what waits for it.

A GPU has a copy stream each way, first-in first-out, beside its kernels. What a layer keeps leaves after its forward pass
and is back before its backward pass, a layer at a time: at a layer's end the last layer's copy must have left, at its
beginning its own must have come, and the next one's starts (TransformerEngine, pytorch/cpu_offload.py,
AsyncDoubleBufferGroupOffloadHandler; Megatron-Core, core/pipeline_parallel/fine_grained_activation_offload.py, which also
asks for the next backward pass's last layer ahead, and leaves a layer that is needed at once where it is).
Without `overlap.offload` each copy is waited for, as torch's `save_on_cpu` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colossim.catalog.types import HostMemory
from colossim.scenario.job import JobSpec
from colossim.scenario.plan import Plan
from colossim.workload.layer_kernels import WIDTH
from colossim.workload.memory import HOST_GRADIENT, layer_activations
from colossim.workload.program import Copied, Copy, HostStep, Op
from colossim.workload.schedule import Slot

#: Bytes a parameter that the host's memory moves in an Adam step: fp32 weight, momentum and variance read and written, the
#: fp32 gradient read (DeepSpeed, csrc/adam/cpu_adam_impl.cpp, Step_1), and the weight's cast to the 16 bit that go back (its
#: runtime/zero/stage_1_and_2.py since #7309; Megatron-Core sends fp32, which the GPU casts). The gradients' norm is the GPU's.
UPDATE_BYTES = 24.0 + HOST_GRADIENT + (4.0 + WIDTH)


@dataclass(frozen=True)
class Neighbours:
    """What passes before and behind one mean for its copies.

    at_once: whether forward and backward pass of this micro-batch follow each other: its last layer stays on the GPU.
    loaded: whether the backward pass before has asked for this one's last layer.  ahead: bytes of the last layer of the
    backward pass behind, that this one asks for beside its own last; 0 if there is none yet.
    """

    at_once: bool = False
    loaded: bool = False
    ahead: float = 0.0


#: Of a pass without copies beside others.
APART = Neighbours()


def neighbours(slots: Sequence[Slot], last: Sequence[float]) -> list[Neighbours]:
    """Of each pass of a stage. last: (chunks,) bytes that the last layer of a chunk sends to the host, 0 without layers."""
    found = [APART] * len(slots)
    place = {slot: at for at, slot in enumerate(slots)}
    passes = [at for at, (kind, _, _) in enumerate(slots) if kind == "B"]
    loaded = False
    for at, then in zip(passes, [*passes[1:], None], strict=True):
        _, micro_batch, chunk = slots[at]
        forward = place["F", micro_batch, chunk]
        at_once = forward == at - 1
        if at_once:
            found[forward] = Neighbours(at_once=True)
        ahead = 0.0
        if then is not None and last[chunk]:
            forward = place["F", slots[then][1], slots[then][2]]
            ahead = last[slots[then][2]] if forward < at else 0.0
        found[at] = Neighbours(at_once, loaded, ahead)
        loaded = ahead > 0
    return found


@dataclass(frozen=True)
class Offloading:
    """Builds what a job's programs copy to and from the host."""

    plan: Plan
    job: JobSpec

    def layer(self, index: int, routed: float) -> float:
        """Bytes of one micro-batch that layer `index` of a chunk sends there. routed: as in `layer_activations`."""
        share = self.job.offload.activations
        if not share:
            return 0.0
        how = self.job.model_copy(update={"recompute": self.job.recomputed(index)})
        return share * layer_activations(self.plan, how, routed)

    def neighbours(self, slots: Sequence[Slot], last: Sequence[float]) -> list[Neighbours]:
        """Of each pass of a stage, where copies run beside kernels."""
        if not any(last) or not self.job.overlap.offload:
            return [APART] * len(slots)
        return neighbours(slots, last)

    def after_forward(self, sizes: Sequence[float], index: int, near: Neighbours) -> list[Op]:
        """What follows the forward pass of a chunk's layer. sizes: (layers,) bytes of each."""
        if not sizes[index]:
            return []
        if not self.job.overlap.offload:
            return [Copy("out", sizes[index]), Copied("out")]
        stays = near.at_once and index == len(sizes) - 1
        return [Copied("out"), *([] if stays else [Copy("out", sizes[index])])]

    def before_backward(self, sizes: Sequence[float], near: Neighbours) -> list[Op]:
        """What a backward pass begins with: its last layer is asked for, unless it is there."""
        there = near.at_once or near.loaded or not self.job.overlap.offload
        return [Copy("in", sizes[-1])] if sizes and sizes[-1] and not there else []

    def before_layer(self, sizes: Sequence[float], index: int, near: Neighbours) -> list[Op]:
        """What precedes the backward pass of a chunk's layer."""
        if not sizes[index]:
            return []
        if not self.job.overlap.offload:
            return [Copy("in", sizes[index]), Copied("in")]
        following = sizes[index - 1] if index else near.ahead
        return [Copied("in"), *([Copy("in", following)] if following else [])]

    def step(self, parameters: float) -> HostStep:
        """The optimizer's step for so many parameters of a rank."""
        return HostStep(parameters, self.plan.world, self.job.overlap.offload)


def host_step_time(step: HostStep, host: HostMemory, gpus: int) -> float:
    """Seconds from the last gradient's reduction until the updated weights are back. gpus: of the node.

    Ranks of a node share its memory. Piece by piece gradients go out, are taken into the step, and weights come back: the
    slowest of the three sets the pace, where pieces are many (Megatron-Core's --overlap-cpu-optimizer-d2h-h2d has one a
    tensor); one after the other they add up.
    """
    rate = host.rate / min(gpus, step.ranks)
    times = (HOST_GRADIENT / host.from_gpu, UPDATE_BYTES / rate, WIDTH / host.to_gpu)
    return step.parameters * (max(times) if step.beside else sum(times))


def copy_time(copy: Copy, host: HostMemory) -> float:
    """Seconds of a copy, all GPUs of the node copying."""
    return copy.size / (host.from_gpu if copy.direction == "out" else host.to_gpu)
