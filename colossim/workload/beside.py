"""Which products a collective of the tensor group runs beside, and in what pieces: TransformerEngine's user buffers.

ring: the t - 1 transfers of the collective go one by one, and the product in t pieces of the group's tokens, a rank's own first
(gather) or last (reduction); what came of a reduction is summed at the end, in a kernel of its own (comm_gemm_overlap.cpp,
split_overlap_ag and _rs of CommOverlapP2PBase). pipeline: the product in some pieces of its columns, and behind each a call of
the collective for it (split_overlap_rs of CommOverlapBase). bulk: the collective whole beside a product that doesn't need it
(bulk_overlap).

Pieces run on three streams (base.py, _NUM_MAX_UB_STREAMS), so that each fills the SMs that the last wave of the one before
leaves: together they take what a batch of products does. Not so a pipeline's in 16 bit: each waits behind the call for the one
before in the GPU's one queue (gemm.py passes gemm_overlap=False there; CUDA_DEVICE_MAX_CONNECTIONS=1, as sequence parallelism
asks for).
"""

from __future__ import annotations

from dataclasses import replace

from colossim.catalog.overlap import Buffer
from colossim.workload.kernels import Gemm, Stream
from colossim.workload.program import Beside, Compute


def beside(products: list[Gemm], buffer: Buffer, ranks: int, *, eight: bool, summed: float = 0.0) -> Beside | None:
    """How a collective of `ranks` runs beside products of one input; None if it shows.

    eight: whether they are in 8 bit.  summed: bytes that a ring reduction's sum moves.
    """
    if buffer.method == "none":
        return None
    tokens, columns = {"ring": (ranks, 1), "pipeline": (1, buffer.splits), "bulk": (1, 1)}[buffer.method]
    cut = [replace(p, m=p.m / tokens, n=p.n / columns) for p in products]
    kept = buffer.sms if buffer.margin else 0
    one_by_one = buffer.method == "pipeline" and not eight
    pieces = cut * columns if one_by_one else [replace(p, batch=p.batch * tokens * columns) for p in cut]
    return Beside(
        products=_on_rest(products, 0),
        pieces=_on_rest(pieces, kept),
        crowded=_on_rest(pieces, buffer.sms),
        piece=_on_rest(cut if buffer.method != "bulk" else [], kept),
        calls=columns,
        last=buffer.method == "pipeline",
        after=Compute((Stream(summed),) if summed and buffer.method == "ring" else ()),
    )


def _on_rest(products: list[Gemm], spared: int) -> Compute:
    return Compute(tuple(replace(p, spared=spared) for p in products))
