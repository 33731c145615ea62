"""The operations of one transformer layer, kernel by kernel: forward, recompute and backward (models.md 2 and 3).

T tokens of a micro-batch on the rank (b s / c); widths are divided by the tensor group where its ranks share them, and the
tokens too where sequence parallelism lets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from colossim.catalog.overlap import COLUMN_BACKWARD, METHODS, Buffer, Product
from colossim.scenario.job import Recompute
from colossim.workload import elementwise
from colossim.workload.beside import beside
from colossim.workload.context import ContextOps
from colossim.workload.kernels import Gemm, Kernel, Stream
from colossim.workload.layer_kernels import WIDTH
from colossim.workload.program import (
    ChannelName,
    Collective,
    Compute,
    Op,
    Operation,
    Post,
    Wait,
    recomputed_by_operator,
)


def _compute(*kernels: Kernel) -> Compute:
    return Compute(kernels)


def _halves(kernels: Sequence[Kernel]) -> tuple[list[Gemm], list[Gemm]]:
    """Products among a backward pass's kernels: of the input's gradient, of the weights'."""
    products = [kernel for kernel in kernels if isinstance(kernel, Gemm)]
    return [p for p in products if not p.accumulate], [p for p in products if p.accumulate]


@dataclass(frozen=True)
class LayerOps(ContextOps):
    """Builds the operations of layers of one job."""

    # -- collectives of the tensor group -----------------------------------------------------------------------------
    def _buffer(self, product: Product | None) -> Buffer:
        """How a collective runs beside a product: those of attention and the dense MLP have user buffers.

        The head and what experts' dispatchers gather and scatter have none. They need sequence parallelism (NeMo,
        nemo/lightning/pytorch/callbacks/megatron_comm_overlap.py). Without one a stack may still start the collectives of a
        column-parallel product's backward pass beside its products.
        """
        overlap = self.job.software.tensor_overlap
        ours = overlap.of(product) if product in METHODS and self.sequence and self.job.overlap.tensor else Buffer()
        started = ours.method == "none" and overlap.backward_sms and product in COLUMN_BACKWARD
        return Buffer(method="bulk", sms=overlap.backward_sms) if started else ours

    def _tensor(
        self,
        operation: Operation,
        tokens: float,
        width: float = WIDTH,
        *,
        for_weights: bool = False,
        product: Product | None = None,
        kernels: Sequence[Kernel] = (),
    ) -> list[Op]:
        """A collective over `tokens` hidden vectors, beside the `product` that is there to hide it, with its `kernels`."""
        ranks, size = self.plan.tensor, width * tokens * self.job.model.hidden
        if ranks == 1 or (for_weights and self.job.software.keeps_gathered):
            return []
        share = self.job.software.tensor_overlap.share if product in METHODS and self.job.overlap.tensor else 0.0
        # A ring's reduction ends in a kernel that reads what came from each rank, and writes the sum.
        summed = size * (1 + 1 / ranks) if operation == "reduce_scatter" else 0.0
        products = [kernel for kernel in kernels if isinstance(kernel, Gemm)]
        hider = beside(products, self._buffer(product), ranks, eight=self.eight, summed=summed)
        return [Collective("tensor", operation, size, share, for_weights, hider)]

    def _gather(self, tokens: float, *, for_weights: bool = False) -> list[Op]:
        return self._tensor("all_gather", tokens, for_weights=for_weights) if self.sequence else []

    def _combine(self, tokens: float, product: Product | None = None, kernels: Sequence[Kernel] = ()) -> list[Op]:
        operation: Operation = "reduce_scatter" if self.sequence else "all_reduce"
        width = 1.0 if self.eight and self._buffer(product).fp8 else WIDTH
        return self._tensor(operation, tokens, width, product=product, kernels=kernels)

    def _gather_input(self, product: Product, kernels: Sequence[Kernel], *, for_weights: bool = False) -> list[Op]:
        """The input of a column-parallel product, or the output's gradient of a row-parallel one.

        The backward pass gathers the input again `for_weights`' gradient (Korthikanti et al. 2022, section 4.2.2), or has it.
        TransformerEngine gathers both after their cast to 8 bit (pytorch/module/layernorm_linear.py, base.py).
        """
        if not self.sequence:
            return []
        width = 1.0 if self._cast_in_norm else WIDTH
        return self._tensor("all_gather", self.tokens, width, for_weights=for_weights, product=product, kernels=kernels)

    def _small(self, numbers: float) -> list[Op]:
        """A sum or maximum of fp32 numbers over the tensor group."""
        return [Collective("tensor", "all_reduce", 4.0 * numbers)] if self.plan.tensor > 1 else []

    def scaling(self, layers: int) -> list[Op]:
        """Delayed scaling: the maxima of a pass, of input, weight and gradient of each layer's four products, meet once."""
        numbers = 4 * 3 * layers
        if not self.eight:
            return []
        if self.job.software.amax_reduction == "tensor":
            return self._small(numbers)
        ranks = self.plan.tensor * self.plan.replica_group
        return [Collective("amax", "all_reduce", 4.0 * numbers)] if ranks > 1 else []

    # -- attention ---------------------------------------------------------------------------------------------------
    def attention_forward(self) -> list[Op]:
        T, h, d = self.tokens, float(self.job.model.hidden), self.job.model.head_size
        inner = self.job.model.heads / self.plan.tensor * d
        first, last = self._qkv[0], Gemm(T, h, inner)
        return [
            _compute(*self._norms(backward=False)),
            *self._gather_input("qkv_fprop", first),
            _compute(*self._casts_of_norm(backward=False), *first, *self._positions(backward=False)),
            *self.core_forward(),
            _compute(*self._casts_of_row(T * inner, backward=False), last),
            *self._combine(T, "proj_fprop", [last]),
        ]

    def attention_backward(self) -> list[Op]:
        T, h, d, query = self.tokens, float(self.job.model.hidden), self.job.model.head_size, self.job.model.heads
        inner = query / self.plan.tensor * d
        again = self.job.recompute == "selective" and self.job.software.attention == "unfused"
        gradients = self._casts(T * (inner + 2 * self._kv_heads * d))
        last, (dgrad, wgrad) = self.gradient_products(T, h, inner), _halves(self._qkv[1])
        return [
            *self._gather_input("proj_dgrad", last[:1]),
            _compute(
                *self._casts_of_gradient(),
                *self._casts_of_row(T * inner, backward=True),
                *last,
                *self.bias_gradient(self.norm_tokens * h, late=True),
            ),
            *self.core_backward(again=again),
            _compute(*self._positions(backward=True)),
            *self._gather_input("qkv_dgrad", dgrad, for_weights=True),
            _compute(*self._casts_of_norm(backward=True), *gradients, *self._qkv[1]),
            *self._combine(T, "qkv_wgrad", wgrad),
            _compute(*self._norms(backward=True)),
        ]

    # -- dense MLP ---------------------------------------------------------------------------------------------------
    def dense_forward(self, width: float) -> list[Op]:
        T, h = self.tokens, float(self.job.model.hidden)
        first, last = self._up(width)[0], Gemm(T, h, width)
        return [
            *self._gather_input("fc1_fprop", first),
            _compute(
                *self._casts_of_norm(backward=False), *first, self._activation(T, width, backward=False),
                *self._casts_of_row(T * width, backward=False), last,
            ),
            *self._combine(T, "fc2_fprop", [last]),
        ]  # fmt: skip

    def dense_backward(self, width: float) -> list[Op]:
        T, h, n = self.tokens, float(self.job.model.hidden), self.job.model.mlp_matrices - 1
        last, first = self.gradient_products(T, h, width), self._up(width)[1]
        dgrad, wgrad = _halves(first)
        down = [
            *self._casts_of_gradient(),
            *self._casts_of_row(T * width, backward=True),
            *last,
            *self.bias_gradient(self.norm_tokens * h, late=True),
            self._activation(T, width, backward=True),
        ]
        up = [*self._casts_of_norm(backward=True), *self._casts(T * n * width), *first]
        again = self._gather_input("fc1_dgrad", dgrad, for_weights=True)
        return [
            *self._gather_input("fc2_dgrad", last[:1]),
            _compute(*down),
            *again,
            _compute(*up),
            *self._combine(T, "fc1_wgrad", wgrad),
        ]

    # -- experts -----------------------------------------------------------------------------------------------------
    def _expert(self, size: float) -> list[Op]:
        return [Collective("expert", "all_to_all", size)] if self.plan.expert > 1 else []

    def _shared_tokens(self, tokens: float, *, back: bool) -> list[Op]:
        """Behind an all-to-all the ranks that share an expert gather their tokens, and scatter their sums again (`back`)."""
        if self.plan.expert_tensor == self.plan.tensor:
            return self._combine(tokens) if back else self._gather(tokens)
        operation: Operation = "reduce_scatter" if back else "all_gather"
        size = WIDTH * tokens * self.job.model.hidden
        return [Collective("expert_tensor", operation, size)] if self.plan.expert_tensor > 1 else []

    def _moe(self, *, backward: bool) -> list[Op]:
        """Router, dispatch, experts, combine.

        Data leave and come back the same way in both directions, so backward mirrors forward. An all-to-all lasts until the
        fullest rank has its tokens: each moves as many.
        """
        model, plan = self.job.model, self.plan
        router: list[Kernel] = [Gemm(self.norm_tokens, model.experts, model.hidden, half=True)]
        if backward:
            router = self.gradient_products(self.norm_tokens, model.experts, model.hidden, half=True)
        logits = self._passes(elementwise.ROUTER, self.norm_tokens * model.experts, backward=backward)
        size = WIDTH * self.norm_tokens * model.experts_per_token * self.load.fullest * model.hidden
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
        order, restore = self._permute(elementwise.PERMUTE), self._permute(elementwise.combine(self.job.software))
        before = restore if backward else [*router, logits, *order]
        after = [*order, logits, *router] if backward else restore
        return [
            _compute(*before),
            *dispatch,
            *self._shared_tokens(gathered, back=False),
            _compute(*self._expert_kernels(backward=backward)),
            *self._shared_tokens(gathered, back=True),
            *combine,
            _compute(*after),
            *shared,
        ]

    # -- a layer -----------------------------------------------------------------------------------------------------
    def forward(self, routed: bool) -> list[Op]:
        """Forward pass of a layer, with experts or without."""
        mlp = self._moe(backward=False) if routed else self.dense_forward(self.job.model.ffn / self.plan.tensor)
        return [*self.attention_forward(), _compute(*self._norms(backward=False)), *mlp]

    def backward(self, routed: bool, recompute: Recompute = "none") -> list[Op]:
        """Backward pass of a layer, and before it what is computed again of its forward pass."""
        mlp = self._moe(backward=True) if routed else self.dense_backward(self.job.model.ffn / self.plan.tensor)
        again = self.forward(routed) if recompute in ("full", "selective-op") else []
        if recompute == "selective-op":
            again = recomputed_by_operator(again)
        return [
            *again,
            *mlp,
            _compute(*self._norms(backward=True)),
            *self.attention_backward(),
        ]

    # -- the ends ----------------------------------------------------------------------------------------------------
    def embedding_forward(self) -> list[Op]:
        """Looking tokens up reads and writes a hidden vector each; the tensor group sums its shares of the vocabulary."""
        T, h = self.tokens, float(self.job.model.hidden)
        return [_compute(self._stream(2 * WIDTH * T * h)), *self._combine(T)]

    def embedding_backward(self) -> list[Op]:
        """Tokens' gradients are summed into a gradient of the whole table, which is cleared before and accumulated behind.

        A gradient of V h/t elements whatever the tokens (ATen, embedding_dense_backward: zeros, w2); it comes from no product
        that could add it to the accumulated one in passing.
        """
        T, h = self.tokens, float(self.job.model.hidden)
        table = self.job.model.vocabulary / self.plan.tensor * h
        return [*self._gather(T), _compute(self._stream(2 * WIDTH * T * h), Stream((WIDTH + self.added_apart) * table))]

    def head_forward(self) -> list[Op]:
        """Final norm, logits of the vocabulary's share, and half of the cross entropy's traffic.

        Over a shared vocabulary the tensor group finds each token's greatest logit, the logit of its label and the sum of the
        exponentials (Megatron-LM, core/tensor_parallel/cross_entropy.py): three numbers a token, one after the other.
        """
        T, h, share = self.tokens, float(self.job.model.hidden), self.job.model.vocabulary / self.plan.tensor
        loss = Stream(self.job.software.loss_bytes_per_logit / 2 * T * share)
        return [
            _compute(self._last_norm(backward=False)),
            *self._gather(T),
            _compute(Gemm(T, share, h, half=True)),
            *self._small(T),
            _compute(loss),
            *self._small(T),
            *self._small(T),
        ]

    @cached_property
    def _head_gradients(self) -> list[Kernel]:
        """The head's products of a backward pass, in 16 bit."""
        model = self.job.model
        return self.gradient_products(self.tokens, model.vocabulary / self.plan.tensor, float(model.hidden), half=True)

    def head_deferred(self) -> list[Op]:
        """The head's weight gradient of a micro-batch that has waited for the end of the passes.

        Inputs are gathered one micro-batch ahead, beside the product before (Megatron-LM, core/utils.py,
        drain_embedding_wgrad_compute): each runs beside a product like its own.
        """
        wgrad = _halves(self._head_gradients)[1]
        again = self._tensor("all_gather", self.tokens, for_weights=True, product="head_wgrad", kernels=wgrad)
        return [*(again if self.sequence else []), _compute(*wgrad)]

    def head_backward(self) -> list[Op]:
        T, share = self.tokens, self.job.model.vocabulary / self.plan.tensor
        loss = Stream(self.job.software.loss_bytes_per_logit / 2 * T * share)
        dgrad, wgrad = _halves(products := self._head_gradients)
        again = (
            self._tensor("all_gather", T, for_weights=True, product="head_dgrad", kernels=dgrad)
            if self.sequence
            else []
        )
        return [
            _compute(loss),
            *again,
            _compute(*products),
            *self._combine(T, "head_wgrad", wgrad),
            _compute(self._last_norm(backward=True)),
        ]


__all__ = ["WIDTH", "ChannelName", "LayerOps"]
