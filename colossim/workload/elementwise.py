"""Bytes of element-wise kernels: what a stack's own kernels read and write, an element, fused or eager.

Eager PyTorch runs one kernel an operation, each of which reads its inputs from memory and writes its output; the counts
below follow the sources operation by operation (r and w: bytes read and written an element, 2 in 16 bit, 4 in fp32).
Vectors a row (means, weights) are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from colossim.catalog.types import Model, Software


class Passes(NamedTuple):
    """Bytes an element, forward and backward."""

    forward: float
    backward: float

    def of(self, *, backward: bool) -> float:
        return self.backward if backward else self.forward


#: One kernel: r2 w2; backward reads gradient and input and writes a gradient, the weight's partial sums in passing.
_NORM_FUSED = Passes(4, 6)
#: apex's kernels of 2021, with a second backward one for the weights: 896 GB/s of r2 w2 and 572 GB/s of r2 r2 w2 on an A100
#: of 40 GB, where its successor's 1,258 and 1,163 are what `_NORM_FUSED` says (NVIDIA/apex, pull request 1037); as bytes at
#: 82 % of its 1,555 GB/s.
_NORM_APEX = Passes(5.7, 13.4)
#: It reads and writes fp32 tensors that are cast for it: cast 2+4, norm 4+2; backward norm 2+4+4, the cast 4+2, and apex's
#: second kernel reads gradient and input again for the weight (MixedFusedRMSNorm of an InternEvo residual's `.float()`).
_NORM_FUSED_FP32 = Passes(12, 22)
#: PyTorch's own layer norm of 1.13: forward one kernel; backward a second one reads gradient and input again for weight and
#: bias (4, 10), none at the pace of streams: both take 261, 367 and 560 us for 8,192 rows of 2,048, 3,072 and 4,096 in 16 bit
#: on an A100 (pytorch/pytorch, pull request 87445, its gain taken back), 20 bytes an element at 82 % of 1,555 GB/s.
_LAYERNORM_EAGER = Passes(5, 15)
#: RMS norm in 16 bit, operation by operation: square 4, mean 2, scale 4, weight 4. Backward: weight 4, its gradient 6 + 2;
#: scale 4, its row 6 + 2; mean 2; square 4 + 4 + 6 (a power, times 2, times the gradient); sum of both 6.
_RMSNORM_EAGER = Passes(14, 46)
#: The same in fp32 between casts (torchtitan's RMSNorm, `self._norm(x.float()).type_as(x) * weight`): cast 6, square 8, mean 4,
#: scale 8, cast 6, weight 4. Backward: weight 4, its gradient 6 + 2; cast 6; scale 8, its row 12 + 4; mean 4; square
#: 8 + 8 + 12; sum of both 12; cast 6.
_RMSNORM_EAGER_FP32 = Passes(36, 92)
#: Layer norm in fp32: casts around PyTorch's kernels on fp32: 6 + 8 + 6; backward 6 + 12 + 8 + 6.
_LAYERNORM_EAGER_FP32 = Passes(20, 32)


def norm(software: Software, model: Model) -> Passes:
    """One norm, an element of the hidden vectors."""
    wide = software.norm_precision == "fp32"
    if "norm" in software.fusions:
        narrow = _NORM_FUSED if "norm_gradient" in software.fusions else _NORM_APEX
        return _NORM_FUSED_FP32 if wide else narrow
    if model.norm == "layernorm":
        return _LAYERNORM_EAGER_FP32 if wide else _LAYERNORM_EAGER
    return _RMSNORM_EAGER_FP32 if wide else _RMSNORM_EAGER


def residual(software: Software, model: Model) -> Passes:
    """The sum with the residual, and dropout before it; backward sums the gradients of both branches (2+2+2).

    The sum: 2+2+2. With the norm behind it in one kernel it leaves out what that reads again, and the norm's backward
    kernel reads the other branch's gradient: 4, 2. Dropout with the sum in one kernel writes a mask beside it (7); alone it
    takes 2+2+1; backward 2+1+2.
    """
    add = Passes(4, 2) if "residual" in software.fusions else Passes(6, 6)
    if not model.dropout:
        return add
    return Passes(add.forward + (1 if "dropout_add" in software.fusions else 5), add.backward + 5)


def activation(software: Software, model: Model) -> Passes:
    """The MLP's activation, an element of the width f.

    GELU: r2 w2; backward 2+2+2. Gated in one kernel: r2 r2 w2; backward reads gradient and inputs and writes two: 10. Eager:
    activation 4 and product 6; backward two products 12, activation 6. Squared ReLU in one kernel as GELU; eager: ReLU 4,
    power 4; backward a power 4, times 2 4, times the gradient 6, ReLU 6.
    """
    if model.mlp_matrices == 3:
        return Passes(6, 10) if "gated" in software.fusions else Passes(10, 18)
    if model.activation == "squared-relu" and "squared_relu" not in software.fusions:
        return Passes(8, 20)
    return Passes(4, 6)


def rope(software: Software) -> Passes:
    """Rotary embedding, an element of queries and keys. One kernel: r2 w2.

    Eager (torchtitan's complex numbers): cast 6, product 8, cast 6, and the same backward; halves that are swapped, negated,
    multiplied and summed in 16 bit take as much.
    """
    return Passes(4, 4) if "rope" in software.fusions else Passes(20, 20)


def softmax(software: Software) -> Passes:
    """Scale, mask and softmax of unfused attention, a score. One kernel: r2 w2; backward 2+2+2.

    Eager: scale 4, mask 5, cast 6, softmax in fp32 8, cast 6; backward cast 6, softmax 12, cast 6, mask 5, scale 4.
    """
    return Passes(4, 6) if "softmax" in software.fusions else Passes(29, 33)


#: Cast to 8 bit, an element: r2 w1.
CAST = 3.0
#: Cast and transposition in one kernel, r2 w1 w1, which moves half as much a second as streams do: 4096 x 4096 elements take
#: 51.5 us on an H100 (NVIDIA/TransformerEngine, pull request 101; the kernel that 2024's releases compile at run time is about
#: as fast, pull request 258); as bytes at 82 % of its 3.35 TB/s.
CAST_TRANSPOSE = 8.4
#: Transposition in 8 bit, r1 w1: assumed to move as much a second.
TRANSPOSE = 4.2
#: Dropout of the scores: r2 w2 and a mask; backward 2+1+2.
DROPOUT = Passes(5, 5)
#: The router, a logit: cast to fp32 6, softmax 8, top k 4, the map of who goes where 5; backward the map 4, softmax 12, cast 6.
ROUTER = Passes(23, 22)
#: Routed tokens are put in order (r2 w2), once for the ranks and, with several experts a rank, once more for the experts.
PERMUTE = 4.0


def combine(software: Software) -> float:
    """Putting a routed token's results back, an element: r2 w2; eager, the routing's weight takes another kernel."""
    return PERMUTE if "permute" in software.fusions else PERMUTE + 4.0
