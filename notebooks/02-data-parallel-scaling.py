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
# # Data parallelism from 8 to 100,000 GPUs
#
# One model, one replica a node, the same batch for every replica: what does a GPU lose as the job grows?
# Each point is an exact step; identical GPUs fold into classes, so 100,000 of them cost no more than 8.

# %%
# %matplotlib inline
import colossim
from colossim.plot.canvas import new_figure

NODES = [1, 2, 4, 8, 16, 64, 256, 1024, 4096, 12500]


def step(nodes, *changes):
    return colossim.simulate(
        colossim.load_scenario(
            "colossus-100k",
            set=[
                f"cluster.nodes.0.count={nodes}",
                "job.model=llama3-8b",
                f"job.global_batch={16 * nodes}",
                "job.parallelism={tensor: 8, sequence: true, sharding: optimizer}",
                *changes,
            ],
        )
    )


results = [step(nodes) for nodes in NODES]
base = results[0].tokens_per_s_per_gpu
print(f"{'GPUs':>8} {'step s':>8} {'tokens/s':>12} {'a GPU':>7} {'efficiency':>10} {'data comm':>10} {'events':>7}")
for r in results:
    share = r.breakdown_s["data_comm"] / r.step_time_s
    print(
        f"{r.gpus_in_job:>8,} {r.step_time_s:>8.3f} {r.tokens_per_s:>12,.0f} {r.tokens_per_s_per_gpu:>7,.0f} "
        f"{100 * r.tokens_per_s_per_gpu / base:>9.1f}% {100 * share:>9.1f}% {r.events:>7,}"
    )

# %% [markdown]
# ## Where it is lost
#
# The bytes that a GPU sends for its gradients hardly grow with the number of replicas (2 (n-1)/n of them for an all-reduce),
# but a ring has n-1 steps, and every step has a latency: beyond a few thousand replicas the ring is all latency. The same
# job with a tenth of the latency shows it.

# %%
quick = [step(nodes, "cluster.nodes.0.type={base: hgx-h100, network: {efficiency: 87 %, base: 8.4 us, hop: 1.4 us}}") for nodes in NODES]

figure = new_figure(9, 3.6)
left, right = figure.subplots(1, 2)
gpus = [r.gpus_in_job for r in results]
for runs, label, style in ((results, "14 us a network step", "o-"), (quick, "1.4 us a network step", "s--")):
    left.plot(gpus, [100 * r.tokens_per_s_per_gpu / base for r in runs], style, color="#1b4f72", label=label, mfc="white")
    right.plot(gpus, [1e3 * r.breakdown_s["data_comm"] for r in runs], style, color="#c0561b", label=label, mfc="white")
left.set(xscale="log", ylim=(0, 105), xlabel="GPUs", ylabel="throughput a GPU (% of one node)")
right.set(xscale="log", xlabel="GPUs", ylabel="exposed gradient traffic (ms a step)")
left.set_title("scaling efficiency", loc="left", fontsize=10)
right.set_title("what is lost", loc="left", fontsize=10)
for ax in (left, right):
    ax.legend(frameon=False, fontsize=8.5)
    ax.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# Overlap hides what fits beside the backward pass of the last micro-batch; the rest, and the gather of the parameters after
# the optimizer, is exposed. Megatron's buckets grow with the replicas (a million parameters for each), so that above a
# thousand of them this model is one bucket, and there is nothing left to overlap:

# %%
for nodes in (16, 1024, 12500):
    hidden, open_ = step(nodes), step(nodes, "job.overlap.data=false")
    print(f"{8 * nodes:>7,} GPUs: {hidden.step_time_s:.3f} s with overlap, {open_.step_time_s:.3f} s without")
