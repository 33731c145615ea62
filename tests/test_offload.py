"""What waits on the host: copies a layer at a time, the optimizer's step there, memory of both sides.

f, b: seconds of a layer's kernels forward and backward; c_out, c_in: of a copy; n: layers; m: micro-batches.
"""

from __future__ import annotations

import pytest

from colossim.capacity import fullest_host
from colossim.catalog import load
from colossim.catalog.types import HostMemory
from colossim.cluster import build_cluster
from colossim.errors import DoesNotFit, ScenarioError
from colossim.explain import explain
from colossim.scenario.derive import derive, no_effects
from colossim.scenario.reader import load_scenario
from colossim.shares import equal_shares
from colossim.simulation import simulate
from colossim.workload.build import build_programs
from colossim.workload.kernels import kernel_time
from colossim.workload.memory import layer_activations, memory_by_stage, suggestions
from colossim.workload.offload import APART, Neighbours, host_step_time, neighbours
from colossim.workload.program import Compute, Copied, Copy, HostStep
from colossim.workload.schedule import order
from colossim.workload.transformer import stage_parameters

#: One GPU, 8 layers, 3 micro-batches one after the other.
ONE = (
    "job.model={base: llama3-8b, layers: 8}", "job.parallelism.tensor=1", "job.parallelism.sequence=false",
    "job.parallelism.pipeline=1", "job.parallelism.schedule=1f1b", "job.parallelism.virtual_pipeline=1",
    "job.parallelism.sharding=none", "job.parallelism.data=1", "job.global_batch=3",
    "job.software={base: megatron-2024, host: null}",
)  # fmt: skip
FOUR_STAGES = (
    "job.parallelism.pipeline=4", "job.parallelism.schedule=1f1b", "job.parallelism.virtual_pipeline=1",
)  # fmt: skip


def scenario_of(*changes, name="two-pods"):
    return load_scenario(name, set=changes)


def host(out, back):
    return (f"cluster.nodes.0.type.host.from_gpu={out}", f"cluster.nodes.0.type.host.to_gpu={back}")


def layer_times(scenario):
    """(f, b) of one layer: of all that stands between two copies of a pass."""
    plan = derive(scenario)
    (program,) = build_programs(plan, scenario.job)
    gpu = scenario.cluster.nodes[0].type.gpu
    found = []
    for kind, marker in (("F", "out"), ("B", "in")):
        body = next(p.body for p in program.passes if p.kind == kind)
        at = [i for i, op in enumerate(body) if op == Copied(marker)][2:4]
        found.append(
            sum(
                kernel_time(kernel, gpu, scenario.job.precision)
                for op in body[at[0] : at[1]]
                if isinstance(op, Compute)
                for kernel in op.kernels
            )
        )
    return found


# -- activations -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("out", "back"),
    [("1 TB/s", "1 TB/s"), ("5 GB/s", "1 TB/s"), ("1 TB/s", "2 GB/s"), ("5 GB/s", "4 GB/s")],
    ids=["hidden", "out-bound", "in-bound", "both-bound"],
)
def test_a_layer_takes_its_kernels_or_the_copy_beside_them(out, back):
    """Of n layers n - 1 have a copy beside them each way, the last one stays: m (n - 1) (max(0, c_out - f) + max(0, c_in - b))
    longer than without, all of it in `other`."""
    changes = (*ONE, "job.offload.activations=50%", *host(out, back))
    offloaded = scenario_of(*changes)
    plan = derive(offloaded)
    size = 0.5 * layer_activations(plan, offloaded.job, 0.0)
    rates = offloaded.cluster.nodes[0].type.host
    c_out, c_in = size / rates.from_gpu, size / rates.to_gpu
    f, b = layer_times(offloaded)
    late = 3 * 7 * (max(0.0, c_out - f) + max(0.0, c_in - b))
    assert (late > 0) == (out != "1 TB/s" or back != "1 TB/s")
    without, with_it = simulate(scenario_of(*ONE)), simulate(offloaded)
    assert with_it.step_time_s == pytest.approx(without.step_time_s + late, rel=1e-9)
    assert with_it.breakdown_s["other"] - without.breakdown_s["other"] == pytest.approx(late, abs=1e-12)


