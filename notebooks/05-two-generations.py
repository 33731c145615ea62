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
# # Two generations in one job
#
# Colossus doubled: 150,000 H100 and 50,000 H200. An H200 has the H100's arithmetic and 1.43 x its memory rate. What do the
# H200s add to one synchronous job, what does the mix cost, and what would two jobs do?

# %%
# %matplotlib inline
import colossim

runs = {v.label: colossim.simulate(v.scenario) for v in colossim.load_variants("colossus-200k")}
print(f"{'case':12} {'GPUs':>8} {'step s':>8} {'tokens/s':>12} {'a GPU':>7} {'MFU':>7}")
for name, r in runs.items():
    print(
        f"{name:12} {r.gpus_in_job:>8,} {r.step_time_s:>8.4f} {r.tokens_per_s:>12,.0f} "
        f"{r.tokens_per_s_per_gpu:>7.1f} {100 * r.mfu:>6.2f}%"
    )

# %%
mixed, twin = runs["mixed"], runs["h100-only"]
two_jobs = runs["h100-alone"].tokens_per_s + runs["h200-alone"].tokens_per_s
print(f"H200s in one synchronous job add  {100 * (mixed.tokens_per_s / twin.tokens_per_s - 1):+.2f} % over the same job on H100 alone")
print(f"an H200 alone is faster by        {100 * (runs['h200-alone'].tokens_per_s_per_gpu / runs['h100-alone'].tokens_per_s_per_gpu - 1):+.2f} % a GPU")
print(f"two jobs, each at its own pace:   {100 * (two_jobs / mixed.tokens_per_s - 1):+.2f} % over the mixed job (two models, though)")

# %% [markdown]
# What the mix costs itself: each type's mean seconds a step in kernels, and waiting for slower ranks where they meet. Most of
# an H200's wait hides in the pipeline: its stages wait for those of the H100s.

# %%
mixed.mix

# %%
colossim.plot.timeline(mixed).figure

# %% [markdown]
# The H200's other half is its size, 141 GB against 80. Tensor parallel 4 spends less in collectives and doubles the memory
# (with twice the replicas, so twice the batch): an H100 is full to the brim, the H200 has room. That is worth more than its
# memory rate, and both generations can have it.

# %%
for case, batch in (("h200-alone", 6144), ("h100-alone", 18432)):
    for tensor in (8, 4):
        changes = [f"job.parallelism.tensor={tensor}", f"job.global_batch={batch * 8 // tensor}"]
        scenario = colossim.load_scenario("colossus-200k", case=case, set=changes)
        try:
            r = colossim.simulate(scenario)
            print(f"{case}, tensor {tensor}: {r.tokens_per_s_per_gpu:.0f} tokens/s a GPU, {r.memory_bytes['peak'] / 1e9:.0f} GB a GPU")
        except colossim.DoesNotFit as error:
            print(f"{case}, tensor {tensor}: {str(error).split(' (')[0]}")
