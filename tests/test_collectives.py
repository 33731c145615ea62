"""Collectives alone: closed forms on toy numbers, bytes by enumerating trees, NCCL's choices, and the measured tables."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossim import measured, nccl, trees
from colossim.alone import BUS_FACTOR, Alone, elements
from colossim.catalog.types import Fabric
from colossim.cluster import NIC_IN, NIC_OUT, NVLINK_IN, NVLINK_OUT, build_cluster
from colossim.collective import Library
from colossim.measured import Bench, node_type
from colossim.scenario.schema import ClusterSpec, NodeGroup

#: What a toy machine has: bytes/s of a ring's edge, of the switch and of a NIC; s of a step in a node and between nodes.
RING, SWITCH, NIC, INNER, OUTER = 10.0, 5.0, 1.0, 1.0, 7.0
BASE, BASE_OUT, BASE_SWITCH = 0.5, 0.25, 0.125


def toy(**changes):
    """A node of 8 GPUs on round numbers, without ramps."""
    node = node_type("hgx-h100")
    gpu = node.gpu.model_copy(update={"nvlink": 1000.0})
    curves = {
        "nvlink_ring": node.nvlink_ring.model_copy(
            update={"bandwidth": RING, "half_size": 0.0, "base": BASE, "hop": INNER}
        ),
        "nvls": node.nvls.model_copy(update={"bandwidth": SWITCH, "half_size": 0.0, "base": BASE_SWITCH}),
        "network": node.network.model_copy(
            update={"efficiency": 1.0, "half_size": 0.0, "base": BASE_OUT, "hop": OUTER, "ll128": True}
        ),
    }
    return node.model_copy(update={"gpu": gpu, "nic": NIC, **curves, **changes})


def machines(node, nodes, *, hop="0 s", sharp=False):
    fabric = Fabric.model_validate(
        {"type": "rail-optimized", "link": f"{node.nic:g} B/s", "switch_ports": 1024, "nodes_per_pod": 16,
         "pods_per_block": 8, "hop_latency": hop, "sharp": sharp}
    )  # fmt: skip
    return build_cluster(ClusterSpec(nodes=(NodeGroup(type=node, count=nodes),), fabric=fabric))


def members_of(nodes, each, size=8):
    return (np.arange(nodes)[:, None] * size + np.arange(each)[None, :]).ravel()


def alone(nodes, each, algorithm="ring", protocol="simple", node=None, **options):
    """The first `each` GPUs of each of `nodes` nodes."""
    node = node or toy()
    cluster = machines(node, nodes, **options)
    library = Library((node,), node.nic, frozenset(nccl.CAN), algorithm, protocol)
    return Alone(cluster, members_of(nodes, each, node.gpus), library)


def seconds(operation, size, *where, **options):
    found, timing = alone(*where, **options).seconds(operation, size)
    return found, timing.algorithm


# -- closed forms ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("all_reduce", BASE + 6 * INNER + 12),  # 2(n-1)/n S/B = 6/4 x 80/10, 2(n-1) steps
        ("reduce_scatter", BASE + 3 * INNER + 6),
        ("all_gather", BASE + 3 * INNER + 6),
        ("broadcast", BASE + 3 * INNER + 8),  # S/B: the root puts all of it on its edge
        ("all_to_all", BASE + INNER + 6),  # (n-1)/n S/B, all messages at once
        ("send_receive", BASE + INNER + 8),
    ],
)
def test_a_ring_of_four_in_a_node(operation, expected):
    """n = 4, S = 80 B at B = 10 B/s, a step of 1 s."""
    assert seconds(operation, 80, 1, 4)[0] == pytest.approx(expected)


def test_a_flat_ring_over_two_nodes():
    """N = 2, q = 4, n = 8, S = 32 B, NICs of 1 B/s: 2(n-1)/(n q) S = 14 s on each.

    2(n-1) = 14 steps: the last chunk goes round twice less two edges, 4 of them between nodes: 10 x 1 s + 4 x 7 s.
    One pass, the all-gather: 7 edges, 2 of them between nodes: 5 x 1 s + 2 x 7 s, and 7 s of bytes.
    """
    assert seconds("all_reduce", 32, 2, 4)[0] == pytest.approx(BASE_OUT + 10 * INNER + 4 * OUTER + 14)
    assert seconds("all_gather", 32, 2, 4)[0] == pytest.approx(BASE_OUT + 5 * INNER + 2 * OUTER + 7)


def test_a_ring_of_one_gpu_a_node():
    """n = N = 4, S = 8 B: 2(n-1)/n S = 12 s on a NIC of 1 B/s, 6 steps of 7 s."""
    assert seconds("all_reduce", 8, 4, 1)[0] == pytest.approx(BASE_OUT + 6 * OUTER + 12)


def test_switches_on_the_way_of_a_ring():
    """Four nodes on one leaf whose switch takes 1 s: each of the 2(n-1) = 6 messages in a row passes it once."""
    quick, slow = (seconds("all_reduce", 8, 4, 1, hop=hop)[0] for hop in ("0 s", "1 s"))
    assert slow - quick == pytest.approx(6.0)


def test_a_slow_nvlink_binds_a_ring_over_nodes():
    """q = 4: an NVLink carries 3 of the 4 lanes, 3 x 14 B for S = 32 B: at 1 B/s 42 s instead of the NIC's 14."""
    node = toy(nvlink_ring=toy().nvlink_ring.model_copy(update={"bandwidth": 1.0}))
    assert seconds("all_reduce", 32, 2, 4, node=node)[0] == pytest.approx(BASE_OUT + 10 * INNER + 4 * OUTER + 42)


