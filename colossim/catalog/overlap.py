"""How a stack runs collectives of a tensor group beside the products that need them, or that they need."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from colossim.catalog.facts import Facts
from colossim.catalog.quantities import Positive, Share

#: A layer's products beside which TransformerEngine has user buffers, by its names (pytorch/module/base.py, initialize_ub).
#: proj and fc2 are row-parallel: their forward pass ends in a reduction, their dgrad begins with a gather of the gradient. qkv
#: and fc1 are column-parallel: their forward pass begins with a gather; backward their input is gathered again beside the
#: dgrad, and what that gives is reduced beside the wgrad.
BufferName = Literal[
    "qkv_fprop", "proj_fprop", "fc1_fprop", "fc2_fprop",
    "qkv_dgrad", "proj_dgrad", "fc1_dgrad", "fc2_dgrad", "qkv_wgrad", "fc1_wgrad",
]  # fmt: skip
#: What can be done for each.
METHODS: dict[BufferName, tuple[str, ...]] = {
    **dict.fromkeys(("qkv_fprop", "fc1_fprop", "proj_dgrad", "fc2_dgrad"), ("none", "ring")),
    **dict.fromkeys(("proj_fprop", "fc2_fprop"), ("none", "ring", "pipeline")),
    **dict.fromkeys(("qkv_dgrad", "fc1_dgrad", "qkv_wgrad", "fc1_wgrad"), ("none", "bulk")),
}
#: Products of the backward pass of column-parallel layers, the head's too, whose collectives a stack may start beside them.
COLUMN_BACKWARD = ("qkv_dgrad", "fc1_dgrad", "head_dgrad", "qkv_wgrad", "fc1_wgrad", "head_wgrad")
Product = BufferName | Literal["head_dgrad", "head_wgrad"]


class Buffer(Facts):
    """How one collective runs beside one product."""

    method: Literal["none", "ring", "pipeline", "bulk"] = Field(
        default="none",
        description="ring: its t - 1 transfers one by one, the product in t pieces; pipeline: the product in pieces, each"
        " reduced beside the next; bulk: the whole beside another product; none: it shows",
    )
    sms: Annotated[int, Field(ge=0, le=32)] = Field(
        default=0, description="SMs that the transfers' kernel runs on, at most 32; 0 if copy engines move the data"
    )
    margin: bool = Field(
        default=False, description="whether the product never uses these SMs, rather than while they are busy"
    )
    splits: Positive = Field(default=4, description="pieces of a pipeline")
    fp8: bool = Field(
        default=False, description="whether a reduction moves 8 bit in an fp8 job; gathers do by `norm_cast`"
    )


_NONE = Buffer()


class TensorOverlap(Facts):
    """What `overlap.tensor` does: a method a product, or a share of each collective that costs nothing."""

    share: Share = Field(
        default=0.0,
        description="part of each collective that is hidden for nothing, for a stack whose methods aren't known",
    )
    backward_sms: Annotated[int, Field(ge=0, le=32)] = Field(
        default=0,
        description="SMs of the library's kernel (a channel each) where the stack starts the backward collectives of a"
        " column-parallel product beside it, with overlap.tensor or without: its input's gather beside the dgrad, the"
        " reduction of the input gradient beside the wgrad; 0: they show",
    )
    qkv_fprop: Buffer = Field(default=_NONE, description="queries, keys and values, and the gather of their input")
    proj_fprop: Buffer = Field(default=_NONE, description="attention's output product, and its reduction")
    fc1_fprop: Buffer = Field(default=_NONE, description="the MLP's first product, and the gather of its input")
    fc2_fprop: Buffer = Field(default=_NONE, description="the MLP's last product, and its reduction")
    qkv_dgrad: Buffer = Field(default=_NONE, description="input gradient of the first, and the gather for the weights")
    proj_dgrad: Buffer = Field(default=_NONE, description="input gradient, and the gather of the output's gradient")
    fc1_dgrad: Buffer = Field(default=_NONE, description="input gradient of the first, and the gather for the weights")
    fc2_dgrad: Buffer = Field(default=_NONE, description="input gradient, and the gather of the output's gradient")
    qkv_wgrad: Buffer = Field(default=_NONE, description="weight gradient, and the reduction of the input gradient")
    fc1_wgrad: Buffer = Field(default=_NONE, description="weight gradient, and the reduction of the input gradient")

    @field_validator(*METHODS)
    @classmethod
    def _possible(cls, buffer: Buffer, info: ValidationInfo) -> Buffer:
        able = METHODS[info.field_name]  # type: ignore[index]
        if buffer.method not in able:
            raise ValueError(f"has no method {buffer.method}: {' or '.join(able)}")
        return buffer

    @model_validator(mode="after")
    def _one_way(self) -> TensorOverlap:
        if self.share and (self.by_product or self.backward_sms):
            raise ValueError(
                "a share of each collective is hidden, or each has its method: leave out `share` or the others"
            )
        return self

    def of(self, product: Product) -> Buffer:
        """The collective beside this product."""
        found: Buffer = getattr(self, product)
        return found

    @property
    def by_product(self) -> bool:
        """Whether any product has a method."""
        return any(self.of(name).method != "none" for name in METHODS)
