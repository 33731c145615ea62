"""Tensor collectives beside products: how long both take on toy numbers, which products they are, what a step makes of it."""

from __future__ import annotations

import pytest

from colossim import catalog
from colossim.catalog.overlap import METHODS, Buffer, TensorOverlap
from colossim.errors import ScenarioError
from colossim.scenario.derive import derive, no_effects
from colossim.scenario.reader import load_scenario
from colossim.simulation import simulate
from colossim.workload.beside import beside
from colossim.workload.build import build_programs
from colossim.workload.kernels import Gemm, Stream
from colossim.workload.program import Collective, Compute, Post

#: SMs of the toy GPU, and s that the last wave of a kernel takes beyond its work.
SMS, TAIL = 10, 1.0
#: A product of 40 s, and its last wave.
PRODUCT = Gemm(8, 5, 1)


def price(op):
    """s of kernels: mnk of a batch on all SMs, and a tail; a byte a second."""
    total = 0.0
    for kernel in op.kernels:
        if isinstance(kernel, Stream):
            total += kernel.bytes
        else:
            total += kernel.batch * kernel.m * kernel.n * kernel.k * SMS / (SMS - kernel.spared) + TAIL
    return total


def near(buffer, *, products=(PRODUCT,), eight=True, summed=0.0):
    """Products beside a collective of four ranks."""
    return beside(list(products), Buffer(**buffer), 4, eight=eight, summed=summed)


# -- both together ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("buffer", "call", "both"),
    [
        # four pieces of 10 s: the transfers wait for them: 40 + 1
        ({"method": "ring"}, 30.0, 41.0),
        # three transfers of 20 s, then the last piece, with its tail
        ({"method": "ring"}, 60.0, 60 + 11.0),
        # one of ten SMs copies for 27 s, in which the product (41 s, 40/0.9 + 1 on nine) lags 1 - 41/45.4 behind
        ({"method": "ring", "sms": 1}, 27.0, 41 + 27 * (1 - 41 / (40 / 0.9 + 1))),
        # the product leaves it alone throughout
        ({"method": "ring", "sms": 1, "margin": True}, 27.0, 40 / 0.9 + 1),
        # pieces of 10 s, calls of 5: the last call is left
        ({"method": "pipeline"}, 5.0, 41 + 5.0),
        # pieces of 10 s, calls of 20: the first piece, then the calls
        ({"method": "pipeline"}, 20.0, 11 + 4 * 20.0),
        ({"method": "pipeline", "splits": 2}, 20.0, 41 + 20.0),
        # three of the four calls take half of the SMs
        ({"method": "pipeline", "sms": 5}, 5.0, 41 + 3 * 5 * (1 - 41 / 81) + 5),
        # whole beside whole: the longer one
        ({"method": "bulk"}, 30.0, 41.0),
        ({"method": "bulk"}, 50.0, 50.0),
        ({"method": "bulk", "sms": 5}, 30.0, 41 + 30 * (1 - 41 / 81)),
        ({"method": "bulk", "sms": 5}, 81.0, 81.0),
        ({"method": "bulk", "sms": 5}, 90.0, 90.0),
        ({"method": "bulk", "sms": 5, "margin": True}, 30.0, 81.0),
    ],
)
def test_product_and_collective_together(buffer, call, both):
    """A product of 40 s and a tail of 1: max(product + what the transfers' SMs would have done + the last call, first piece +
    calls)."""
    assert near(buffer).seconds(price, call) == pytest.approx(both)


def test_pieces_of_a_pipeline_in_16_bit_run_one_by_one():
    """Four pieces of 10 s, a tail of 1 each: 44 s and the last call; beside calls of 20 s nothing changes."""
    assert near({"method": "pipeline"}, eight=False).seconds(price, 5.0) == pytest.approx(44 + 5.0)
    assert near({"method": "pipeline"}, eight=False).seconds(price, 20.0) == pytest.approx(11 + 4 * 20.0)
    assert near({"method": "ring"}, eight=False).seconds(price, 30.0) == pytest.approx(41.0)


def test_pieces():
    """A ring cuts tokens among the ranks, a pipeline columns; together the pieces are a batch."""
    ring = near({"method": "ring"}, products=(PRODUCT, Gemm(8, 3, 2)))
    assert ring.pieces.kernels == (Gemm(2, 5, 1, 4), Gemm(2, 3, 2, 4))
    assert ring.piece.kernels == (Gemm(2, 5, 1), Gemm(2, 3, 2))
    pipeline = near({"method": "pipeline", "splits": 5, "sms": 3, "margin": True})
    assert (pipeline.pieces.kernels, pipeline.calls) == ((Gemm(8, 1, 1, 5, spared=3),), 5)
    assert pipeline.products.kernels == (PRODUCT,)
    assert near({}) is None


