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
