"""How single slow links unravel the fold: 1, 3, 10 and 100 half-speed NICs among the 100,000 GPUs of colossus-100k.

Prints a Markdown table of classes and seconds; where folding leaves too many classes, what it says.
"""

from __future__ import annotations

import time

import colossim

COUNTS = (0, 1, 3, 10, 100)


def main() -> None:
    print("| half-speed NICs | rank classes | events | step | all told |")
    print("|---|---|---|---|---|")
    for count in COUNTS:
        weak = ", ".join(f"{{node: {977 * i % 12288}, gpu: {3 * i % 8}, rate: 50 %}}" for i in range(count))
        scenario = colossim.load_scenario("colossus-100k", set=[f"cluster.degraded=[{weak}]"])
        began = time.perf_counter()
        try:
            result = colossim.simulate(scenario)
        except colossim.TooManyClasses as error:
            print(f"| {count} | refused in {time.perf_counter() - began:.1f} s: {error} | | | |", flush=True)
            continue
        seconds = time.perf_counter() - began
        print(
            f"| {count} | {result.classes['ranks']:,} | {result.events:,} | {result.step_time_s:.3f} s | {seconds:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
