"""The operations of one transformer layer, kernel by kernel: forward, recompute and backward (models.md 2 and 3).

T tokens of a micro-batch on the rank (b s / c); widths are divided by the tensor group where its ranks share them, and the
tokens too where sequence parallelism lets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from colossim.scenario.derive import Plan
from colossim.scenario.schema import JobSpec
from colossim.workload.kernels import Flash, Gemm, Kernel, Scores, Stream
from colossim.workload.program import ChannelName, Collective, Compute, Op, Operation, Post, Wait

#: Bytes of an activation: 16 bit.
WIDTH = 2.0


def _compute(*kernels: Kernel) -> Compute:
    return Compute(kernels)


@dataclass(frozen=True)
class LayerOps:
    """Builds the operations of layers of one job."""

    plan: Plan
    job: JobSpec

    # -- sizes -------------------------------------------------------------------------------------------------------
    @cached_property
    def tokens(self) -> float:
        return float(self.plan.tokens)

    @cached_property
    def norm_tokens(self) -> float:
        """Tokens whose norms, residuals and dropout this rank computes."""
        return self.tokens / self.plan.tensor if self.sequence else self.tokens

    @property
    def sequence(self) -> bool:
        return self.job.parallelism.sequence and self.plan.tensor > 1

    # -- collectives of the tensor group -----------------------------------------------------------------------------
    def _tensor(self, operation: Operation, tokens: float, *, for_weights: bool = False) -> list[Op]:
        """A collective over `tokens` hidden vectors, hidden in part if the job overlaps them with products."""
        if self.plan.tensor == 1:
            return []
        hidden = self.job.software.tensor_overlap if self.job.overlap.tensor else 0.0
        size = WIDTH * tokens * self.job.model.hidden
        return [Collective("tensor", operation, size, hidden, for_weights)]

    def _gather(self, tokens: float) -> list[Op]:
        return self._tensor("all_gather", tokens) if self.sequence else []

    def _combine(self, tokens: float) -> list[Op]:
        return self._tensor("reduce_scatter" if self.sequence else "all_reduce", tokens)

    def _regather(self, tokens: float) -> list[Op]:
        """The backward pass gathers the input again for the weight gradient (Korthikanti et al. 2022, section 4.2.2)."""
        return self._tensor("all_gather", tokens, for_weights=True) if self.sequence else []

    # -- kernels -----------------------------------------------------------------------------------------------------
    def _eager(self, size: float) -> Stream:
        return Stream(size * self.job.software.elementwise)

    def _casts(self, elements: float) -> list[Kernel]:
        """fp8 casts of a product's input or output gradient: 4 bytes an element (models.md 2)."""
        return [Stream(4.0 * elements)] if self.job.precision == "fp8" else []

    def _norm_forward(self) -> Stream:
        """Half a layer's norms, residual and dropout: 2 (4 + 7) T h a layer, 6 instead of 7 without dropout."""
        passes = 11 if self.job.model.dropout else 10
        return self._eager(WIDTH * passes / 2 * self.norm_tokens * self.job.model.hidden)

    def _norm_backward(self) -> Stream:
        passes = 13 if self.job.model.dropout else 12
        return self._eager(WIDTH * passes / 2 * self.norm_tokens * self.job.model.hidden)

    def _activation(self, tokens: float, width: float, *, backward: bool) -> Stream:
        """The MLP's activation reads its 1 or 2 (gated) inputs and writes one: 2 (inputs + 1) bytes an element of f/t
        forward; backward 2 (2 inputs + 1).
        """
        n = self.job.model.mlp_matrices - 1
        passes = 2 * n + 1 if backward else n + 1
        unfused = 0.0 if self.job.model.activation != "squared-relu" else (8.0 if backward else 4.0)
        return self._eager((WIDTH * passes + unfused) * tokens * width)

    # -- attention ---------------------------------------------------------------------------------------------------
    @cached_property
    def _core(self) -> tuple[list[Kernel], list[Kernel]]:
        """Kernels of the attention core, forward and backward, for one of the c pieces of keys and values."""
        plan, model, stack = self.plan, self.job.model, self.job.software
        heads = plan.micro_batch * model.heads / plan.tensor
        scores = heads * plan.sequence**2 / plan.context**2
        full = 4.0 * scores * model.head_size
        if stack.attention == "flash":
            flops = full / 2 if stack.causal_skip else full
            tiles = heads * plan.sequence / plan.context / 128
            return [Flash(flops, tiles)], [Flash(2.5 * flops, tiles, backward=True)]
        product = Scores(full / 2, WIDTH * scores)
        dropout: list[Kernel] = [self._eager(5 * scores)] if model.dropout else []
        forward: list[Kernel] = [product, self._eager(4 * scores), *dropout, product]
        return forward, [product, product, self._eager((11 if model.dropout else 6) * scores), product, product]

    def core_forward(self) -> list[Op]:
        """Attention over all pieces of keys and values; with context parallelism they go round the ring meanwhile."""
        kernels, _ = self._core
        return self._ring(kernels, 1.0, "kv")

    def core_backward(self) -> list[Op]:
        """Backward; keys, values and their gradients go round."""
        _, kernels = self._core
        return self._ring(kernels, 2.0, "dkv")

    def _ring(self, kernels: list[Kernel], factor: float, tag: str) -> list[Op]:
        hops = self.plan.context
        if hops == 1:
            return [_compute(*kernels)]
        model = self.job.model
        heads = max(1.0, model.kv_heads / self.plan.tensor)
        size = factor * 2 * WIDTH * self.tokens * heads * model.head_size
        ops: list[Op] = []
        for hop in range(hops):
            moving = hop < hops - 1
            ops += [Post(Collective("context", "shift", size), tag)] if moving else []
            ops.append(_compute(*kernels))
            ops += [Wait(tag)] if moving else []
        return ops

    @cached_property
    def _projections(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(n, k) of the products before and after the core."""
        model, t = self.job.model, self.plan.tensor
        kv = max(1.0, model.kv_heads / t)
        qkv = (model.heads / t + 2 * kv) * model.head_size
        return (qkv, model.hidden), (model.hidden, model.heads / t * model.head_size)

    def attention_forward(self) -> list[Op]:
        (qkv, h), (_, inner) = self._projections
        T = self.tokens
        return [
            _compute(self._norm_forward()),
            *self._gather(T),
            _compute(*self._casts(T * h), Gemm(T, qkv, h)),
            *self.core_forward(),
            _compute(*self._casts(T * inner), Gemm(T, h, inner)),
            *self._combine(T),
        ]

    def attention_backward(self) -> list[Op]:
        (qkv, h), (_, inner) = self._projections
        T = self.tokens
        again = self.job.recompute == "selective" and self.job.software.attention == "unfused"
        return [
            *self._gather(T),
            _compute(*self._casts(T * h), *_backward(T, h, inner)),
            *(self.core_forward() if again else []),
            *self.core_backward(),
            *self._regather(T),
            _compute(*self._casts(T * qkv), *_backward(T, qkv, h)),
            *self._combine(T),
            _compute(self._norm_backward()),
        ]

    # -- dense MLP ---------------------------------------------------------------------------------------------------
    def _mlp_forward(self, width: float) -> list[Kernel]:
        T, h, n = self.tokens, float(self.job.model.hidden), self.job.model.mlp_matrices - 1
        up = [Gemm(T, n * width, h)]
        return [
            *self._casts(T * h), *up, self._activation(T, width, backward=False),
            *self._casts(T * width), Gemm(T, h, width),
        ]  # fmt: skip

    def _mlp_backward(self, width: float) -> tuple[list[Kernel], list[Kernel]]:
        T, h, n = self.tokens, float(self.job.model.hidden), self.job.model.mlp_matrices - 1
        down = [*self._casts(T * h), *_backward(T, h, width), self._activation(T, width, backward=True)]
        return down, [*self._casts(T * n * width), *_backward(T, n * width, h)]

    def dense_forward(self, width: float) -> list[Op]:
        T = self.tokens
        return [*self._gather(T), _compute(*self._mlp_forward(width)), *self._combine(T)]

    def dense_backward(self, width: float) -> list[Op]:
        T = self.tokens
        down, up = self._mlp_backward(width)
        return [*self._gather(T), _compute(*down), *self._regather(T), _compute(*up), *self._combine(T)]

    # -- experts -----------------------------------------------------------------------------------------------------
    def _expert(self, size: float) -> list[Op]:
        return [Collective("expert", "all_to_all", size)] if self.plan.expert > 1 else []

    @cached_property
    def _routed(self) -> tuple[float, float]:
        """(tokens that the rank sends, tokens that its tensor group computes): k copies of each."""
        model = self.job.model
        return self.norm_tokens * model.experts_per_token, self.tokens * model.experts_per_token

    def _permute(self) -> Stream:
        """Reads and writes the routed tokens once."""
        return self._eager(2 * WIDTH * self._routed[0] * self.job.model.hidden)

    def _grouped(self, n: float, k: float, *, backward: bool = False) -> list[Kernel]:
        """Products of the local experts, each with its share of the routed tokens (balanced)."""
        local = self.job.model.experts / self.plan.expert
        m = self._routed[1] / local
        return _backward(m, n, k, local) if backward else [Gemm(m, n, k, local)]

    def _expert_kernels(self, *, backward: bool) -> list[Kernel]:
        model, routed = self.job.model, self._routed[1]
        width, h, n = model.expert_ffn / self.plan.tensor, float(model.hidden), model.mlp_matrices - 1
        inner = self._activation(routed, width, backward=backward)
        if backward:
            down = [*self._casts(routed * h), *self._grouped(h, width, backward=True)]
            return [*down, inner, *self._casts(routed * n * width), *self._grouped(n * width, h, backward=True)]
        up = [*self._casts(routed * h), *self._grouped(n * width, h)]
        return [*up, inner, *self._casts(routed * width), *self._grouped(h, width)]

    def _moe(self, *, backward: bool) -> list[Op]:
        """Router, dispatch, experts, combine. Behind an all-to-all the tensor group gathers its tokens and scatters them again.

        Data leave and come back the same way in both directions, so backward mirrors forward.
        """
        model, plan = self.job.model, self.plan
        router = Gemm(self.norm_tokens, model.experts, model.hidden, half=True)
        routers = _backward(self.norm_tokens, model.experts, model.hidden, half=True) if backward else [router]
        size = WIDTH * self._routed[0] * model.hidden
        gathered = self._routed[1]
        shared: list[Op] = []
        if model.shared_ffn:
            width = model.shared_ffn / plan.tensor
            shared = self.dense_backward(width) if backward else self.dense_forward(width)
        dispatch, combine = self._expert(size), self._expert(size)
        if shared and dispatch and self.job.overlap.expert:
            collective = dispatch[0]
            assert isinstance(collective, Collective)
            dispatch = [Post(collective, "dispatch"), *shared, Wait("dispatch")]
            shared = []
        before: list[Kernel] = [self._permute()] if backward else [*routers, self._permute()]
        after: list[Kernel] = [self._permute(), *routers] if backward else [self._permute()]
        return [
            _compute(*before),
            *dispatch,
            *self._gather(gathered),
            _compute(*self._expert_kernels(backward=backward)),
            *self._combine(gathered),
            *combine,
            _compute(*after),
            *shared,
        ]

    # -- a layer -----------------------------------------------------------------------------------------------------
    def forward(self, routed: bool) -> list[Op]:
        """Forward pass of a layer, with experts or without."""
        mlp = self._moe(backward=False) if routed else self.dense_forward(self.job.model.ffn / self.plan.tensor)
        return [*self.attention_forward(), _compute(self._norm_forward()), *mlp]

    def backward(self, routed: bool, *, again: bool = False) -> list[Op]:
        """Backward pass of a layer. again: its forward pass comes first, as with full recompute."""
        mlp = self._moe(backward=True) if routed else self.dense_backward(self.job.model.ffn / self.plan.tensor)
        return [
            *(self.forward(routed) if again else []),
            *mlp,
            _compute(self._norm_backward()),
            *self.attention_backward(),
        ]

    # -- the ends ----------------------------------------------------------------------------------------------------
    def embedding_forward(self) -> list[Op]:
        """Looking tokens up reads and writes a hidden vector each; the tensor group sums its shares of the vocabulary."""
        T, h = self.tokens, float(self.job.model.hidden)
        return [_compute(self._eager(2 * WIDTH * T * h)), *self._combine(T)]

    def embedding_backward(self) -> list[Op]:
        T, h = self.tokens, float(self.job.model.hidden)
        return [*self._gather(T), _compute(self._eager(2 * WIDTH * T * h))]

    def head_forward(self) -> list[Op]:
        """Final norm, logits of the vocabulary's share, and half of the cross entropy's traffic."""
        T, h, share = self.tokens, float(self.job.model.hidden), self.job.model.vocabulary / self.plan.tensor
        loss = Stream(self.job.software.loss_bytes_per_logit / 2 * T * share)
        return [_compute(self._norm_forward()), *self._gather(T), _compute(Gemm(T, share, h, half=True), loss)]

    def head_backward(self) -> list[Op]:
        T, h, share = self.tokens, float(self.job.model.hidden), self.job.model.vocabulary / self.plan.tensor
        loss = Stream(self.job.software.loss_bytes_per_logit / 2 * T * share)
        return [
            _compute(loss),
            *self._regather(T),
            _compute(*_backward(T, share, h, half=True)),
            *self._combine(T),
            _compute(self._norm_backward()),
        ]


def _backward(m: float, n: float, k: float, batch: float = 1.0, *, half: bool = False) -> list[Kernel]:
    """The two products behind (m, n, k): input gradient (m, k, n), weight gradient (n, k, m) that accumulates."""
    return [Gemm(m, k, n, batch, half=half), Gemm(n, k, m, batch, accumulate=True, half=half)]


__all__ = ["WIDTH", "ChannelName", "LayerOps"]
