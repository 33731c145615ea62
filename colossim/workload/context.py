"""The attention core of a rank whose context group shares the sequence: who gets whose keys, values, queries, and when.

T = b s / c tokens on the rank; a sequence is cut into 2 c pieces, of which rank r has numbers r and 2c - 1 - r, so that
causal work is the same everywhere (Liu et al. 2023; Megatron-Core's context parallelism).
"""

from __future__ import annotations

from colossim.workload.kernels import Kernel
from colossim.workload.layer_kernels import WIDTH, LayerKernels
from colossim.workload.program import Collective, Compute, Op, Operation, Post, Wait


def _compute(*kernels: Kernel) -> Compute:
    return Compute(kernels)


class ContextOps(LayerKernels):
    """Builds the operations of the attention core, by the job's `context_style`."""

    def core_forward(self) -> list[Op]:
        """Attention over the whole sequence, forward."""
        return self._attention(backward=False)

    def core_backward(self, *, again: bool = False) -> list[Op]:
        """Backward. again: scores are computed again first, as unfused attention does with selective recompute."""
        return self._attention(backward=True, again=again)

    def _attention(self, *, backward: bool, again: bool = False) -> list[Op]:
        style = self.job.parallelism.context_style if self.plan.context > 1 else "ring"
        if style == "ring":
            ops = self._ring(2.0, "dkv", backward=True) if backward else self._ring(1.0, "kv", backward=False)
            return [*self._ring(1.0, "kv", backward=False), *ops] if again else ops
        kernels = self._gathered_core if style == "all-gather" else self._whole_core
        core = _compute(*(kernels(backward=False) if again else []), *kernels(backward=backward))
        return self._all_gather(core, backward=backward) if style == "all-gather" else self._ulysses(core, backward)

    def _vectors(self, heads: float) -> float:
        """Numbers of so many heads for the rank's tokens."""
        return self.tokens * heads * self.job.model.head_size

    # -- ring --------------------------------------------------------------------------------------------------------
    def _ring(self, factor: float, tag: str, *, backward: bool) -> list[Op]:
        """Keys and values go round the ring, each hop beside the attention to what has come; backward, gradients too.

        Of another rank's piece each query meets half, but no tile lies on the diagonal.
        """
        hops, length = self.plan.context, self.plan.sequence / self.plan.context
        size = factor * 2 * WIDTH * self._vectors(self._kv_heads)
        ops: list[Op] = []
        for hop in range(hops):
            moving = hop < hops - 1
            keys = length / 2 if self.skips and hop else length
            ops += [Post(Collective("context", "shift", size), tag)] if moving else []
            ops.append(_compute(*self._core(length, keys, causal=self.skips and not hop, backward=backward)))
            ops += [Wait(tag)] if moving else []
        return ops

    # -- all-gather --------------------------------------------------------------------------------------------------
    def _gathered_core(self, *, backward: bool) -> list[Kernel]:
        """A kernel for each of the rank's two pieces, over the keys up to its end.

        Rank r's end after r + 1 and 2c - r of the 2c pieces; the rank in the middle stands for all: (c + 1)/2, (3c + 1)/2.
        """
        c, whole = self.plan.context, float(self.plan.sequence)
        if not self.skips:
            return self._core(whole / c, whole, causal=False, backward=backward)
        piece = whole / (2 * c)
        ends = ((c + 1) / 2 * piece, (3 * c + 1) / 2 * piece)
        return [kernel for end in ends for kernel in self._core(piece, end, causal=True, backward=backward)]

    def _all_gather(self, core: Compute, *, backward: bool) -> list[Op]:
        """Keys, then values are gathered before the core; backward again, and their gradients scattered behind it.

        2 c T (g/t) d bytes each, in 16 bit, exposed (Llama 3, section 3.3.2; TransformerEngine, context_parallel.py,
        AttnFuncWithCPAndKVAllGather). What was gathered is put in the order of the sequence: read and written once; backward
        the two kernels' gradients are summed, r r w, and put back.
        """
        size = WIDTH * self.plan.context * self._vectors(self._kv_heads)

        def both(operation: Operation) -> list[Op]:
            return [Collective("context", operation, size)] * 2

        ops = [*both("all_gather"), _compute(self._stream(2 * 2 * size)), core]
        return [*ops, _compute(self._stream(2 * (3 + 2) * size)), *both("reduce_scatter")] if backward else ops

    # -- ulysses -----------------------------------------------------------------------------------------------------
    def _whole_core(self, *, backward: bool) -> list[Kernel]:
        """1/c of the rank's heads over the whole sequence."""
        whole = float(self.plan.sequence)
        return self._core(whole, whole, causal=self.skips, backward=backward, split=self.plan.context)

    def _ulysses(self, core: Compute, backward: bool) -> list[Op]:
        """Queries, keys, values change from 1/c of the tokens to 1/c of the heads, the core's output back (Jacobs et al. 2023).

        An all-to-all each: 2 T (a/t) d bytes of queries and output, 2 T (g/t) d of keys and of values, of which c ranks repeat
        those that are fewer than c. Backward the gradients go the same ways, the output's first.
        """
        query = self._vectors(self.job.model.heads / self.plan.tensor)
        # More ranks than key/value heads have whole ones.
        kv = self._vectors(max(self._kv_heads, float(self.plan.context)))
        there, back = ((query,), (query, kv, kv)) if backward else ((query, kv, kv), (query,))
        return [*self._exchanged(there), core, *self._exchanged(back)]

    def _exchanged(self, tensors: tuple[float, ...]) -> list[Op]:
        """All-to-alls of tensors of so many numbers; each is packed by receiver before and ordered behind: r w, r w."""
        ops: list[Op] = []
        for numbers in tensors:
            copy = _compute(self._stream(2 * WIDTH * numbers))
            ops += [copy, Collective("context", "all_to_all", WIDTH * numbers), copy]
        return ops
