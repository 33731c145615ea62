"""How single slow links unravel the fold of colossus-100k: half-speed NICs, and slow or dead parts of its fabric.

Prints Markdown tables of classes and seconds; where folding leaves too many classes, what it says.
"""

from __future__ import annotations

import time

import colossim

COUNTS = (0, 1, 3, 10, 100)
#: Parts of the fabric, and the routings under which they are played.
PARTS = {
    "none": "",
    "an uplink at 50 %": "{uplink: 5, pod: 0, rail: 3, rate: 50 %}",
    "an uplink dead": "{uplink: 5, pod: 0, rail: 3, rate: 0 %}",
    "a core uplink dead": "{core_uplink: 1, block: 0, spine: 2, rate: 0 %}",
    "a spine dead": "{switch: spine, block: 0, spine: 2}",
    "a leaf at 50 %": "{switch: leaf, pod: 0, rail: 3, rate: 50 %}",
    "a leaf dead": "{switch: leaf, pod: 0, rail: 3}",
    "a rail dead": "{rail: 3}",
}
#: Of these, the ones that ecmp answers in seconds: a dead leaf leaves over a thousand classes, each with flows of its own.
HASHED = ("none", "an uplink at 50 %", "an uplink dead", "a core uplink dead", "a spine dead")


def row(label: str, *changes: str) -> None:
    """Plays one variant and prints its line."""
    scenario = colossim.load_scenario("colossus-100k", set=changes)
    began = time.perf_counter()
    try:
        result = colossim.simulate(scenario)
    except colossim.TooManyClasses as error:
        print(f"| {label} | refused in {time.perf_counter() - began:.1f} s: {error} | | | |", flush=True)
        return
    seconds = time.perf_counter() - began
    numbers = f"{result.classes['ranks']:,} | {result.events:,} | {result.step_time_s:.4f} s | {seconds:.1f} s"
    print(f"| {label} | {numbers} |", flush=True)


def main() -> None:
    print("| half-speed NICs | rank classes | events | step | all told |")
    print("|---|---|---|---|---|")
    for count in COUNTS:
        weak = ", ".join(f"{{node: {977 * i % 12288}, gpu: {3 * i % 8}, rate: 50 %}}" for i in range(count))
        row(str(count), f"cluster.degraded=[{weak}]")
    for routing in ("adaptive", "ecmp"):
        print(f"\n| fabric, {routing} | rank classes | events | step | all told |")
        print("|---|---|---|---|---|")
        for label, part in PARTS.items():
            if routing == "adaptive" or label in HASHED:
                row(label, f"cluster.degraded=[{part}]", f"cluster.fabric.routing={routing}")


if __name__ == "__main__":
    main()