@pytest.mark.parametrize(("nodes", "each", "depth"), [(2, 1, 1), (4, 2, 2), (8, 4, 3)])
def test_a_double_binary_tree(nodes, each, depth):
    """2 S/q on the busiest NIC (N > 2; S/q for N = 2, a link both ways), 2 log2 N steps, a chain of q-1 in the node."""
    size = 16 * each
    most = (2 if nodes > 2 else 1) * size / each / NIC
    latency = BASE_OUT + 2 * ((each - 1) * INNER + depth * OUTER)
    assert seconds("all_reduce", size, nodes, each, "tree") == (pytest.approx(latency + most), "tree")


def test_the_switch_of_one_node():
    """(1 + 1/n) S on an NVLink: n = 8, S = 80 B at 5 B/s: 18 s. What a launch costs over NCCL's base comes on top."""
    launch = BASE - nccl.BASE["ring"][2]
    assert seconds("all_reduce", 80, 1, 8, "nvls") == (pytest.approx(BASE_SWITCH + launch + 18), "nvls")


def test_the_switches_of_four_nodes():
    """NVLSTree: 2 S/q = 20 s on a NIC (S = 80 B, q = 8), (1 + 1/q) S = 90 B in 18 s beside; 2 log2 N = 4 steps."""
    launch = BASE_OUT - nccl.BASE["ring"][2]
    nic = OUTER - nccl.NETWORK_STEP["ring"][2]  # twice a step
    latency = BASE_SWITCH + launch + 4 * (nccl.NVLS_STEP + nic)
    assert seconds("all_reduce", 80, 4, 8, "nvls") == (pytest.approx(latency + 20), "nvls-tree")


def test_sharp_halves_what_a_nic_carries():
    """S/q = 10 s up a NIC of 1 B/s for S = 80 B, q = 8, where a tree's busiest has 20; NVLink's 18 s bind."""
    launch = BASE_OUT - nccl.BASE["ring"][2]
    nic = (OUTER - nccl.NETWORK_STEP["ring"][2]) / 2
    latency = BASE_SWITCH + launch + 2 * (nccl.COLLNET / 2 + nic)
    assert seconds("all_reduce", 80, 4, 8, "collnet", sharp=True) == (pytest.approx(latency + 18), "collnet")
    fast = toy(nvls=toy().nvls.model_copy(update={"bandwidth": 100.0}))
    found = seconds("all_reduce", 80, 4, 8, "collnet", node=fast, sharp=True)
    assert found[0] == pytest.approx(latency + 10)