def test_what_shows():
    """Nothing of what a product hides; all of what is longer by as much; the sum behind a ring's reduction; and more than the
    whole collective where the SMs that the product leaves cost more than that."""

    def shown(buffer, call, summed=0.0):
        return near(buffer, summed=summed).shown(price, call, call)

    assert shown({"method": "bulk"}, 30.0) == 0
    assert shown({"method": "bulk"}, 82.0) == pytest.approx(41 / 82)
    assert shown({"method": "ring"}, 10.0, summed=2.0) == pytest.approx(2 / 10)
    assert shown({"method": "bulk"}, 10.0, summed=2.0) == 0
    assert shown({"method": "bulk", "sms": 5, "margin": True}, 10.0) == pytest.approx((81 - 41) / 10)
    assert shown({"method": "bulk"}, 0.0) == 0


# -- which products --------------------------------------------------------------------------------------------------
def programs(*changes, name="two-pods"):
    scenario = load_scenario(name, set=("job.overlap.tensor=true", *changes))
    plan = derive(scenario)
    return plan, scenario.job, build_programs(plan, scenario.job)


def hidden_in(body):
    """(operation, products) of each collective that runs beside some."""
    calls = [op for op in body if isinstance(op, Collective) and op.beside]
    return [(call.operation, call.beside.products.kernels) for call in calls]


def shapes(calls):
    return [(operation, [(p.m, p.n, p.k, p.accumulate) for p in products]) for operation, products in calls]


def test_products_of_a_layer():
    """Forward: gathers beside qkv and fc1, reductions beside proj and fc2. Backward: gathers of the output's gradient beside
    the dgrad of fc2 and proj, of the input beside that of fc1 and qkv, reductions beside their wgrad."""
    plan, job, found = programs("job.parallelism.schedule=1f1b", "job.parallelism.virtual_pipeline=1")
    model, T, t = job.model, float(plan.tokens), plan.tensor
    h, d, f = model.hidden, model.head_size, model.ffn / t
    q, qkv, up = model.heads / t * d, (model.heads + 2 * model.kv_heads) / t * d, (model.mlp_matrices - 1) * f
    forward, backward = (next(p.body for p in found[1].passes if p.kind == kind) for kind in "FB")
    assert shapes(hidden_in(forward)[:4]) == [
        ("all_gather", [(T, qkv, h, False)]),
        ("reduce_scatter", [(T, h, q, False)]),
        ("all_gather", [(T, up, h, False)]),
        ("reduce_scatter", [(T, h, f, False)]),
    ]
    assert shapes(hidden_in(backward)[:6]) == [
        ("all_gather", [(T, f, h, False)]),
        ("all_gather", [(T, h, up, False)]),
        ("reduce_scatter", [(up, h, T, True)]),
        ("all_gather", [(T, q, h, False)]),
        ("all_gather", [(T, h, qkv, False)]),
        ("reduce_scatter", [(qkv, h, T, True)]),
    ]


def test_what_is_beside_a_product_without_sequence_parallelism():
    """User buffers need it; the summary says so. A share asks for nothing. Without them the reductions of column-parallel
    products' input gradients run beside the weight gradients: two a layer and the head's, no others."""
    changes = ("job.overlap.tensor=true", "job.parallelism.sequence=false")
    scenario = load_scenario("two-pods", set=changes)
    plan = derive(scenario)
    calls = [op for p in build_programs(plan, scenario.job) for b in p.bodies for op in b if isinstance(op, Collective)]
    assert {call.hidden for call in calls} == {0}
    beside = {call for call in calls if call.beside}
    assert beside
    assert {(call.operation, call.beside.late, call.beside.calls, call.beside.piece) for call in beside} == {
        ("all_reduce", True, 1, Compute(()))
    }
    chunk = plan.chunks - 1
    bodies = {p.kind: p.body for p in build_programs(plan, scenario.job)[-1].passes if p.chunk == chunk}
    layers = plan.layers[-1]
    assert [sum(op in beside for op in bodies[kind]) for kind in "FB"] == [0, 2 * layers + 1]
    assert any("sequence parallelism" in note for note in no_effects(scenario, plan))
    share = load_scenario("two-pods", set=(*changes, "job.software.tensor_overlap=75 %"))
    assert not any("overlap.tensor" in note for note in no_effects(share, derive(share)))