def test_copies_that_nothing_hides_add_up():
    """overlap.offload: false, as torch's save_on_cpu: m n (c_out + c_in) longer."""
    changes = (*ONE, "job.offload.activations=100%", "job.overlap.offload=false", *host("10 GB/s", "20 GB/s"))
    offloaded = scenario_of(*changes)
    size = layer_activations(derive(offloaded), offloaded.job, 0.0)
    late = 3 * 8 * (size / 10e9 + size / 20e9)
    assert simulate(offloaded).step_time_s == pytest.approx(simulate(scenario_of(*ONE)).step_time_s + late)


def test_what_passes_ask_for_ahead():
    """1F1B, stage 0 of 2: F0 F1 B0 F2 B1 B2. Each backward pass asks for the next one's last layer; B2 is the last."""
    slots = order("1f1b", 0, 2, 3)
    assert [slot[:2] for slot in slots] == [("F", 0), ("F", 1), ("B", 0), ("F", 2), ("B", 1), ("B", 2)]
    first, middle, last = Neighbours(ahead=7.0), Neighbours(loaded=True, ahead=7.0), Neighbours(loaded=True)
    assert neighbours(slots, [7.0]) == [APART, APART, first, APART, middle, last]
    # On the last stage a micro-batch goes back at once.
    assert neighbours(order("1f1b", 1, 2, 3), [7.0]) == [Neighbours(at_once=True)] * 6


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble"])
@pytest.mark.parametrize("overlap", ["true", "false"])
def test_what_leaves_comes_back(schedule, overlap):
    """On every stage as many bytes, and every copy that is started is waited for."""
    chunks = 2 if schedule == "interleaved" else 1
    scenario = scenario_of(
        "job.parallelism.pipeline=4", f"job.parallelism.schedule={schedule}", "job.offload.activations=80%",
        f"job.parallelism.virtual_pipeline={chunks}", f"job.overlap.offload={overlap}",
    )  # fmt: skip
    for program in build_programs(derive(scenario), scenario.job):
        moved = {"out": 0.0, "in": 0.0}
        waiting = 0.0
        for body in program.bodies:
            for op in body:
                if isinstance(op, Copy):
                    moved[op.direction] += op.size
                    waiting += op.size * (op.direction == "in")
                elif op == Copied("in"):
                    waiting = 0.0
        assert moved["out"] == pytest.approx(moved["in"])
        assert moved["out"] > 0
        assert waiting == 0


def test_a_layer_waits_for_its_own_copy():
    """Backward, stage 0 of 4, steady state: layer i has come before its kernels, and i - 1 is asked for beside them."""
    scenario = scenario_of(*FOUR_STAGES, "job.offload.activations=50%")
    program = build_programs(derive(scenario), scenario.job)[0]
    body = next(p.body for p in program.passes if (p.kind, p.micro_batch) == ("B", 1))
    copies = [op for op in body if isinstance(op, Copy | Copied)]
    size = copies[1].size
    layers = scenario.job.model.layers // 4
    assert copies == [Copied("in"), Copy("in", size)] * layers, "the last one is the next backward pass's"
    first = next(p.body for p in program.passes if (p.kind, p.micro_batch) == ("B", 0))
    assert first[0] == Copy("in", size), "nobody asked for it before"


# -- the optimizer ---------------------------------------------------------------------------------------------------
TOY = HostMemory(memory="1 TB", rate="272 GB/s", from_gpu="10 GB/s", to_gpu="10 GB/s")