def test_a_hierarchy_pays_less_latency_than_a_flat_ring():
    """N = 4, q = 2, S = 16 B: 2(N-1)/N S/q = 12 s on a NIC, 2(q-1) = 2 steps inside and 2(N-1) = 6 outside.

    All-gather: half of everything.
    """
    found = seconds("all_reduce", 16, 4, 2, "hierarchical")
    assert found == (pytest.approx(BASE_OUT + 2 * INNER + 6 * OUTER + 12), "hierarchical")
    assert seconds("all_gather", 16, 4, 2, "hierarchical")[0] == pytest.approx(BASE_OUT + INNER + 3 * OUTER + 6)


def test_pat_takes_log_n_steps():
    """N = n = 8, S = 8 B: (n-1)/n S = 7 s on a NIC; log2 8 = 3 steps of 7 s that overlap 3.5 deep, 2.8 us a rank."""
    found = seconds("all_gather", 8, 8, 1, "pat")
    assert found == (pytest.approx(BASE_OUT + 8 * 2.8e-6 + 3 * OUTER / 3.5 + 7), "pat")


def test_an_all_to_all_over_two_nodes():
    """n = 16, q = 8, S = 16 B: n-q = 8 messages of 1 B leave each NIC of 1 B/s."""
    assert seconds("all_to_all", 16, 2, 8)[0] == pytest.approx(BASE_OUT + OUTER + 8)


def test_a_ramp_doubles_the_time_of_half_size():
    """S = S0 n/8 over NVLink, S = S0 q/8 over the network: the ramp costs as much as the bytes."""
    ring = toy().nvlink_ring.model_copy(update={"half_size": 160.0})
    assert seconds("all_reduce", 80, 1, 4, node=toy(nvlink_ring=ring))[0] == pytest.approx(BASE + 6 * INNER + 24)
    network = toy().network.model_copy(update={"half_size": 64.0})
    found = seconds("all_reduce", 32, 2, 4, node=toy(network=network))[0]
    assert found == pytest.approx(BASE_OUT + 10 * INNER + 4 * OUTER + 28)


def test_protocols_cost_bytes_and_save_steps():
    """LL carries as much as flags need: 38 % of a ring's rate in a node, half between nodes; LL128 92 %."""
    for protocol, inside, outside in (("ll", nccl.LL_SHARE, 0.5), ("ll128", 0.92, 0.92)):
        size = 1e9  # latency of a second or so doesn't count
        assert seconds("all_gather", size, 1, 4, "ring", protocol)[0] == pytest.approx(0.75 * size / RING / inside)
        found = seconds("all_gather", size, 2, 4, "ring", protocol)[0]
        assert found == pytest.approx(7 / 32 * size / outside, rel=1e-6)
    steps = {p: alone(1, 8, "ring", p, node_type("hgx-h100")).seconds("all_reduce", 0)[0] for p in nccl.PROTOCOLS}
    assert steps["ll"] < steps["simple"] < steps["ll128"]


# -- bytes by enumeration ----------------------------------------------------------------------------------------------
def test_the_drawn_tree():
    """The tree of `binary_tree`'s drawing, node by node."""
    parents = {8: 0, 4: 8, 12: 8, 2: 4, 6: 4, 10: 12, 14: 12}
    parents |= {odd: (odd - 1 if odd % 4 == 1 else odd + 1) for odd in range(1, 16, 2)}
    parents = {**parents, **{1: 2, 3: 2, 5: 6, 7: 6, 9: 10, 11: 10, 13: 14, 15: 14}}
    assert trees.binary_tree(16).tolist() == [-1, *(parents[i] for i in range(1, 16))]


@pytest.mark.parametrize("nodes", range(2, 21))
def test_both_trees_span_and_nobody_forwards_twice(nodes):
    """Each is a tree over all nodes with at most two children a node; a node is interior in at most one of them.

    Of odd counts, shifted by one, the root 0 of the first is interior in the second; its four edges are still no more
    than those of the others.
    """
    interior = Counter()
    for parents in trees.double_tree(nodes):
        assert (parents < 0).sum() == 1
        children = Counter(parents[parents >= 0].tolist())
        assert max(children.values()) <= 2
        interior.update(set(children))
        for node in range(nodes):
            way = [node]
            while parents[way[-1]] >= 0:
                way.append(int(parents[way[-1]]))
                assert len(way) <= nodes
    twice = {node for node, count in interior.items() if count > 1}
    assert twice == ({0} if nodes % 2 else set())
    edges = Counter(sender for sender, _, _ in tree_edges(nodes))
    assert max(edges.values()) <= 4


