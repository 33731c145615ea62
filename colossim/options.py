"""What the words of `colossim collectives` mean: operations, sizes, and groups of GPUs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from colossim.alone import OPERATIONS
from colossim.cluster import Cluster
from colossim.errors import Problem, ScenarioError
from colossim.footprint import Ints
from colossim.scenario.derive import derive
from colossim.scenario.schema import Scenario
from colossim.traffic import group_members
from colossim.units import parse_size

#: Bytes of an element of each of nccl-tests' types.
TYPES = {
    "int8": 1, "uint8": 1, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "half": 2, "bfloat16": 2, "float": 4, "double": 8, "fp8_e4m3": 1, "fp8_e5m2": 1,
}  # fmt: skip
#: Groups of the job: the word, its channel, and the field that makes it large.
_CHANNELS = {
    "tensor": ("tensor", "job.parallelism.tensor"),
    "context": ("context", "job.parallelism.context"),
    "expert": ("expert", "job.parallelism.expert"),
    "data": ("data", "job.parallelism.data"),
    "expert_tensor": ("expert_tensor", "job.parallelism.expert_tensor"),
    "expert_data": ("expert_data", "job.parallelism.expert"),
    "pipeline": ("forward", "job.parallelism.pipeline"),
    "embedding": ("embedding", "job.parallelism.pipeline"),
}
GROUPS = ("all", "node", "rail", "pod", "gpus", *_CHANNELS)
_SUFFIX = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MOST = 2**60


def parse_operations(text: str) -> tuple[str, ...]:
    """`all_reduce,all_gather` (or with hyphens) as names. Raises ScenarioError with the nearest name."""
    names = tuple(dict.fromkeys(part.strip().replace("-", "_") for part in text.split(",")))
    for name in names:
        if name not in OPERATIONS:
            _unknown("--operation", name, "operation", OPERATIONS)
    return names


def known_type(name: str) -> str:
    """The type, if nccl-tests knows it. Raises ScenarioError with the nearest name."""
    if name not in TYPES:
        _unknown("--type", name, "type of nccl-tests", tuple(TYPES))
    return name


def doubling(first: str, last: str) -> tuple[int, ...]:
    """Sizes in bytes from the first, each twice the one before, up to the last: `-b 8 -e 16G -f 2` of nccl-tests."""
    size, end = _bytes("--from", first), _bytes("--to", last)
    if size > end:
        wrong("--from", f"`{first}` is more than --to `{last}`")
    sizes = [size]
    while 2 * sizes[-1] <= end:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def _bytes(option: str, text: str) -> int:
    """Bytes of `8`, `128M` (nccl-tests: powers of 1024) or `16 GiB`."""
    bare = re.fullmatch(r"\s*(\d+)([kKmMgGtT]?)\s*", text)
    try:
        value = int(bare[1]) * _SUFFIX[bare[2].lower()] if bare else parse_size(text)
    except ValueError as error:
        wrong(option, str(error))
    if not 1 <= value <= _MOST or value != int(value):
        wrong(option, f"`{text}` is no size of a message: whole bytes, from 1 B to 1 EiB")
    return int(value)


def pick(scenario: Scenario, cluster: Cluster, group: str) -> Ints:
    """(n,) GPUs of a group, ascending: `all`, `node:5`, `rail:3`, `pod`, `gpus:1024`, or `data:2` of the job.

    The number is an index from 0 (0 when absent), of `gpus` how many. Raises ScenarioError.
    """
    word, colon, number = group.partition(":")
    if word not in GROUPS:
        _unknown("--group", word, "group", GROUPS)
    if (colon and not number.isdecimal()) or (word == "all" and colon) or (word == "gpus" and not colon):
        wrong("--group", f"`{group}`: write it as `{'all' if word == 'all' else f'{word}:8'}`")
    index = int(number or 0)
    gpus = np.arange(cluster.gpus)
    if word in _CHANNELS:
        channel, field = _CHANNELS[word]
        found = group_members(derive(scenario)).get(channel)
        if found is None:
            wrong("--group", f"the job has no {word} group of two GPUs: `{field}` would have to be larger")
        _within(group, word, index, len(found))
        members = np.sort(found[index])
    elif word == "gpus":
        if index > cluster.gpus:
            wrong("--group", f"`{group}`: the cluster has {cluster.gpus:,} GPUs")
        members = gpus[:index]
    elif word == "all":
        members = gpus
    else:
        places: dict[str, Ints] = {"node": cluster.gpu_node, "rail": cluster.gpu_rail, "pod": cluster.pod(gpus)}
        place = places[word]
        _within(group, word, index, int(place.max()) + 1)
        members = np.flatnonzero(place == index)
    if members.size < 2:
        wrong("--group", f"`{group}` has {members.size} GPU: a collective needs two")
    return members


def _within(group: str, word: str, index: int, count: int) -> None:
    if index >= count:
        wrong("--group", f"`{group}`: {word}s are numbered 0 to {count - 1:,}")


def _unknown(option: str, word: str, what: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
    wrong(option, f"`{word}` is no {what}: {hint}")


def wrong(option: str, message: str) -> NoReturn:
    raise ScenarioError([Problem(option, message)])
