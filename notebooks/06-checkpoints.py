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
# # How often to checkpoint
#
# At 16,384 GPUs something stops the job every three hours, at 98,304 every half hour. Each time the work since the last checkpoint
# is lost, and a restart. Checkpoints more often lose less and cost more. Which interval is best, what is it worth, and what else
# helps?

# %%
# %matplotlib inline
import colossim

llama = colossim.simulate(colossim.load_scenario("llama3-54-days"), replicas=20)
print(f"goodput {llama.goodput:.1%}, {len(llama.interruptions)} interruptions in 54 days; Meta counted 419")
colossim.plot.goodput(llama).figure

# %%
colossim.plot.lost_time(llama).figure

# %% [markdown]
# Six times as many GPUs fail six times as often. With the same checkpoints a fifth of the time is gone.

# %%
runs = {}
print(f"{'case':40} {'interval':>9} {'goodput':>8} {'by formula':>11}")
for variant in colossim.load_variants("colossus-100k-campaign"):
    run = runs[variant.label] = colossim.simulate(variant.scenario)
    weeks = run.campaign
    print(f"{variant.label:40} {weeks.interval_s:>7.0f} s {run.goodput:>8.1%} {weeks.goodput_by_formula:>11.1%}")

# %% [markdown]
# The formula is exact for faults that all stop the job at once. Here some are corruptions that are found after an hour, which cost
# an hour; that is the difference.
#
# The best interval is flat around its top; what makes a difference is the restart.

# %%
colossim.plot.interval(runs["every 5 min"]).figure

# %%
for minutes in (1, 3, 8, 20):
    change = [f"checkpoint.restart={minutes} min"]
    best = colossim.load_scenario("colossus-100k-campaign", case="best interval", set=change)
    print(f"restart in {minutes:2d} min: goodput {colossim.simulate(best).goodput:.1%}")

# %% [markdown]
# ## Where the formula to first order stops being right
#
# ETTR is often told as (1 - (R + tau/2)/M)/(1 + C/tau) (Kokolis et al. 2024): each of 1/M faults a second costs half an interval
# and a restart. That leaves out faults during restarts and intervals that never end. With 30 minutes, 40 s and 8 minutes it is
# right up to 16,384 GPUs, and says 25 % where 44 % is true at 98,304. Points are played: faults of one class, ten seeds each.

# %%
import matplotlib.pyplot as plt

from colossim.reliability import ettr, wall_over_work

TAU, WRITE, RESTART, MTBF_OF_A_GPU = 1800, 40, 480, 50_677 * 3600
sizes = [2**k for k in range(10, 19)]
played = {}
for gpus in (1024, 16_384, 65_536, 131_072):
    change = [
        "cluster.nodes.0.count=2", "job.global_batch=16", "job.parallelism.pipeline=2", "run.duration=60 d",
        f"faults={{job: {{mtbf: {MTBF_OF_A_GPU / gpus} s}}}}",
        f"checkpoint={{interval: {TAU} s, write: {WRITE} s, restart: {RESTART} s}}",
    ]
    played[gpus] = colossim.simulate(colossim.load_scenario("two-pods", set=change), replicas=10)

fig, ax = plt.subplots(figsize=(7, 4))
exact = [100 / wall_over_work(TAU, MTBF_OF_A_GPU / n, WRITE, RESTART) for n in sizes]
first = [100 * ettr(1, n / MTBF_OF_A_GPU, TAU, WRITE, RESTART) for n in sizes]
ax.plot(sizes, exact, label="exact (Daly 2006)")
ax.plot(sizes, first, linestyle="--", label="to first order")
ax.plot(list(played), [100 * run.campaign.replicas["goodput"]["mean"] for run in played.values()], "ko", label="played")
ax.set(xscale="log", xlabel="GPUs that fail like Llama 3's", ylabel="goodput (%)", ylim=(0, 100))
ax.legend(frameon=False)