def bytes_on(group, operation, kind):
    """(n,) bytes that a collective of 1 byte puts on links of a kind of its members' GPUs."""
    _, timing = group.seconds(operation, 1.0)
    ((shape,), _) = group.offered(operation)
    footprint = getattr(trees, shape.algorithm)(group.cluster, group.members[None, :])
    column = sum(weights for _, k, weights in footprint.own if k == kind)
    return timing.bytes * column[group.members]


def tree_edges(nodes):
    """(sender, receiver, tree): every edge of the double tree, up and down."""
    for tree, parents in enumerate(trees.double_tree(nodes)):
        for child, parent in enumerate(parents.tolist()):
            if parent >= 0:
                yield child, parent, tree
                yield parent, child, tree


@pytest.mark.parametrize(("nodes", "q"), [*itertools.product(range(2, 21), (1, 2, 4, 8))])
def test_bytes_of_trees_switches_and_sharp(nodes, q):
    """network.md's table, per byte of the buffer, by walking the trees: half of a lane's 1/q goes up and down each.

    NIC: mean 2 (N-1)/N /q, at most 2/q (tree, NVLSTree), 1/q (SHARP). NVLink: 2 (q-1)/q (tree), 1 + 1/q (switches).
    """
    out, into = np.zeros((nodes, q)), np.zeros((nodes, q))
    for sender, receiver, _ in tree_edges(nodes):
        out[sender] += 0.5 / q
        into[receiver] += 0.5 / q
    assert out.mean() == pytest.approx(2 * (nodes - 1) / nodes / q)
    assert out.max() <= 2 / q
    tree = alone(nodes, q, "tree")
    assert bytes_on(tree, "all_reduce", NIC_OUT) == pytest.approx(out.ravel())
    assert bytes_on(tree, "all_reduce", NIC_IN) == pytest.approx(into.ravel())
    assert bytes_on(tree, "all_reduce", NVLINK_OUT) == pytest.approx(2 * (q - 1) / q)
    assert bytes_on(tree, "all_reduce", NVLINK_IN) == pytest.approx(2 * (q - 1) / q)
    if q >= trees.FEWEST_ON_SWITCH:
        nvls = alone(nodes, q, "nvls")
        assert bytes_on(nvls, "all_reduce", NIC_OUT) == pytest.approx(out.ravel())
        assert bytes_on(nvls, "all_reduce", NVLINK_OUT) == pytest.approx(1 + 1 / q)
    sharp = alone(nodes, q, "collnet", sharp=True)
    for kind in (NIC_OUT, NIC_IN):
        assert bytes_on(sharp, "all_reduce", kind) == pytest.approx(1 / q)
    assert bytes_on(sharp, "all_reduce", NVLINK_OUT) == pytest.approx(1 + 1 / q)


@pytest.mark.parametrize("nodes", range(2, 21))
def test_bytes_and_steps_of_pat(nodes):
    """(N-1)/N on every NIC, each way: the steps of 1, 2, 4, ... carry all chunks but one's own."""
    pat = alone(nodes, 1, "pat")
    for kind in (NIC_OUT, NIC_IN):
        assert bytes_on(pat, "all_gather", kind) == pytest.approx((nodes - 1) / nodes)
    ((shape,), _) = pat.offered("all_gather")
    assert shape.network_steps == (nodes - 1).bit_length()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_bytes_of_the_switch_in_a_node(n):
    nvls = alone(1, n, "nvls")
    assert bytes_on(nvls, "all_reduce", NVLINK_OUT) == pytest.approx(1 + 1 / n)
    assert bytes_on(nvls, "all_reduce", NIC_OUT) == pytest.approx(0)


