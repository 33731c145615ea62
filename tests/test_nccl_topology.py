"""A node's facts from NCCL's dump of it: an eight-GPU Hopper server written by hand as NCCL writes it."""

from __future__ import annotations

import pytest

from colossim.catalog.nccl_topology import read_node
from colossim.errors import ScenarioError

SWITCHES = "".join(f'<nvlink target="0000:0{5 + i}:00.0" count="{4 + i // 2}" tclass="0x068000"/>\n' for i in range(4))


def pci(bus, kind, inside, speed="32.0 GT/s PCIe", width=16):
    return f'<pci busid="0000:{bus}:00.0" class="{kind}" link_speed="{speed}" link_width="{width}">\n{inside}</pci>\n'


def gpu(dev, bus, nvlinks=SWITCHES):
    return pci(bus, "0x030200", f'<gpu dev="{dev}" sm="90" rank="{dev}" gdr="1">\n{nvlinks}</gpu>\n')


def nic(dev, bus, speed="400000"):
    net = f'<net name="mlx5_{dev}" dev="{dev}" speed="{speed}" port="1" guid="0x{dev}" maxconn="131072" gdr="1"/>\n'
    return pci(bus, "0x020700", f"<nic>\n{net}</nic>\n")


def switch(bus, *inside):
    return pci(bus, "0x060400", "".join(inside))


def cpu(numa, *inside):
    return f'<cpu host_hash="0x1" numaid="{numa}" arch="x86_64" vendor="GenuineIntel">\n{"".join(inside)}</cpu>\n'


def system(*cpus):
    return f'<system version="1">\n{"".join(cpus)}</system>\n'


def hopper(reverse=False):
    """Two CPUs of four PCIe switches, each with a GPU and a NIC; a ninth NIC for storage directly on the first CPU."""
    devs = [7 - i if reverse else i for i in range(8)]
    pairs = [switch(f"{10 * (i + 1)}", nic(i, f"{10 * (i + 1) + 1}"), gpu(i, f"{10 * (i + 1) + 2}")) for i in devs]
    return system(cpu(0, *pairs[:4], nic(8, "99", "200000")), cpu(1, *pairs[4:]))


def node(tmp_path, text):
    path = tmp_path / "node.xml"
    path.write_text(text)
    return read_node(path)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_hopper_server(tmp_path, reverse):
    """18 NVLinks (4 + 4 + 5 + 5) to switches; a NIC of 400 Gb/s each; PCIe 5 x16: 32e9 x 16 x 128/130 / 8 bytes/s."""
    facts = node(tmp_path, hopper(reverse))
    assert facts.gpus == 8
    assert facts.sm == (90,) * 8
    assert [nic.name for nic in facts.nics] == [f"mlx5_{i}" for i in range(9)]
    assert [nic.speed for nic in facts.nics] == [50e9] * 8 + [25e9]
    assert all(nic.gdr for nic in facts.nics)
    assert facts.nearest == tuple((i,) for i in range(8))
    assert facts.distance == ("PIX",) * 8
    assert facts.nvlinks == (18,) * 8
    assert facts.nvswitch
    assert facts.pcie == pytest.approx((32e9 * 16 * 128 / 130 / 8,) * 8)
    assert facts.nic == 50e9
    assert facts.hosts == 1


def test_ways_to_a_nic(tmp_path):
    """GPU 0 shares a switch with NIC 0, GPU 1 the switch above it, GPU 2 only the CPU, GPU 3 nothing."""
    near = switch("10", switch("20", gpu(0, "21"), nic(0, "22")), switch("30", gpu(1, "31")))
    facts = node(tmp_path, system(cpu(0, near, gpu(2, "40")), cpu(1, gpu(3, "50"))))
    assert facts.distance == ("PIX", "PXB", "PHB", "SYS")
    assert facts.nearest == ((0,),) * 4
    assert facts.nic == 50e9 / 4


def test_fewer_switches_are_nearer(tmp_path):
    """Over two switches to NIC 0, over three to NIC 1."""
    inside = switch("30", gpu(0, "31")), nic(0, "40"), switch("50", nic(1, "51"))
    facts = node(tmp_path, system(cpu(0, switch("10", *inside))))
    assert (facts.nearest, facts.distance) == (((0,),), ("PXB",))


def test_two_gpus_share_the_nics_of_their_switch(tmp_path):
    """A100's way: two GPUs and two NICs of 200 Gb/s a switch: each GPU has one of them for itself in effect."""
    box = switch("10", gpu(0, "11"), gpu(1, "12"), nic(0, "13", "200000"), nic(1, "14", "200000"))
    facts = node(tmp_path, system(cpu(0, box)))
    assert facts.nearest == ((0, 1), (0, 1))
    assert facts.nic == 25e9


def test_a_socket_stands_under_every_cpu(tmp_path):
    """An interface without a place on PCI is one NIC, and as near as any CPU; NICs that NCCL doesn't use are none."""
    socket = '<nic>\n<net name="eth0" dev="0" speed="10000" gdr="0"/>\n</nic>\n'
    unused = '<nic><net name="x" speed="1"/><net name="y" dev="1" net="0" speed="1"/></nic>'
    facts = node(tmp_path, system(cpu(0, gpu(0, "10"), socket), cpu(1, gpu(1, "20"), socket, unused)))
    assert len(facts.nics) == 1
    assert facts.nics[0].speed == 1.25e9
    assert not facts.nics[0].gdr
    assert facts.distance == ("PHB", "PHB")