def test_zero_bubble_tears_bulk_overlap_apart():
    """Its passes for the weights' gradients come later: a reduction finds no wgrad beside it, a gather no dgrad."""
    changes = ("job.parallelism.schedule=zero-bubble", "job.parallelism.virtual_pipeline=1")
    _, _, found = programs(*changes)
    bodies = {p.kind: p.body for p in found[1].passes}
    assert {len(hidden_in(bodies[kind])) > 0 for kind in "FB"} == {True}
    assert hidden_in(bodies["W"]) == []
    assert all(not p.accumulate for _, products in hidden_in(bodies["B"]) for p in products)


def test_reductions_in_8_bit():
    """`fp8` of a buffer halves a reduction's bytes in an fp8 job, in no other."""

    def sizes(*changes):
        _, _, found = programs(*changes)
        body = next(p.body for p in found[1].passes if p.kind == "F")
        return {op.size for op in body if isinstance(op, Collective) and op.operation == "reduce_scatter" and op.beside}

    eight = ("job.software.tensor_overlap.proj_fprop.fp8=true", "job.software.tensor_overlap.fc2_fprop.fp8=true")
    (whole,) = sizes("job.precision=fp8")
    assert sizes("job.precision=fp8", *eight) == {whole / 2}
    assert sizes(*eight) == {whole}


# -- a step ----------------------------------------------------------------------------------------------------------
def step(*changes):
    return simulate(load_scenario("two-pods", set=changes)).step_time_s


def test_a_step_between_all_and_nothing():
    """The stack's buffers hide something, and not all."""
    shows, free = step("job.overlap.tensor=false"), step("job.overlap.tensor=true", "job.software.tensor_overlap=100 %")
    assert free < step("job.overlap.tensor=true") < shows


def test_a_bad_choice_is_slower_than_none():
    """32 SMs that no product uses cost more than the collectives that they hide: a table for another shape does harm."""
    rows = ", ".join(f"{name}: {{sms: 32, margin: true}}" for name in METHODS)
    assert step("job.overlap.tensor=true", f"job.software.tensor_overlap={{{rows}}}") > step("job.overlap.tensor=false")


def test_a_method_that_is_none_changes_nothing():
    rows = ", ".join(f"{name}: {{method: none}}" for name in METHODS)
    none = step("job.overlap.tensor=true", f"job.software.tensor_overlap={{{rows}}}")
    assert none == step("job.overlap.tensor=false")


# -- what is written -------------------------------------------------------------------------------------------------
def test_a_share_means_what_it_meant():
    """`NN %`, or a bare number where shares take one, hides that part of each collective, and needs no sequence parallelism."""
    base = catalog.entry("software", "megatron-2024")
    kind = catalog.KINDS["software"]
    for written in ("75 %", 0.75):
        assert kind.model_validate({**base, "tensor_overlap": written}).tensor_overlap == TensorOverlap(share=0.75)
    scenario = load_scenario("two-pods", set=("job.overlap.tensor=true", "job.software.tensor_overlap=75 %"))
    bodies = [body for p in build_programs(derive(scenario), scenario.job) for body in p.bodies]
    calls = [
        op.collective if isinstance(op, Post) else op for b in bodies for op in b if isinstance(op, Collective | Post)
    ]
    assert {call.hidden for call in calls if call.channel == "tensor"} == {0.0, 0.75}
    assert all(call.beside is None for call in calls)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["job.software.tensor_overlap.qkv_fprop.method=bulk"], "qkv_fprop: has no method bulk: none or ring"),
        (["job.software.tensor_overlap.fc1_wgrad.method=ring"], "has no method ring: none or bulk"),
        (["job.software.tensor_overlap.fc1_wgrad.method=rong"], "did you mean `ring`"),
        (["job.software.tensor_overlap.fc1_wgrad.sms=33"], "`33` is too large: at most 32"),
        (["job.software.tensor_overlap.fc3_wgrad.sms=3"], "did you mean `fc1_wgrad`"),
        (["job.software.tensor_overlap.share=50 %"], "leave out `share` or the others"),
        (["job.software.tensor_overlap=150 %"], "150 %"),
        (["job.software.tensor_overlap=most"], "most"),
    ],
)
def test_wrong_facts_are_told(changes, says):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("two-pods", set=changes)
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 1
    assert says in told[0]
    assert "--set job.software.tensor_overlap" in told[0]


def test_every_stack_that_ships_takes_the_methods_of_its_base():
    """A recipe's table changes SMs and margins, not what is overlapped."""
    default = catalog.load("software", "megatron-2024").tensor_overlap
    for name in ("nemo-2023", "nemo-2024"):
        own = catalog.load("software", name).tensor_overlap
        assert {product: own.of(product).method for product in METHODS} == {
            product: default.of(product).method for product in METHODS
        }