# -- broadcasts over nodes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", [1, 2])
def test_a_broadcast_hands_chunks_on_from_node_to_node(shared):
    """N = 4, q = 2, n = 8, NICs of 1 B/s, S of 10 chunks a channel, of which a lane has two, or one where two GPUs share a NIC.

    Latency: 7 hops of which 4 between nodes. The first chunks wait for 3 of these: 3 x 2 c / 1 B/s. Bytes: S/2 on each lane, in
    LL128 over 0.92 B/s, which lets lines through in a node; Simple hands on whole chunks on the 3 hops in nodes, too.
    """
    node = toy(gpus_per_nic=shared)
    for protocol, rate in (("simple", 1.0), ("ll128", 0.92)):
        chunk = nccl.STEP_BYTES[protocol]
        on_lane = chunk * 2 / shared
        size = 2 * 10 * on_lane
        group = alone(4, 2, protocol=protocol, node=node)
        shapes, _ = group.offered("broadcast")
        timing = group.library.price("broadcast", size, shapes[0], protocol)
        hops = group.library.price("broadcast", 0, shapes[0], protocol).latency
        inside = 3 * on_lane / RING if protocol == "simple" else 0.0
        assert timing.latency == pytest.approx(hops + 3 * on_lane / rate + inside)
        assert timing.bytes / timing.cap == pytest.approx(size / 2 / rate)
        # Less than a chunk a channel: all of it at once.
        small = group.library.price("broadcast", size / 100, shapes[0], protocol)
        assert small.latency - hops == pytest.approx((timing.latency - hops) / 10)


def test_payload_of_a_step():
    """NCCL's device.h: 8 lines of 16 B a thread, half data, 512 threads; 120 x 8 B for 640, 15/16 data; 4 MiB / 8."""
    assert nccl.STEP_BYTES == {"ll": 32768, "ll128": 576_000, "simple": 524_288}


def test_the_tuners_price_of_a_broadcast():
    """Over nodes n steps as if all were between nodes, in a node one: its channels all go round the same way."""
    facts = nccl.Nominal(ring=100e9, nic=10e9, nic_latency=1.0, nvls=0.0)
    over, inside = (alone(nodes, 8).offered("broadcast")[0][0] for nodes in (4, 1))
    assert nccl.estimate("broadcast", 0, "ring", "ll", over, facts) == pytest.approx((6.6 + 32 * 2.7) * 1e-6)
    assert nccl.estimate("broadcast", 0, "ring", "simple", over, facts) == pytest.approx((8.4 + 32 * 14) * 1e-6)
    assert nccl.estimate("broadcast", 0, "ring", "simple", inside, facts) == pytest.approx((8.4 + 3.4) * 1e-6)
    assert nccl.estimate("broadcast", 80e9, "ring", "simple", over, facts) == pytest.approx(1.0, rel=1e-3)


def test_ll128_needs_both_ends_of_a_ring_behind_their_nics_switch():
    """DGX A100, two GPUs a PCIe switch: all eight, neighbours, or one a node run LL128 over nodes; every second GPU doesn't."""
    node = node_type("dgx-a100")
    cluster = machines(node, 4)
    library = Library((node,), node.nic, frozenset({"ring", "tree"}))
    for local, runs in ((range(8), True), ((2, 3), True), ((5,), True), ((0, 2, 4, 6), False), ((0, 4), False)):
        members = np.array([8 * n + i for n in range(4) for i in local])
        taken = {Alone(cluster, members, library).row("all_reduce", 2**power).protocol for power in range(3, 30)}
        assert ("ll128" in taken) == runs
    # One node alone doesn't reach for its NICs, and Hopper relays over NVLink.
    assert "ll128" in {
        Alone(cluster, np.arange(0, 8, 2), library).row("all_reduce", 2**p).protocol for p in range(3, 30)
    }
    assert node_type("hgx-h100").gpus_per_switch is None


