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


def curve(node, gpus, ax):
    """Predicted bus bandwidth of an all-reduce on GPUs of one node type, and the measured points over it."""
    some = [
        p for p in found
        if (p.row.node, p.row.gpus, p.row.operation, p.row.algorithm) == (node, gpus, "all_reduce", "auto")
        and p.row.bytes >= 2**10 and "SHARP" not in p.row.hardware
    ]
    rows = [bench.alone(some[0].row).row("all_reduce", 2**k) for k in range(10, 35)]
    colossim.plot.collectives(rows, ax=ax)
    ax.plot([p.row.bytes for p in some], [p.measured / 1e9 for p in some], "kx", markersize=6, zorder=3)
    ax.set_ylim(0, 1.08 * max(*(p.measured / 1e9 for p in some), *(row.busbw / 1e9 for row in rows)))
    ax.set_title(f"{node}, {gpus} GPUs (x: measured)", loc="left", fontsize=10)


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
# bandwidth; the dents are where NCCL's tuner changes its mind. Of LL128 colossim is too optimistic at a few MiB: nothing fills
# its pipes there, but their ramp isn't fitted.

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
# An all-reduce over the first 64, the first 1,024 and all 100,000 GPUs of Colossus. Large messages don't mind: a tree's busiest
# NIC carries 2 S/q however many nodes there are. Small ones pay 2 log2 N steps. On the command line:
# `colossim collectives colossus-100k --group gpus:1024 --plot 1024.png`.

# %%
from colossim.benchmark_table import tabulate
from colossim.options import doubling

scenario = colossim.load_scenario("colossus-100k")
tables = [tabulate(scenario, ("all_reduce",), group, doubling("64KiB", "16GiB")) for group in ("gpus:64", "gpus:1024", "all")]
for table in tables:
    print(f"{table.ranks:>7,} GPUs: 64 KiB in {1e6 * table.rows[0].time:.0f} us, 16 GiB at {table.rows[-1].busbw / 1e9:.0f} GB/s")
colossim.plot.collectives({f"{table.ranks:,} GPUs": table.rows for table in tables}).figure
