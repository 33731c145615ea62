"""What hashing costs, and whom: prints the table of docs/routing.md and draws docs/routing.png (half a minute).

python benchmarks/routing.py [FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import colossim
from colossim.plot import save
from colossim.plot.canvas import new_figure, plain, title

FLOWS = (1, 2, 4, 8, 16)
#: GPUs and the batch of 8 micro-batches a replica.
SIZES = {16_384: 2_048, 98_304: 12_288}
STEPS = {
    "adaptive": (),
    "static": ("cluster.fabric.routing=static",),
    "ecmp, 16 queue pairs": ("cluster.fabric.routing=ecmp", "cluster.fabric.paths_per_flow=16"),
    "ecmp": ("cluster.fabric.routing=ecmp",),
}
BLUE, PALE, RUST = "#1b4f72", "#8fb3cc", "#c0561b"


def permutations() -> dict[int, list]:
    """{GPUs: a result for each of FLOWS}, hashed."""
    found = {}
    for gpus, batch in SIZES.items():
        size = [f"cluster.nodes.0.count={gpus // 8}", f"job.global_batch={batch}"]
        changes = [[f"traffic.flows_per_nic={flows}", *size] for flows in FLOWS]
        scenarios = [
            colossim.load_scenario("spectrum-x-claim", case="permutation, 2 flows", set=each) for each in changes
        ]
        found[gpus] = [colossim.offer(scenario) for scenario in scenarios]
    return found


def draw(found: dict[int, list], steps: dict[str, float], file: str) -> None:
    """Left the fabric alone, right the step."""
    left, right = new_figure(9, 3.4).subplots(1, 2, width_ratios=[1.25, 1])
    small, large = found.values()
    left.plot(FLOWS, [r.nic_share["mean"] for r in small], "o-", color=BLUE, label="mean of 16,384 NICs")
    left.plot(FLOWS, [r.nic_share["mean"] for r in large], "s--", color=PALE, label="mean of 98,304")
    left.plot(FLOWS, [r.nic_share["min"] for r in small], "v:", color=RUST, label="worst of 16,384")
    left.axhline(0.95, color="#555555", linewidth=1)
    left.text(1, 0.965, "adaptive: 0.95", fontsize=8.5, va="bottom")
    left.plot([2], [0.60], "*", color="black", markersize=11, zorder=3)
    left.annotate("NVIDIA: 60 %", (2, 0.60), (1.05, 0.73), fontsize=8.5, arrowprops={"arrowstyle": "-", "lw": 0.7})
    left.set_xscale("log", base=2)
    left.set_xticks(FLOWS, [str(flows) for flows in FLOWS])
    left.set_ylim(0, 1.08)
    left.set_xlabel("hashed flows a NIC")
    left.set_ylabel("rate of a NIC over line rate")
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    title(left, "The fabric alone: a random permutation")
    names = [name for name in steps if name != "adaptive"][::-1]
    loss = [100 * (steps[name] / steps["adaptive"] - 1) for name in names]
    right.bar_label(right.barh(names, loss, color=BLUE, height=0.55), fmt="%+.1f %%", padding=4, fontsize=9)
    right.margins(x=0.2)
    right.set_xlabel("longer than with adaptive routing (%)")
    title(right, "A training step on 16,384 GPUs")
    plain(left)
    plain(right)
    save(left, file)


def main() -> None:
    found = permutations()
    print("| flows a NIC | " + " | ".join(map(str, FLOWS)) + " |")
    for gpus, results in found.items():
        for key in ("mean", "p1", "min"):
            print(f"| {gpus:,} NICs, {key} | " + " | ".join(f"{r.nic_share[key]:.2f}" for r in results) + " |")
        print(f"| {gpus:,} NICs, split | " + " | ".join(f"{r.split_share['mean']:.2f}" for r in results) + " |")
    steps = {
        name: colossim.simulate(colossim.load_scenario("spectrum-x-claim", set=changes)).step_time_s
        for name, changes in STEPS.items()
    }
    for name, seconds in steps.items():
        print(f"| {name} | {seconds:.3f} s | {100 * (seconds / steps['adaptive'] - 1):+.1f} % |")
    draw(found, steps, sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent.parent / "docs/routing.png"))


if __name__ == "__main__":
    main()