def test_a_ring_that_crosses_a_node_from_switch_to_switch():
    """S = 1e9 B over NICs of 1 B/s. Two GPUs a node: 2(n-1)/n S/q on each of q = 2 NICs, n = 8: 7/8 S. At a quarter of the rate
    if they are behind two switches, not if they are behind one, have a node each, or have relays (no `gpus_per_switch`)."""
    curve = toy().network.model_copy(update={"crossing": 0.25})
    size = 1e9  # latency of a few seconds doesn't count

    def crossing(local, per_switch):
        node = toy(network=curve, gpus_per_switch=per_switch)
        library = Library((node,), node.nic, frozenset({"ring"}), "ring", "simple")
        members = np.array([8 * n + i for n in range(4) for i in local])
        return Alone(machines(node, 4), members, library).seconds("all_reduce", size)[0]

    assert crossing((0, 2), 2) == pytest.approx(4 * 7 / 8 * size, rel=1e-6)
    assert crossing((0, 1), 2) == pytest.approx(7 / 8 * size, rel=1e-6)
    assert crossing((0, 2), None) == pytest.approx(7 / 8 * size, rel=1e-6)
    assert crossing((5,), 2) == pytest.approx(1.5 * size, rel=1e-6)


# -- nccl-tests' conventions -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 8, 1000])
def test_bus_bandwidth_over_algorithm_bandwidth(n):
    """PERFORMANCE.md: 2(n-1)/n, (n-1)/n where a rank keeps or holds its own part, 1 where all goes one way."""
    for operation in BUS_FACTOR:
        expected = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1, "send_receive": 1}.get(operation, (n - 1) / n)
        assert BUS_FACTOR[operation](n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("operation", "size", "ranks", "width", "count"),
    [
        ("all_reduce", 1024, 8, 4, 256),
        ("broadcast", 1027, 8, 4, 256),
        ("send_receive", 1024, 8, 2, 512),
        ("all_gather", 1024, 8, 4, 32),  # one rank's part
        ("reduce_scatter", 2**20, 72, 4, 3640),  # 1 MiB / 4 / 72 = 3640.9, a multiple of 4 floats
        ("all_to_all", 1 << 20, 12, 2, 43688),  # 43690.7, a multiple of 8 halves
        ("all_gather", 64, 8, 4, 0),  # 8 bytes a rank: less than 16
    ],
)
def test_counts_are_those_of_nccl_tests(operation, size, ranks, width, count):
    assert elements(operation, size, ranks, width) == count


def test_a_row():
    """An all-gather of 1,300 B among 8: 40 floats a rank, timed as the 1,280 B that are left. Of 64 B none is left."""
    row = alone(1, 8).row("all_gather", 1300)
    assert (row.size, row.count, row.type, row.redop) == (1280, 40, "float", "none")
    assert row.time == pytest.approx(BASE + 7 * INNER + 7 / 8 * 1280 / RING)
    assert row.algbw == pytest.approx(1280 / row.time)
    assert row.busbw == pytest.approx(row.algbw * 7 / 8)
    assert alone(1, 8).row("all_reduce", 64).redop == "sum"
    assert alone(1, 8).row("all_gather", 64).busbw == 0


# -- what NCCL takes ---------------------------------------------------------------------------------------------------
def real(name, nodes, each, algorithm="auto", protocol="auto", sharp=False):
    node = node_type(name)
    able = {"ring", "tree", "pat", "hierarchical"} | ({"nvls"} if node.nvls else set())
    able |= {"collnet"} if sharp and node.nvls else set()
    able -= {"hierarchical"} - {algorithm}
    cluster = machines(node, nodes, hop="600 ns", sharp=sharp)
    library = Library((node,), node.nic, frozenset(able), algorithm, protocol)
    return Alone(cluster, members_of(nodes, each, node.gpus), library)


def test_eight_h100_reach_480_gigabytes_a_second():
    row = real("hgx-h100", 1, 8).row("all_reduce", 8 * 2**30)
    assert row.busbw == pytest.approx(480e9, rel=0.03)
    assert row.algorithm == "nvls"


@pytest.mark.parametrize(("name", "most"), [("hgx-h200", 4), ("hgx-b200", 5)])
def test_few_gpus_take_the_ring(name, most):
    """NCCL's tuner prices the switch by its channels, one a GPU of the group; measured by stas00/ml-engineering."""
    taken = {n: real(name, 1, n).row("all_reduce", 8 * 2**30).algorithm for n in range(2, 9)}
    assert taken == {n: "ring" if n <= most else "nvls" for n in range(2, 9)}


