"""Parameters and FLOPs of a transformer, and how they fall on pipeline stages. Pure arithmetic (models.md 1).

h hidden, a heads, g key/value heads, d head size, f MLP width, n_ff matrices of the MLP (2 plain, 3 gated), V vocabulary,
s sequence, E experts of which a token visits k.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from colossim.catalog.types import Model


@dataclass(frozen=True)
class Layer:
    """Parameters of one layer, by how they are sharded.

    attention, mlp (the dense or shared one), expert (one): split over the tensor group.  router, norms: on every rank.
    """

    attention: int
    mlp: int
    expert: int
    router: int
    norms: int


def layer(model: Model, index: int) -> Layer:
    """The parameters of layer `index` (from 0); the first `dense_layers` have no experts."""
    h, d, n = model.hidden, model.head_size, model.mlp_matrices
    q, kv = model.heads * d, model.kv_heads * d
    bias = model.biases
    routed = is_moe(model, index)
    width = model.shared_ffn if routed else model.ffn
    return Layer(
        attention=h * (q + 2 * kv) + q * h + bias * (q + 2 * kv + h),
        mlp=n * h * width + bias * ((n - 1) * width + h) if width else 0,
        expert=n * h * model.expert_ffn if routed else 0,
        router=h * model.experts if routed else 0,
        norms=model.norms * _norm(model),
    )


def is_moe(model: Model, index: int) -> bool:
    """Whether layer `index` has experts."""
    return model.experts > 0 and index >= model.dense_layers


def _norm(model: Model) -> int:
    return model.hidden * (2 if model.norm == "layernorm" else 1)


def embedding(model: Model) -> int:
    """Parameters of the embedding: tokens, and positions if they are learned."""
    return (model.vocabulary + model.positions) * model.hidden


def head(model: Model) -> int:
    """Parameters of the head, whether or not it is the embedding again."""
    return model.vocabulary * model.hidden


def parameters(model: Model) -> int:
    """All parameters, each counted once (a tied head is the embedding)."""
    layers = [layer(model, i) for i in range(model.layers)]
    body = sum(x.attention + x.mlp + model.experts * x.expert + x.router + x.norms for x in layers)
    return body + embedding(model) + (0 if model.tied else head(model)) + _norm(model)


def active_parameters(model: Model) -> int:
    """Parameters that one token uses: k of the experts; embedding and head as in `parameters`."""
    idle = sum(layer(model, i).expert for i in range(model.layers)) * (model.experts - model.experts_per_token)
    return parameters(model) - idle


def layer_flops_per_token(model: Model, index: int, sequence: int, *, causal: bool = True) -> float:
    """FLOPs of one token's forward pass through layer `index`: 2 a weight it meets in a product, and the attention core.

    The core's scores and values take 4 s a d a token, half of it if the masked half isn't counted (`causal`).
    """
    h, d, n = model.hidden, model.head_size, model.mlp_matrices
    core = 4 * sequence * model.heads * d * (0.5 if causal else 1.0)
    routed = is_moe(model, index)
    width = model.shared_ffn if routed else model.ffn
    total = 2 * (h * d * (model.heads + 2 * model.kv_heads) + h * model.heads * d + n * h * width) + core
    if routed:
        total += 2 * (n * h * model.expert_ffn * model.experts_per_token + h * model.experts)
    return total


def forward_flops_per_token(model: Model, sequence: int, *, causal: bool = True) -> float:
    """FLOPs of one token's forward pass: its layers and the head."""
    layers = sum(layer_flops_per_token(model, i, sequence, causal=causal) for i in range(model.layers))
    return 2.0 * model.hidden * model.vocabulary + layers


def model_flops_per_token(model: Model, sequence: int, *, causal: bool = True) -> float:
    """FLOPs that training needs a token: the backward pass takes twice the forward's; recompute isn't counted.

    Our convention for MFU counts the causal half of attention, as DGX Cloud's published MFU does; Megatron's tables and
    PaLM count all of it (causal=False).
    """
    return 3.0 * forward_flops_per_token(model, sequence, causal=causal)


