# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the fabric costs
#
# A cluster's fabric is bought by two questions: how many ports above the leaves (oversubscription), and how flows find their
# way through them (routing). Here is what both do to a training step, on Colossus' 100,000 GPUs.

# %%
# %matplotlib inline
import colossim
from colossim.plot.canvas import new_axes, plain, title


def step(scenario, *changes):
    return colossim.simulate(colossim.load_scenario(scenario, set=changes))


def loss(result, than):
    return f"{100 * (result.step_time_s / than.step_time_s - 1):+.1f} %"


# %% [markdown]
# ## Fewer ports above the leaves: 100,000 GPUs
#
# Oversubscription at the first boundary, with adaptive routing. Tensor and expert groups stay below their leaves, and a ring
# in rank order crosses to the next leaf once in 64 edges; what crosses in bulk is the boundary between two pipeline stages.

# %%
ratios = {"1:1": "[1, 1]", "2:1": "[2, 1]", "7:1": "[7, 1]"}
ports = {name: step("colossus-100k", f"cluster.fabric.oversubscription={ratio}") for name, ratio in ratios.items()}
for name, r in ports.items():
    print(f"{name}  step {r.step_time_s:.3f} s  {loss(r, ports['1:1']):>7}   MFU {100 * r.mfu:.1f} %   {r.routing['hottest'][0]['link'].rstrip(' 0123456789')} busy {100 * r.routing['hottest'][0]['busy_fraction']:.0f} %")

# %% [markdown]
# ## How flows find their way
#
# `adaptive` sprays every flow over all paths. `ecmp` hashes each to one: some links get seven, others none. `static` pins
# by destination. 16 queue pairs are 16 hashes a flow. At 100,000 GPUs we play adaptive and ecmp (a few seconds); all four on
# 16,384, the job of `spectrum-x-claim`, which is `colossus-100k`'s on a sixth of the GPUs.

# %%
hashed = step("colossus-100k", "cluster.fabric.routing=ecmp")
print(f"100,000 GPUs: adaptive {ports['1:1'].step_time_s:.3f} s, ecmp {hashed.step_time_s:.3f} s ({loss(hashed, ports['1:1'])})")
share = hashed.routing["rate_share"]
print(f"{hashed.routing['channel']} flows move at {share['mean']:.2f} of line rate in the mean, {share['min']:.2f} at worst")
print(f"most flows on one link: {hashed.routing['hottest'][0]}")

# %%
ways = {
    "adaptive": ["cluster.fabric.routing=adaptive"],
    "static": ["cluster.fabric.routing=static"],
    "ecmp, 16 queue pairs": ["cluster.fabric.routing=ecmp", "cluster.fabric.paths_per_flow=16"],
    "ecmp": ["cluster.fabric.routing=ecmp"],
}
routed = {name: step("spectrum-x-claim", *changes) for name, changes in ways.items()}
for name, r in routed.items():
    print(f"16,384 GPUs: {name:21} step {r.step_time_s:.3f} s  {loss(r, routed['adaptive']):>7}")

# %%
ax = new_axes(8, 3.4)
bars = {
    **{f"oversubscription {name}": (r, ports["1:1"]) for name, r in ports.items() if name != "1:1"},
    "ecmp": (hashed, ports["1:1"]),
    **{f"{name} (16,384 GPUs)": (r, routed["adaptive"]) for name, r in routed.items() if name != "adaptive"},
}
names = list(bars)[::-1]
longer = [100 * (bars[name][0].step_time_s / bars[name][1].step_time_s - 1) for name in names]
drawn = ax.barh(names, longer, color=["#8fb3cc" if "16,384" in name else "#1b4f72" for name in names], height=0.6)
ax.bar_label(drawn, fmt="%+.1f %%", padding=4, fontsize=9)
ax.set_xlabel("longer step than 1:1 with adaptive routing (%)")
ax.margins(x=0.12)
title(ax, "What the fabric costs a training step (100,000 GPUs)")
plain(ax)
ax.figure

# %% [markdown]
# ## The claim: 95 % against 60 %
#
# NVIDIA says that Spectrum-X sustains 95 % data throughput on Colossus where standard Ethernet gives 60 %. Both are right about a
# random permutation with two flows a NIC, and say little about a training step, whose rings are laid out in rank order.

# %%
for case in ("permutation, adaptive", "permutation, 2 flows", "rings in rank order"):
    r = colossim.offer(colossim.load_scenario("spectrum-x-claim", case=case))
    print(f"{case:22} {r.routing:9} mean {r.nic_share['mean']:.2f} of line rate, worst {r.nic_share['min']:.2f}")