@pytest.mark.parametrize("name", ["hgx-a100", "hgx-h100", "hgx-b200"])
@pytest.mark.parametrize("nodes", [1, 4, 32])
def test_small_messages_take_ll_and_large_ones_simple(name, nodes):
    """And never back: LL, LL128, Simple in this order, as sizes grow."""
    group = real(name, nodes, 8)
    rows = [group.row("all_reduce", 2**power) for power in range(3, 35)]
    assert (rows[0].protocol, rows[-1].protocol) == ("ll", "simple")
    places = [nccl.PROTOCOLS.index(row.protocol) for row in rows]
    assert places == sorted(places)


def test_small_all_reduces_over_many_nodes_take_the_tree():
    """log2 N steps instead of N; over two nodes in a ring there is little to save."""
    assert real("hgx-h100", 64, 8).row("all_reduce", 2**16).algorithm == "tree"
    assert real("hgx-a100", 64, 8).row("all_reduce", 2**16).algorithm == "tree"
    assert real("hgx-h100", 64, 8).row("all_reduce", 2**33).algorithm == "nvls-tree"
    assert real("hgx-a100", 64, 8).row("all_reduce", 2**33).algorithm == "ring"


def test_reduce_scatters_of_one_gpu_a_node_take_pat():
    """A ring of 64 nodes pays 63 steps of 14 us in Simple; for long messages the ring's bandwidth wins."""
    assert real("hgx-h100", 64, 1).row("reduce_scatter", 2**22).algorithm == "pat"
    assert real("hgx-h100", 64, 1).row("reduce_scatter", 2**34).algorithm == "ring"
    assert real("hgx-h100", 64, 2).row("reduce_scatter", 2**22).algorithm == "ring"


def test_one_gpu_a_node_has_no_switch():
    """A data-parallel rail runs plain trees, also where NVLS is asked for."""
    for asked in ("auto", "nvls"):
        group = real("hgx-h100", 64, 1, asked)
        assert {group.row("all_reduce", 2**power).algorithm for power in range(3, 35)} == {"tree", "ring"}
    assert real("hgx-h100", 64, 2, "nvls").row("all_reduce", 2**30).algorithm == "nvls-tree"


@pytest.mark.parametrize(
    ("algorithm", "protocol", "operation", "nodes", "each", "taken"),
    [
        ("ring", "simple", "all_reduce", 4, 8, {("ring", "simple")}),
        ("ring", "ll", "all_gather", 4, 8, {("ring", "ll")}),
        ("tree", "ll128", "all_reduce", 4, 8, {("tree", "ll128")}),
        ("nvls", "auto", "all_reduce", 1, 8, {("nvls", "simple")}),
        ("collnet", "auto", "all_reduce", 4, 8, {("collnet", "simple")}),
        ("pat", "auto", "all_gather", 8, 1, {("pat", "simple")}),
        # What can't be done is left to the tuner: a tree gathers nothing, PAT has one GPU a node, NVLS only Simple.
        ("tree", "simple", "all_gather", 4, 8, {("ring", "simple")}),
        ("pat", "simple", "all_gather", 4, 8, {("ring", "simple")}),
        ("nvls", "ll", "all_reduce", 1, 8, {("nvls", "simple")}),
        ("tree", "simple", "all_reduce", 1, 8, {("nvls", "simple")}),
    ],
)
def test_what_is_forced_is_obeyed_where_it_can_be(algorithm, protocol, operation, nodes, each, taken):
    group = real("hgx-h100", nodes, each, algorithm, protocol, sharp=True)
    rows = [group.row(operation, 2**power) for power in range(12, 34, 3)]
    assert {(row.algorithm, row.protocol) for row in rows} == taken


def test_a_fabric_without_ll128_never_runs_it():
    """EFA: `network.ll128: false`."""
    assert not node_type("aws-p4de").network.ll128
    taken = {real("aws-p4de", 4, 8).row("all_reduce", 2**power).protocol for power in range(3, 35)}
    assert taken == {"ll", "simple"}