def products(model: Model, index: int, fusions: Collection[str]) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products that one token meets in layer `index`, in order, without those of experts.

    fusions: the stack's: whether queries, keys and values are one product, and what stands before the activation.
    """
    h, d = model.hidden, model.head_size
    q, kv, gates = model.heads * d, model.kv_heads * d, model.mlp_matrices - 1
    routed = is_moe(model, index)
    width = model.shared_ffn if routed else model.ffn
    found = [(h, q + 2 * kv)] if "qkv" in fusions else [(h, q), (h, kv), (h, kv)]
    found.append((q, h))
    if routed:
        found.append((h, model.experts))
    if width:
        found += [(h, gates * width)] if "gate_up" in fusions else [(h, width)] * gates
        found.append((width, h))
    return found


def recomputed_flops_per_token(
    model: Model,
    sequence: int,
    recompute: str,
    attention: str,
    layers: Iterable[int] | None = None,
    fusions: Collection[str] = (),
) -> float:
    """FLOPs a token that recompute adds, for HFU: full = the layers again (all if none are named), selective = the unfused
    attention core again, selective-op = every other product but the last, products of experts, the unfused core.

    Scores that flash attention computes again cost time, but are not counted (models.md 1).
    """
    if recompute == "full":
        return sum(
            layer_flops_per_token(model, i, sequence) for i in (range(model.layers) if layers is None else layers)
        )
    core = 2.0 * sequence * model.heads * model.head_size * model.layers if attention == "unfused" else 0.0
    if recompute == "selective-op":
        for index in range(model.layers):
            core += sum(2.0 * k * n for k, n in products(model, index, fusions)[:-1][1::2])
            if is_moe(model, index):
                # Shared experts come last, else the product behind the activation is the last.
                matrices = model.mlp_matrices - (not model.shared_ffn)
                core += 2.0 * matrices * model.hidden * model.expert_ffn * model.experts_per_token
        return core
    return core if recompute == "selective" else 0.0


@dataclass(frozen=True)
class Stage:
    """Parameters of one rank of a pipeline stage.

    dense: replicated over data x context.  experts: replicated over the expert-data group.
    """

    dense: float
    experts: float


def chunk_layers(pipeline: int, layers: tuple[int, ...], stage: int, chunk: int) -> range:
    """Layers of a chunk. layers: (p v,) of each slot in the order of the model; chunk c on stage i is slot i + p c."""
    slot = stage + pipeline * chunk
    first = sum(layers[:slot])
    return range(first, first + layers[slot])


def local_layer(model: Model, index: int, tensor: int, expert: int, expert_tensor: int | None = None) -> Stage:
    """Parameters of one layer on one rank. More tensor ranks than key/value heads have whole ones, repeated.

    expert_tensor: ranks that share an expert; `tensor` when absent.
    """
    x = layer(model, index)
    local_experts = model.experts / expert if x.expert else 0.0
    repeated = max(1.0, model.kv_heads / tensor) - model.kv_heads / tensor
    heads = 2 * repeated * model.head_size * (model.hidden + model.biases)
    dense = (x.attention + x.mlp) / tensor + heads + x.router + x.norms
    return Stage(dense, x.expert * local_experts / (expert_tensor or tensor))


def local_tensors(
    model: Model, index: int, tensor: int, expert: int, expert_tensor: int | None, fusions: Collection[str]
) -> tuple[list[float], list[float]]:
    """Parameters of each weight of one layer on one rank, of all but experts and of experts, in the order of the model.

    A bias, or a norm's shift, counts with its weight. Sums and arguments as `local_layer`'s.  fusions: the stack's: which
    weights are one tensor.
    """
    h, d, bias, gates = model.hidden, model.head_size, model.biases, model.mlp_matrices - 1
    routed = is_moe(model, index)
    q, kv = model.heads * d / tensor, max(1.0, model.kv_heads / tensor) * d

    def rows(*outputs: float, fused: bool) -> list[float]:
        each = [n * (h + bias) for n in outputs]
        return [sum(each)] if fused else each

    def mlp(width: float) -> list[float]:
        up = rows(*[width] * gates, fused="gate_up" in fusions)
        return [*up, h * width + bias * h / tensor]

    dense: list[float] = [*rows(q, kv, kv, fused="qkv" in fusions), h * q + bias * h / tensor]
    dense += [_norm(model)] * model.norms
    dense += [h * model.experts] if routed else []
    width = model.shared_ffn if routed else model.ffn
    dense += mlp(width / tensor) if width else []
    own = model.experts // expert if routed else 0
    return dense, [h * model.expert_ffn / (expert_tensor or tensor)] * (own * model.mlp_matrices)


def local_ends(model: Model, tensor: int, *, first: bool, last: bool, pipeline: int) -> float:
    """Parameters of embedding, final norm and head on one rank of a stage; a tied head has its copy on the last stage."""
    total = 0.0
    if first:
        total += embedding(model) / tensor
    if last:
        total += _norm(model) + (0.0 if model.tied and pipeline == 1 else head(model) / tensor)
    return total


def stage_parameters(
    model: Model,
    pipeline: int,
    layers: tuple[int, ...],
    stage: int,
    tensor: int,
    expert: int,
    expert_tensor: int | None = None,
) -> Stage:
    """Parameters of one rank of a stage. layers: (p v,) of each chunk in the order of the model."""
    dense = local_ends(model, tensor, first=stage == 0, last=stage == pipeline - 1, pipeline=pipeline)
    experts = 0.0
    for chunk in range(len(layers) // pipeline):
        for index in chunk_layers(pipeline, layers, stage, chunk):
            local = local_layer(model, index, tensor, expert, expert_tensor)
            dense += local.dense
            experts += local.experts
    return Stage(dense, experts)
