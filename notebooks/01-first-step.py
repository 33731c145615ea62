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
# # A first step
#
# Load a scenario, play one training step of it, see where the time goes, change one thing.

# %%
# %matplotlib inline
import colossim

scenario = colossim.load_scenario("two-pods")
print(scenario.description)

# %% [markdown]
# A scenario is a cluster, a job, and how long to run. Its fields are plain values in SI units:

# %%
scenario.cluster.gpus, scenario.job.model.name, scenario.job.parallelism.pipeline, scenario.cluster.fabric.link

# %% [markdown]
# `simulate` plays one step and gives a result. Printed, it is the page that the command line shows:

# %%
result = colossim.simulate(scenario)
print(result)

# %% [markdown]
# Every figure is an attribute with its unit in its name; the breakdown adds up to the step.

# %%
{name: round(1e3 * seconds, 1) for name, seconds in result.breakdown_s.items() if seconds > 0}

# %%
sum(result.breakdown_s.values()), result.step_time_s

# %% [markdown]
# On a clock: one row a pipeline stage.

# %%
colossim.plot.timeline(result).figure

# %% [markdown]
# What the links carry through the step, and a bar for each thing the step goes to:

# %%
colossim.plot.link_throughput(result).figure

# %%
colossim.plot.breakdown(result).figure

# %% [markdown]
# ## Change one thing
#
# The bubble shrinks with more chunks a stage, and each chunk costs transfers. `set=` takes the same paths as `--set`.

# %%
rows = []
for chunks in (1, 2, 4, 8):
    schedule = "1f1b" if chunks == 1 else "interleaved"
    changed = colossim.load_scenario(
        "two-pods",
        set=[f"job.parallelism.virtual_pipeline={chunks}", f"job.parallelism.schedule={schedule}"],
    )
    other = colossim.simulate(changed)
    rows.append((chunks, other.step_time_s, other.breakdown_s["pipeline_bubble"] / other.step_time_s, other.mfu))

for chunks, step, bubble, mfu in rows:
    print(f"{chunks} chunks a stage: {step:.3f} s, bubble {100 * bubble:4.1f} %, MFU {100 * mfu:.1f} %")

# %% [markdown]
# The steps of a run as a data frame (the same as `steps.csv`):

# %%
result.to_pandas().head(3)