WAYS = [
    *itertools.product(("all_reduce",), ("ring", "tree"), nccl.PROTOCOLS),
    *itertools.product(("all_gather", "reduce_scatter", "broadcast"), ("ring",), nccl.PROTOCOLS),
    *(("all_reduce", name, "simple") for name in ("nvls", "hierarchical", "collnet")),
    ("all_to_all", "ring", "simple"),
    ("send_receive", "ring", "simple"),
]
NODES = ("hgx-a100", "hgx-h100", "hgx-h200", "hgx-b200", "aws-p4de", "aws-p6-b200", "alps-gh200", "gb200-nvl72")


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NODES),
    nodes=st.sampled_from((1, 2, 3, 8)),
    each=st.sampled_from((1, 2, 4)),
    way=st.sampled_from(WAYS),
    sizes=st.tuples(st.integers(1, 2**36), st.integers(1, 2**36)),
)
def test_more_bytes_never_take_less_time(name, nodes, each, way, sizes):
    """Where algorithm and protocol are forced. (NCCL's own choices do make larger messages faster, here and there.)"""
    if nodes * each < 2:
        return
    operation, algorithm, protocol = way
    group = real(name, nodes, each, algorithm, protocol, sharp=True)
    less, more = (group.seconds(operation, size) for size in sorted(sizes))
    if (less[1].algorithm, less[1].protocol) == (more[1].algorithm, more[1].protocol):
        assert less[0] <= more[0] * (1 + 1e-12)


@pytest.mark.parametrize("name", [name for name in NODES if node_type(name).nvls is None])
def test_types_without_a_switch_never_take_it(name):
    taken = {real(name, 1, min(8, node_type(name).gpus)).row("all_reduce", 2**p).algorithm for p in range(3, 35)}
    assert "nvls" not in taken


# -- the measured tables -----------------------------------------------------------------------------------------------
def test_the_scoreboard():
    """Half of the measured rows within 10 % above 1 MiB, within 20 % below."""
    report = measured.report()
    assert report["overall"]["n"] >= 500
    assert report["overall"]["median_pct_large"] <= 10
    assert report["overall"]["median_pct_small"] <= 20
    assert report["flagged"] == sum(report["flags"].values())
    groups = report["groups"]
    assert sum(group["n"] for group in groups.values()) == report["overall"]["n"]
    assert groups[report["worst_group"]]["median_pct"] == max(group["median_pct"] for group in groups.values())


def test_points_and_report_say_the_same():
    """A time's bandwidth is size/time x the bus factor; error is in time: 1 + error = measured over predicted rate."""
    points = measured.points()
    assert len(points) == len(measured.counted())
    for point in points:
        assert point.measured / point.predicted == pytest.approx(1 + point.error)
        if point.row.quantity == "time":
            factor = BUS_FACTOR[point.row.operation](point.row.gpus)
            assert point.measured == pytest.approx(point.row.bytes * factor / point.row.value)
    report = measured.report()
    own = [100 * abs(point.error) for point in points if point.row.group == report["worst_group"]]
    assert report["groups"][report["worst_group"]]["median_pct"] == pytest.approx(np.median(own))


def test_a_bench_is_one_group_of_a_node_type():
    """Two nodes of four GPUs each when a row says 8 GPUs on 2 nodes."""
    row = next(row for row in measured.counted() if row.nodes > 1)
    group = Bench().alone(row)
    assert group.size == row.gpus
    assert np.unique(group.cluster.gpu_node[group.members]).size == row.nodes


@pytest.mark.slow
def test_shipped_constants_are_those_of_the_fit():
    """`python -m calibration.collectives` finds every constant again, to 1 %. A launch is part of a base."""
    pytest.importorskip("scipy")
    from calibration.collectives import fitted, value

    base = nccl.BASE["ring"][2]
    for name, constants in fitted().items():
        for constant, number in constants.items():
            more = base if constant == "launch" else 0.0
            shipped = value(node_type(name), constant)
            assert number + more == pytest.approx(shipped + more, rel=0.01), (name, constant)
