"""The kernels of one transformer layer on one rank: products, attention, element-wise kernels, casts.

T tokens of a micro-batch on the rank (b s / c); widths are divided by the tensor group where its ranks share them, and the
tokens too where sequence parallelism lets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from colossim.catalog.types import Fusion
from colossim.scenario.derive import Plan
from colossim.scenario.job import JobSpec
from colossim.workload import elementwise
from colossim.workload.elementwise import Passes
from colossim.workload.kernels import Flash, Gemm, Kernel, Scores, Stream
from colossim.workload.loads import EVEN, Load

#: Bytes of an activation: 16 bit.
WIDTH = 2.0


@dataclass(frozen=True)
class LayerKernels:
    """The kernels of layers of one job. load: of layers with experts."""

    plan: Plan
    job: JobSpec
    load: Load = EVEN

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

    @cached_property
    def eight(self) -> bool:
        """Whether the layers' products, but not the head's and the router's, are in 8 bit."""
        return self.job.precision == "fp8"

    @cached_property
    def _cast_in_norm(self) -> bool:
        """Whether norms write 8 bit, and the tensor group gathers inputs and gradients of products as such."""
        return self.eight and self.fused("norm_cast")

    def fused(self, what: Fusion) -> bool:
        """Whether the stack runs it as one kernel."""
        return what in self.job.software.fusions

    # -- kernels -----------------------------------------------------------------------------------------------------
    def _stream(self, size: float) -> Stream:
        return Stream(size * self.job.software.elementwise)

    def _passes(self, passes: Passes, elements: float, *, backward: bool) -> Stream:
        return self._stream(passes.of(backward=backward) * elements)

    def _casts(self, elements: float) -> list[Kernel]:
        """fp8: a product's input or output gradient is read in 16 bit and written in 8 twice, the second time transposed.

        Hopper's 8-bit products read both operands along k, so that the weight gradient needs both of its transposed
        (TransformerEngine: cast_transpose).
        """
        return [Stream(elementwise.CAST_TRANSPOSE * elements)] if self.eight else []

    def _casts_of_row(self, elements: float, *, backward: bool) -> list[Kernel]:
        """The same for a row-parallel product's input, which under sequence parallelism backward transposes.

        TransformerEngine, pytorch/module/linear.py: cast_to_fp8 where sequence_parallel, fp8_transpose of what is saved.
        """
        if not self.sequence:
            return [] if backward else self._casts(elements)
        each = elementwise.TRANSPOSE if backward else elementwise.CAST
        return [Stream(each * elements)] if self.eight else []

    def _casts_of_norm(self, *, backward: bool) -> list[Kernel]:
        """The same for the norm's output, which a fused norm has written in 8 bit: backward transposes it once gathered."""
        if not self._cast_in_norm:
            return [] if backward else self._casts(self.tokens * self.job.model.hidden)
        return [Stream(elementwise.TRANSPOSE * self.tokens * self.job.model.hidden)] if backward else []

    def _casts_of_gradient(self) -> list[Kernel]:
        """The same for a row-parallel product's output gradient, which is cast before it is gathered, then transposed."""
        h = self.job.model.hidden
        if self._cast_in_norm and self.sequence:
            return [Stream(elementwise.CAST * self.norm_tokens * h), Stream(elementwise.TRANSPOSE * self.tokens * h)]
        return self._casts(self.tokens * h)

    def _norms(self, *, backward: bool) -> list[Kernel]:
        """Half of a layer's norms, and the sum with the residual."""
        model, stack = self.job.model, self.job.software
        elements = self.norm_tokens * model.hidden
        norm = elementwise.norm(stack, model).of(backward=backward) * model.norms / 2
        if self._cast_in_norm and not backward:
            norm -= 1.0
        add = self._passes(elementwise.residual(stack, model), elements, backward=backward)
        return [self._stream(norm * elements), add]

    def _last_norm(self, *, backward: bool) -> Stream:
        model = self.job.model
        passes = elementwise.norm(self.job.software, model)
        return self._passes(passes, self.norm_tokens * model.hidden, backward=backward)

    def _activation(self, tokens: float, width: float, *, backward: bool) -> Stream:
        passes = elementwise.activation(self.job.software, self.job.model)
        return self._passes(passes, tokens * width, backward=backward)

    def _shared(self, n: list[float], k: float, *, late: bool = False) -> tuple[list[Kernel], list[Kernel]]:
        """Products of one input (T, k) with weights of n columns each, forward and backward.

        In one product, or one each, whose input gradients are then summed (r2 r2 w2 a sum).  late: see `bias_gradient`.
        """
        T = self.tokens
        forward: list[Kernel] = [Gemm(T, columns, k) for columns in n]
        sums: list[Kernel] = [self._stream(6.0 * (len(n) - 1) * T * k)] if len(n) > 1 else []
        biases = [x for columns in n for x in self.bias_gradient(T * columns, late=late)]
        return forward, [*(x for columns in n for x in self.gradient_products(T, columns, k)), *biases, *sums]

    def bias_gradient(self, elements: float, *, late: bool = False) -> list[Kernel]:
        """The column sum of an output's gradient, r2, where no product or cast makes it in passing.

        late: of a bias that the kernel behind the product adds (Megatron's skip_bias_add: the activation, the residual's sum).
        """
        if not self.job.model.biases or self.fused("late_bias_gradient" if late else "bias_gradient"):
            return []
        return [self._stream(WIDTH * elements)]

    @cached_property
    def _added(self) -> float | None:
        """Bytes an element of the kernel that adds a weight's gradient to what is accumulated; None if the product does it."""
        return None if self.fused("accumulation") else self.added_apart

    @cached_property
    def added_apart(self) -> float:
        """Bytes an element of that kernel.

        Into an fp32 buffer 2 + 4 + 4, each micro-batch; in 16 bit 2 + 2 + 2, but for the first one; what is reduced and freed
        each micro-batch accumulates as shards.
        """
        if self.job.parallelism.sharding == "parameters":
            return 0.0
        if self.job.software.gradient_bytes == 4:
            return 10.0
        return 6.0 * (1 - 1 / self.plan.micro_batches)

    def gradient_products(
        self, m: float, n: float, k: float, batch: float = 1.0, *, half: bool = False, tokens: float = 0.0
    ) -> list[Kernel]:
        """The two products behind (m, n, k): input gradient (m, k, n), weight gradient (n, k, m) that accumulates."""
        return [
            Gemm(m, k, n, batch, half=half, tokens=tokens),
            Gemm(n, k, m, batch, accumulate=True, half=half, tokens=tokens, added=self._added),
        ]

    # -- attention ---------------------------------------------------------------------------------------------------
    @cached_property
    def _kv_heads(self) -> float:
        """Key/value heads of a rank: more tensor ranks than there are repeat them."""
        return max(1.0, self.job.model.kv_heads / self.plan.tensor)

    @cached_property
    def skips(self) -> bool:
        """Whether attention leaves out the tiles that the causal mask hides."""
        return self.job.software.causal_skip and self.job.software.attention != "unfused"

    def _core(self, queries: float, keys: float, *, causal: bool, backward: bool, split: int = 1) -> list[Kernel]:
        """Kernels of the attention core for so many queries of a sequence and the keys that they meet.

        causal: the last query meets all keys, each one before it a key less.  split: ranks that share the rank's heads.
        """
        plan, model, stack = self.plan, self.job.model, self.job.software
        heads = plan.micro_batch * model.heads / plan.tensor / split
        if stack.attention != "unfused":
            kv = plan.micro_batch * max(1.0, model.kv_heads / plan.tensor / split) if self.fused("gqa") else heads
            return [Flash(stack.attention, heads, kv, queries, keys, model.head_size, causal, backward)]
        scores = heads * queries * keys
        product = Scores(2.0 * scores * model.head_size, WIDTH * scores)
        softmax = self._passes(elementwise.softmax(stack), scores, backward=backward)
        dropout: list[Kernel] = [self._passes(elementwise.DROPOUT, scores, backward=backward)] if model.dropout else []
        if backward:
            return [product, product, *dropout, softmax, product, product]
        return [product, softmax, *dropout, product]

    def _positions(self, *, backward: bool) -> list[Kernel]:
        """What stands between the products and the core: rotary embedding; keys and values copied for heads that share them."""
        model, stack = self.job.model, self.job.software
        query, kv = model.heads / self.plan.tensor, self._kv_heads
        vectors = self.tokens * model.head_size
        kernels: list[Kernel] = []
        if not model.positions:
            kernels.append(self._passes(elementwise.rope(stack), vectors * (query + kv), backward=backward))
        if not self.fused("gqa") and stack.attention != "unfused" and kv < query:
            kernels.append(self._stream(2 * WIDTH * vectors * (query + kv)))
        return kernels

    @cached_property
    def _qkv(self) -> tuple[list[Kernel], list[Kernel]]:
        """Products before the core, forward and backward."""
        d, query, kv = self.job.model.head_size, self.job.model.heads / self.plan.tensor, self._kv_heads
        columns = [(query + 2 * kv) * d] if self.fused("qkv") else [query * d, kv * d, kv * d]
        forward, backward = self._shared(columns, float(self.job.model.hidden))
        if self.job.model.biases and not self.fused("bias"):
            forward.append(self._stream(2 * WIDTH * self.tokens * sum(columns)))
        return forward, backward

    # -- MLP and experts ---------------------------------------------------------------------------------------------
    def _up(self, width: float) -> tuple[list[Kernel], list[Kernel]]:
        """Products before the activation, forward and backward."""
        n = self.job.model.mlp_matrices - 1
        return self._shared(
            [n * width] if self.fused("gate_up") else [width] * n, float(self.job.model.hidden), late=True
        )

    @cached_property
    def _routed(self) -> tuple[float, float]:
        """(tokens that the rank sends, tokens that the ranks compute which share its experts): k copies of each.

        Every rank computes what the fullest one does, for which its expert group waits.
        """
        k = self.job.model.experts_per_token
        return self.norm_tokens * k * self.load.sent, self.tokens * k * self.load.fullest * self._of_tensor

    @property
    def _of_tensor(self) -> float:
        """Part of the tensor group's ranks that share an expert."""
        return self.plan.expert_tensor / self.plan.tensor

    def _permute(self, passes: float) -> list[Kernel]:
        """Routed tokens put in order for the ranks, or back; those that came are put in the order of the rank's experts."""
        h = self.job.model.hidden
        sort = self.plan.expert > 1 and self.job.model.experts > self.plan.expert
        again: list[Kernel] = [self._stream(elementwise.PERMUTE * self._routed[1] * h)] if sort else []
        return [self._stream(passes * self._routed[0] * h), *again]

    def _grouped(self, n: float, k: float, *, backward: bool = False) -> list[Kernel]:
        """Products of the local experts in one kernel, each with its share of the routed tokens."""
        local = self.job.model.experts / self.plan.expert
        m = self._routed[1] / local
        return self.gradient_products(m, n, k, local, tokens=m) if backward else [Gemm(m, n, k, local, tokens=m)]

    def _expert_kernels(self, *, backward: bool) -> list[Kernel]:
        model, routed = self.job.model, self._routed[1]
        width, h, n = model.expert_ffn / self.plan.expert_tensor, float(model.hidden), model.mlp_matrices - 1
        inner = self._activation(routed, width, backward=backward)
        if backward:
            down = [*self._casts(routed * h), *self._grouped(h, width, backward=True)]
            return [*down, inner, *self._casts(routed * n * width), *self._grouped(n * width, h, backward=True)]
        up = [*self._casts(routed * h), *self._grouped(n * width, h)]
        return [*up, inner, *self._casts(routed * width), *self._grouped(h, width)]