@pytest.mark.parametrize(
    ("changes", "ranks", "beside", "each"),
    [
        # 34 B at 272 GB/s among 8: 1 ns; 4 B at 10 GB/s: 0.4 ns; 2 B: 0.2 ns
        ({}, 8, True, 1e-9),
        ({}, 8, False, 1e-9 + 0.4e-9 + 0.2e-9),
        # one rank has the memory for itself: 34 B at 272 GB/s; the link is slower
        ({}, 1, True, 0.4e-9),
        ({"from_gpu": 2e9}, 16, True, 2e-9),
        ({"to_gpu": 1e9}, 16, True, 2e-9),
    ],
)
def test_time_of_a_step_on_the_host(changes, ranks, beside, each):
    """A parameter: 4 B out, 34 B of memory, shared by the node's ranks, 2 B back; the slowest, or their sum."""
    step = HostStep(1e9, ranks, beside)
    assert host_step_time(step, TOY.model_copy(update=changes), 8) == pytest.approx(1e9 * each)


def test_a_step_on_the_host_in_a_whole_step():
    """The GPU takes the gradients' norm, 4 B a parameter, in place of 34; the host its share of the step."""
    changes = ("job.parallelism.sharding=optimizer", "job.software={base: megatron-2024, gradient_bytes: 4}")
    scenario = scenario_of(*changes, "job.offload.optimizer=true")
    plan = derive(scenario)
    result = simulate(scenario)
    stage = result.bottleneck["stage"]
    local = stage_parameters(scenario.job.model, plan.pipeline, plan.layers, stage, plan.tensor, plan.expert)
    own = local.dense / plan.sharding_group
    node = scenario.cluster.nodes[0].type
    alone = simulate(scenario_of(*changes, "job.offload.optimizer=false")).breakdown_s["optimizer"]
    launch = node.gpu.kernel_overhead
    on_host = host_step_time(HostStep(own, plan.world, True), node.host, node.gpus)
    assert result.breakdown_s["optimizer"] == pytest.approx((alone - launch) * 4 / 34 + launch + on_host)


# -- memory ----------------------------------------------------------------------------------------------------------
def test_memory_of_both_sides():
    """One GPU: (1 - s) n K and two layers' share stay; the host has s n K, and 12 of state and 4 of gradient a parameter."""
    without = memory_by_stage(derive(scenario_of(*ONE)), scenario_of(*ONE).job)[0]
    scenario = scenario_of(*ONE, "job.offload={activations: 75 %, optimizer: true}")
    plan, job = derive(scenario), scenario.job
    (memory,) = memory_by_stage(plan, job)
    layer = layer_activations(plan, job, 0.0)
    assert without.activations - memory.activations == pytest.approx(0.75 * (8 - 2) * layer)
    parameters = stage_parameters(job.model, 1, plan.layers, 0, 1, 1).dense
    assert without.optimizer == pytest.approx(12 * parameters)
    assert (memory.optimizer, without.host) == (0, 0)
    assert memory.host == pytest.approx(0.75 * 8 * layer + 16 * parameters)


