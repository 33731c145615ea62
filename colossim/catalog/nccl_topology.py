"""What a node is made of, from the topology that NCCL found in it (`NCCL_TOPO_DUMP_FILE=node.xml`).

    system
     +- cpu (numaid, host_hash)                     one a NUMA node
         +- pci (class 0x060400: a switch; link_speed, link_width)
         |   +- pci +- gpu (dev, sm, rank, gdr)     links to NVSwitches or GPUs below it:
         |   |           +- nvlink (target, count, tclass)
         |   +- pci +- nic +- net (name, dev, speed in Mb/s, port, guid, gdr)
         +- nic +- net                              without a place on PCI, such as a socket

The facts of the format are NCCL's (src/graph/xml.cc, topo.cc; 2.30): `dev` numbers GPUs and NICs; a `net` without it, or
with net="0" (a part of a merged NIC), is not used; class 0x068000 is an NVSwitch; a link of unknown width has 16 lanes, one
of unknown speed is PCIe 3, a NIC of unknown speed (0, -1) has 10 Gb/s. NCCL merges the two levels that some Broadcom
switches show; here they stay two.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from colossim.catalog.xml_lines import Element, read_bytes, read_xml
from colossim.errors import Problem, ScenarioError

#: Class of an NVSwitch's PCI function.
NVSWITCH = "0x068000"
#: How near a NIC is: under the same PCI switch, under several of them, under one CPU, anywhere (NCCL's words).
PIX, PXB, PHB, SYS = "PIX", "PXB", "PHB", "SYS"
#: Payload per transferred bit of a lane, by GT/s: 8b/10b, 128b/130b, flits of 236 in 256 bytes (PCI-SIG).
_CODING = {2.5: 0.8, 5.0: 0.8, 8.0: 128 / 130, 16.0: 128 / 130, 32.0: 128 / 130, 64.0: 236 / 256}
_UNKNOWN_SPEED, _UNKNOWN_WIDTH, _UNKNOWN_NIC = 8.0, 16, 10_000


@dataclass(frozen=True)
class Nic:
    """A port of a network card.  speed: bytes/s of one direction.  gdr: whether GPUs' memory is read directly."""

    name: str
    dev: int
    speed: float
    gdr: bool


@dataclass(frozen=True)
class NodeFacts:
    """G GPUs and their NICs, both in the order of their `dev` (and of hosts, if NVLink joins several).

    sm: (G,) compute capability, 90 for Hopper.  nearest: (G,) indices into `nics` of those nearest to each GPU.
    distance: (G,) PIX, PXB, PHB or SYS: how near these are; "" without NICs.  nvlinks: (G,) links of each GPU.
    nvswitch: whether all NVLinks lead to NVSwitches, and there are some.  pcie: (G,) bytes/s of one direction between each
    GPU and the switch above it, after coding; NCCL itself reckons with three quarters of the line rate.
    hosts: operating systems in the dump.
    """

    nics: tuple[Nic, ...]
    sm: tuple[int, ...]
    nearest: tuple[tuple[int, ...], ...]
    distance: tuple[str, ...]
    nvlinks: tuple[int, ...]
    nvswitch: bool
    pcie: tuple[float, ...]
    hosts: int = 1

    @property
    def gpus(self) -> int:
        return len(self.sm)

    @property
    def nic(self) -> float:
        """Bytes/s of the NICs that a GPU has for itself: those nearest to it, shared with the GPUs as near to them.

        The least of all GPUs; 0 without NICs.
        """
        users = [sum(index in near for near in self.nearest) for index in range(len(self.nics))]
        own = [sum(self.nics[index].speed / users[index] for index in near) for near in self.nearest]
        return min(own, default=0.0)


def read_node(path: str | os.PathLike[str], *, field: str = "") -> NodeFacts:
    """The facts of a dump. Raises ScenarioError about `field` with every problem, its file and line."""
    file = os.fspath(path)
    root = read_xml(read_bytes(path, field), file, field)
    return _Dump(root, file, field).facts()


