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
# # Collectives, measured and predicted
#
# A step spends much of its time in collectives, so they had better be right. Here are all-reduces that people measured with
# nccl-tests, and what colossim says of the same machines: it counts the bytes that each algorithm puts on each link, chooses
# algorithm and protocol as NCCL's tuner does, and prices them with curves that are fitted a node type, never a run.

# %%
# %matplotlib inline
import colossim
from colossim.measured import Bench, points, report

bench, found = Bench(), points()


def curve(node, gpus, ax=None):
    """Predicted bus bandwidth of an all-reduce on GPUs of one node type, and the measured points over it."""
    some = [p for p in found if (p.row.node, p.row.gpus, p.row.operation) == (node, gpus, "all_reduce") and p.row.bytes]
    alone = bench.alone(some[0].row)
    ax = colossim.plot.collectives([alone.row("all_reduce", 2**k) for k in range(10, 35)], ax=ax)
    large = [p for p in some if p.row.bytes >= 2**10]
    ax.plot([p.row.bytes for p in large], [p.measured / 1e9 for p in large], "kx", markersize=6, zorder=3)
    ax.set_title(f"{node}, {gpus} GPUs (x: measured)", loc="left", fontsize=10)
    return ax


# %% [markdown]
# ## One node
#
# Eight A100 can only pass chunks around a ring. In an H100 or B200 node the NVSwitch adds up what passes through it (NVLS): of
# 8 H100 the *bus* bandwidth is 480 GB/s, more than the 450 that NVLink carries, because nccl-tests counts the bytes that a ring
# would have needed.

# %%
figure = colossim.plot.canvas.new_figure(13, 4.2)
for ax, node in zip(figure.subplots(1, 3), ("hgx-a100", "hgx-h100", "aws-p6-b200")):
    curve(node, 8, ax)
figure

# %% [markdown]
# ## Two, four, eight nodes of H100
#
# Between nodes NCCL runs a tree on each rail (NVLSTree). Small messages take LL or LL128, which save fences and pay with
# bandwidth; the dents are where NCCL's tuner changes its mind, not always in time.

# %%
figure = colossim.plot.canvas.new_figure(13, 4.2)
for ax, gpus in zip(figure.subplots(1, 3), (16, 32, 64)):
    curve("hgx-h100", gpus, ax)
figure

# %% [markdown]
# ## All of them
#
# Half of the large messages are predicted within 5 %, half of the small ones within 10 %. Where the tables scatter, they do so
# among themselves: two clouds with the same GPUs differ by more than that.

# %%
overall = report()["overall"]
print(f"{overall['n']} rows: median error {overall['median_pct_large']:.1f} % from 1 MiB on, {overall['median_pct_small']:.1f} % below")
colossim.plot.predicted(found).figure

# %% [markdown]
# ## A machine that nobody has measured
#
# The same table for one rail of 12,500 H100, and what a reduction in the fabric's switches would change. On the command line:
# `colossim collectives colossus-100k --group rail --plot rail.png`.

# %%
from colossim.benchmark_table import tabulate
from colossim.options import doubling

scenario = colossim.load_scenario("colossus-100k")
sharp = colossim.load_scenario("colossus-100k", set=["cluster.fabric.sharp=true"])
sizes = doubling("64KiB", "16GiB")
colossim.plot.collectives(
    {
        "NCCL's choice": tabulate(scenario, (), "all", sizes).rows,
        "SHARP": tabulate(sharp, (), "all", sizes, algorithm="collnet").rows,
    }
).figure