def test_a_third_layer_waits_between_the_passes_of_a_pipeline():
    """Stage 0 of 4 has 4 micro-batches of n layers in flight: (1 - s) 4 n K and three layers' share stay."""
    scenario = scenario_of(*FOUR_STAGES, "job.offload.activations=100%")
    plan = derive(scenario)
    memory = memory_by_stage(plan, scenario.job)[0]
    layer = layer_activations(plan, scenario.job, 0.0)
    assert memory.activations == pytest.approx(3 * layer)
    assert memory.host == pytest.approx(4 * scenario.job.model.layers // 4 * layer)


def test_a_node_holds_what_its_ranks_put_there():
    scenario = scenario_of("job.offload={activations: 50 %, optimizer: true}")
    plan = derive(scenario)
    stages, cluster = memory_by_stage(plan, scenario.job), build_cluster(scenario.cluster)
    node, held, size = fullest_host(plan, cluster, equal_shares(plan, scenario.job, cluster), stages)
    assert held == pytest.approx(8 * max(stage.host for stage in stages))
    assert size == 2e12
    assert node * 8 < plan.world
    result = simulate(scenario)
    assert (result.memory_bytes["host"], result.memory_bytes["host_capacity"]) == (held, size)
    assert "host" not in simulate(scenario_of()).memory_bytes


def test_a_host_that_is_too_small_is_refused_with_what_would_fit():
    small = "cluster.nodes.0.type.host.memory=60 GB"
    with pytest.raises(DoesNotFit, match=r"CPUs of node 0 have 60\.0 GB, its ranks put") as caught:
        simulate(scenario_of(small, "job.offload.activations=90%"))
    advice = str(caught.value).rpartition("--set ")[2]
    assert advice.startswith("job.offload.activations=")
    simulate(scenario_of(small, advice))
    percent = int(advice.rpartition("=")[2].rstrip("%"))
    with pytest.raises(DoesNotFit):
        simulate(scenario_of(small, f"job.offload.activations={percent + 1}%"))
    with pytest.raises(DoesNotFit, match=r"What would fit: --set job\.offload\.optimizer=false"):
        simulate(scenario_of("cluster.nodes.0.type.host.memory=1 GB", "job.offload.optimizer=true"))


def test_offload_is_suggested_where_hosts_are_known():
    """An optimizer that is too much for the only GPU: nothing but its host would hold it."""
    single = (*ONE, "cluster.nodes.0.count=1", "cluster.nodes.0.type.gpus=1", "cluster.nodes.0.type.rails=1")
    scenario = scenario_of(*single)
    one = memory_by_stage(derive(scenario), scenario.job)[0]
    found = suggestions(scenario, one.peak - one.optimizer / 2)
    assert found[0] == "--set job.offload.optimizer=true"
    unknown = scenario_of(*single, "cluster.nodes.0.type.host=null")
    assert not suggestions(unknown, one.peak - one.optimizer / 2)
    small = scenario_of(*single, "cluster.nodes.0.type.host.memory=1 GB")
    assert not suggestions(small, one.peak - one.optimizer / 2)


# -- what users read -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["activations=50%", "optimizer=true"])
def test_a_node_without_its_host_is_an_error_at_the_key(key, tmp_path):
    field = key.partition("=")[0]
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: a\ncluster:\n  nodes: [{type: aws-p5, count: 1}]\n  fabric: spectrum-x\njob:\n  model: llama3-8b\n"
        f"  sequence_length: 1024\n  global_batch: 8\n  offload:\n    {key.replace('=', ': ').replace('%', ' %')}\n"
    )
    with pytest.raises(ScenarioError) as caught:
        simulate(load_scenario(file))
    (problem,) = caught.value.problems
    assert (problem.field, problem.line, problem.column) == (f"job.offload.{field}", 10, 5 + len(field) + 2)
    assert "the aws-p5 of cluster.nodes.0 doesn't say what memory its CPUs have: give it `host:" in problem.message


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (("job.overlap.offload=false",), "`job.overlap.offload` had no effect: nothing is offloaded"),
        (
            ("job.offload.optimizer=true", "job.optimizer=false"),
            "`job.offload.optimizer` had no effect: steps end without an optimizer",
        ),
    ],
)
def test_keys_without_effect(changes, note):
    scenario = scenario_of(*changes)
    assert note in no_effects(scenario, derive(scenario))
    working = scenario_of("job.offload.optimizer=true", "job.overlap.offload=false")
    assert not [line for line in no_effects(working, derive(working)) if "offload" in line]


def test_the_page_of_check_says_what_is_on_the_host():
    page = explain(scenario_of("job.offload={activations: 50 %, optimizer: true}"))
    assert page["job"]["on the host"] == "50.0 % of what layers keep and the optimizer's state and step, beside kernels"
    assert page["memory a GPU"]["host"].endswith("of 2.00 TB of the CPUs of node 0, the fullest")
    assert "on the host" not in explain(scenario_of())["job"]


def test_hosts_of_the_catalogue_are_sane():
    """A node's memory sustains the copies of all its GPUs in one direction; C2C outruns PCIe."""
    for name in ("dgx-a100", "hgx-h100", "hgx-b200", "gb200-nvl72", "gb300-nvl72", "alps-gh200", "hgx-h800"):
        node = load("nodes", name)
        assert node.host.rate >= node.gpus * max(node.host.from_gpu, node.host.to_gpu) * 0.95
    assert load("nodes", "gb200-nvl72").host.to_gpu > 3 * load("nodes", "hgx-b200").host.to_gpu