class _Dump:
    def __init__(self, root: Element, file: str, field: str) -> None:
        self.root, self.file, self.field = root, file, field
        self.problems: list[Problem] = []

    def facts(self) -> NodeFacts:
        if self.root.tag != "system":
            self._complain(f"its outermost element is `{self.root.tag}`: NCCL's topology is a `system`", self.root)
            raise ScenarioError(self.problems)
        hosts: dict[str, int] = {}
        gpus: dict[tuple[int, int, int], Element] = {}
        nets: dict[tuple[int, int], list[Element]] = {}
        for element in self.root.walk():
            if element.tag == "gpu":
                dev = self._whole(element, "dev")
                part = self._whole(element, "mlopart", 0)
                key = (self._host(element, hosts), dev, part)
                if key in gpus:
                    self._complain(f"GPU {dev} is there twice, first in line {gpus[key].line}", element)
                gpus.setdefault(key, element)
            elif element.tag == "net" and "dev" in element.attributes and element.attributes.get("net") != "0":
                # A socket's interface stands under every CPU: one NIC in several places.
                nets.setdefault((self._host(element, hosts), self._whole(element, "dev")), []).append(element)
        if not gpus:
            self._complain("has no GPU: was it dumped by a job that uses them?", self.root)
        ordered = [gpus[key] for key in sorted(gpus)]
        nics = tuple(self._nic(places[0], dev) for (_, dev), places in sorted(nets.items(), key=lambda item: item[0]))
        places = [nets[key] for key in sorted(nets)]
        near = [self._nearest(gpu, places) for gpu in ordered]
        links = [self._nvlinks(gpu) for gpu in ordered]
        switched = [tclass == NVSWITCH for found in links for _, tclass in found]
        facts = NodeFacts(
            nics=nics,
            sm=tuple(self._whole(gpu, "sm", 0) for gpu in ordered),
            nearest=tuple(indices for indices, _ in near),
            distance=tuple(word for _, word in near),
            nvlinks=tuple(sum(count for count, _ in found) for found in links),
            nvswitch=bool(switched) and all(switched),
            pcie=tuple(self._pcie(gpu) for gpu in ordered),
            hosts=max(1, len(hosts)),
        )
        if self.problems:
            raise ScenarioError(sorted(self.problems, key=lambda problem: problem.line or 0))
        return facts

    # -- elements ----------------------------------------------------------------------------------------------------
    def _host(self, element: Element, hosts: dict[str, int]) -> int:
        """Which operating system an element belongs to: its CPU's hash, of which older dumps have none."""
        for outer in element.above():
            if outer.tag == "cpu":
                return hosts.setdefault(outer.attributes.get("host_hash", ""), len(hosts))
        self._complain(f"`{element.tag}` stands under no `cpu`", element)
        return 0

    def _nic(self, net: Element, dev: int) -> Nic:
        given = net.attributes.get("speed", "0")
        try:
            speed = float(given)
        except ValueError:
            speed = math.nan
        if not math.isfinite(speed):
            self._complain(f"`net` has no speed in Mb/s: `{given}`", net)
        rate = (speed if speed > 0 else _UNKNOWN_NIC) * 1e6 / 8
        return Nic(net.attributes.get("name", ""), dev, rate, self._whole(net, "gdr", 0) > 0)

    def _nvlinks(self, gpu: Element) -> list[tuple[int, str]]:
        """(links, class of the target) of every NVLink element."""
        below = [element for element in gpu.children if element.tag == "nvlink"]
        return [(self._whole(element, "count"), element.attributes.get("tclass", "")) for element in below]

    def _pcie(self, gpu: Element) -> float:
        """Bytes/s between a GPU and what its PCI function hangs on."""
        pci = next((outer for outer in gpu.above() if outer.tag == "pci"), None)
        if pci is None:
            self._complain("`gpu` stands under no `pci`", gpu)
            return 0.0
        found = re.match(r"\s*(\d+(?:\.\d+)?) GT/s", pci.attributes.get("link_speed", ""))
        speed = float(found[1]) if found else _UNKNOWN_SPEED
        lanes = self._whole(pci, "link_width", 0) or _UNKNOWN_WIDTH
        return speed * 1e9 * _CODING.get(speed, 1.0) * lanes / 8

    def _nearest(self, gpu: Element, nics: list[list[Element]]) -> tuple[tuple[int, ...], str]:
        """Indices of the NICs with the shortest way over PCI to a GPU, and the kind of that way."""
        ways = [min(_way(gpu, place) for place in places) for places in nics]
        if not ways:
            return (), ""
        nearest = min(ways)
        return tuple(index for index, way in enumerate(ways) if way == nearest), (PIX, PXB, PHB, SYS)[nearest[0]]

    # -- attributes --------------------------------------------------------------------------------------------------
    def _whole(self, element: Element, name: str, default: int | None = None) -> int:
        """A whole number that isn't negative."""
        given = element.attributes.get(name)
        if given is None and default is not None:
            return default
        if given is None or not re.fullmatch(r"[0-9]{1,9}", given.strip()):
            said = "has no" if given is None else f"has `{given}` for"
            self._complain(f"`{element.tag}` {said} `{name}`: a whole number from 0", element)
            return -element.line  # different for each, so that none seems to be there twice
        return int(given)

    def _complain(self, message: str, element: Element) -> None:
        self.problems.append(Problem(self.field, message, self.file, element.line))


def _way(gpu: Element, nic: Element) -> tuple[int, int]:
    """(kind of way, PCI switches on it) from a GPU to a NIC: 0 over one switch, 1 over several, 2 one CPU, 3 beyond."""
    here, there = (list(element.above()) for element in (gpu, nic))
    shared = next((outer for outer in here if any(outer is other for other in there)), None)
    if shared is None or shared.tag == "system":
        return 3, 0
    if shared.tag == "cpu":
        return 2, 0
    # What stands between a device's own PCI function and the switch that both are under.
    on_the_way = [e for above in (here, there) for e in above[: _place(above, shared)] if e.tag == "pci"]
    between = max(0, len(on_the_way) - 2)
    return (1, between) if between else (0, 0)


def _place(above: list[Element], shared: Element) -> int:
    return next(index for index, element in enumerate(above) if element is shared)
