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
# # What a slow GPU costs
#
# A synchronous step waits for its slowest GPU, but not with everything: a slow GPU holds up its tensor group at each layer, the
# stages beside its own at each micro-batch, and all others at the end of the step. What does that cost, and does it grow with
# the cluster?

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

import colossim


def late(gpus, jitter):
    """What is told of a job of colossus-100k's shape on so many GPUs."""
    size = [f"cluster.nodes.0.count={gpus // 8}", f"job.global_batch={gpus // 8}"]
    return colossim.simulate(colossim.load_scenario("colossus-100k", set=[*size, f"jitter={jitter}"])).jitter


kinds = {
    "each GPU's own pace, 1 %": "{gpu: 1 %}",
    "1 % of machines 10 % slower": "{slow: {share: 1 %, factor: 1.1}}",
    "each kernel anew, 1.5 %": "{kernel: 1.5 %}",
}
sizes = [512, 1024, 2048, 4096]
found = {name: [late(gpus, jitter) for gpus in sizes] for name, jitter in kinds.items()}

# %% [markdown]
# Kernels that vary anew each time cost as much everywhere: at each barrier of a tensor group the largest of its draws counts,
# and beyond it draws average out. What lasts costs more the more GPUs there are to draw from, until the slowest stage is there.

# %%
fig, ax = plt.subplots(figsize=(7, 4))
for name, rows in found.items():
    ax.plot(sizes, [100 * row["cost_s"] / row["undisturbed_s"] for row in rows], marker="o", label=name)
ax.set(xscale="log", xlabel="GPUs", ylabel="step longer by (%)", ylim=(0, None))
ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
ax.minorticks_off()
ax.legend(frameon=False)

# %% [markdown]
# ## Which percentile matters
#
# A step with slow GPUs is as long as one whose GPUs all are of some pace. How many GPUs are no slower than that? The larger the
# job, the further out in the tail: it is not the slowest GPU of all, which may stand in a stage that has time to spare.

# %%
own = found["each GPU's own pace, 1 %"]
for gpus, row in zip(sizes, own, strict=True):
    print(f"{gpus:6,} GPUs: as if all took {row['pace']:.4f} of the mean; {100 * row['percentile']:.2f} % are no slower")

# %% [markdown]
# ## How many slow machines
#
# The first few cost the most. Whether there are ten or fifty hardly matters, once every stage has one.

# %%
shares = [0.4, 0.8, 1.6, 5, 20]
rows = [late(2048, f"{{slow: {{share: {share} %, factor: 1.1}}}}") for share in shares]
fig, ax = plt.subplots(figsize=(7, 4))
ax.plot(shares, [100 * row["cost_s"] / row["undisturbed_s"] for row in rows], marker="o")
ax.set(xscale="log", xlabel="machines that are 10 % slower (% of 256)", ylabel="step longer by (%)", ylim=(0, None))
ax.set_xticks(shares, [f"{share:g}" for share in shares])
ax.minorticks_off()

# %% [markdown]
# ## A published case
#
# ByteDance took out the 0.5 % of machines that were 10 % slower, and gained 0.7 points of MFU on 12,288 GPUs. Here it is more: in all of
# their kernels, and all of the time, such machines cost 1.0 to 2.8 points, as they fall on stages (docs/stragglers.md).

# %%
with_and_without = colossim.load_variants("stragglers-12k")[:2]
runs = {v.label: colossim.simulate(v.scenario) for v in with_and_without}
for label, run in runs.items():
    print(f"{label:32} step {run.step_time_s:.3f} s, MFU {run.mfu:.1%}")