def test_what_the_dump_leaves_open(tmp_path):
    """Unknown width is 16 lanes, unknown speed PCIe 3, an unknown speed of a NIC 10 Gb/s; no NICs, no NVLink."""
    inside = '<gpu dev="0" sm="80" rank="0" gdr="0"/>'
    facts = node(tmp_path, system(cpu(0, pci("10", "0x030200", inside, "Unknown", 0))))
    assert facts.pcie == pytest.approx((8e9 * 16 * 128 / 130 / 8,))
    assert (facts.nearest, facts.distance, facts.nvlinks, facts.nvswitch, facts.nic) == (((),), ("",), (0,), False, 0.0)
    for speed in ("-1", "0"):
        assert node(tmp_path, system(cpu(0, gpu(0, "10"), nic(0, "20", speed)))).nics[0].speed == 1.25e9


@pytest.mark.parametrize(
    ("speed", "rate"),
    [
        ("2.5 GT/s PCIe", 0.25e9),
        ("5 GT/s", 0.5e9),
        ("16.0 GT/s PCIe", 16e9 / 65 * 8),
        ("64.0 GT/s PCIe", 64e9 * 59 / 512),
    ],
)
def test_generations_of_pcie(tmp_path, speed, rate):
    """Bytes/s a lane: 8b/10b, 128b/130b, and 236 of 256 bytes of a flit."""
    one = pci("10", "0x030200", '<gpu dev="0" sm="90" rank="0"/>', speed, 1)
    assert node(tmp_path, system(cpu(0, one))).pcie == pytest.approx((rate,))


def test_nvlink_from_gpu_to_gpu(tmp_path):
    straight = '<nvlink target="0000:20:00.0" count="4" tclass="0x030200"/>\n'
    facts = node(tmp_path, system(cpu(0, gpu(0, "10", straight), gpu(1, "20", SWITCHES))))
    assert facts.nvlinks == (4, 18)
    assert not facts.nvswitch


def test_several_hosts_of_one_nvlink_domain(tmp_path):
    """GPUs are numbered anew on each host: they stay apart."""
    one = cpu(0, switch("10", gpu(0, "11"), nic(0, "12")))
    facts = node(tmp_path, system(one, one.replace('host_hash="0x1"', 'host_hash="0x2"')))
    assert (facts.gpus, facts.hosts, len(facts.nics)) == (2, 2, 2)
    assert facts.nearest == ((0,), (1,))


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("</system>", ""), None, "is not XML: no element found"),
        (("system", "topology"), 1, "its outermost element is `topology`"),
        (('gpu dev="0"', 'gpu dev="x"'), 10, "`gpu` has `x` for `dev`: a whole number from 0"),
        (('gpu dev="0" ', "gpu "), 10, "`gpu` has no `dev`"),
        (('gpu dev="1"', 'gpu dev="0"'), 25, "GPU 0 is there twice, first in line 10"),
        (('speed="400000"', 'speed="fast"'), 6, "`net` has no speed in Mb/s: `fast`"),
        (('count="4"', 'count="-4"'), 11, "`nvlink` has `-4` for `count`"),
        (('link_width="16"', 'link_width="wide"'), 9, "`pci` has `wide` for `link_width`"),
    ],
)
def test_a_wrong_dump_has_its_line(tmp_path, change, line, words):
    old, new = change
    text = hopper()
    if "link_width" in old:  # of the first GPU, not of the switch above it
        head, tail = text.split('class="0x030200"', 1)
        text = head + 'class="0x030200"' + tail.replace(old, new, 1)
    else:
        text = text.replace(old, new) if old == "system" else text.replace(old, new, 1)
    with pytest.raises(ScenarioError) as caught:
        node(tmp_path, text)
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.file == str(tmp_path / "node.xml")
    assert problem.line == line if line else problem.line is not None


def test_misplaced_and_missing_parts(tmp_path):
    with pytest.raises(ScenarioError, match="has no GPU"):
        node(tmp_path, system(cpu(0)))
    with pytest.raises(ScenarioError, match="`gpu` stands under no `cpu`"):
        node(tmp_path, system('<pci><gpu dev="0"/></pci>'))
    with pytest.raises(ScenarioError, match="`gpu` stands under no `pci`"):
        node(tmp_path, system(cpu(0, '<gpu dev="0"/>')))
    with pytest.raises(ScenarioError, match=r"dump\.xml: a\.field: no such file"):
        read_node(tmp_path / "dump.xml", field="a.field")


def test_all_problems_at_once(tmp_path):
    text = (
        hopper()
        .replace('gpu dev="2"', 'gpu dev="x"')
        .replace('speed="200000"', 'speed=""')
        .replace('sm="90"', 'sm="a"', 1)
    )
    with pytest.raises(ScenarioError) as caught:
        node(tmp_path, text)
    lines = [problem.line for problem in caught.value.problems]
    assert len(lines) == 3
    assert lines == sorted(lines)
