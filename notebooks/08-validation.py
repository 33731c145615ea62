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
# # How far off is it?
#
# Every published run that ships is a scenario with a `measured` step time. `colossim.validate` predicts one source, or all
# (`colossim validate` on the command line does that on all cores). Here are four sources that take seconds: two generations of
# Megatron, eager PyTorch with FSDP, and torchtitan.

# %%
# %matplotlib inline
import colossim

SOURCES = ("korthikanti-2022", "vtrain-single-node", "llm-foundry-a100", "torchtitan-a100")
reports = {source: colossim.validate(source) for source in SOURCES}
print(f"{'source':20} {'rows':>5} {'mean':>7} {'median':>7} {'worst':>7} {'bias':>7}   of the absolute error, in %")
for source, report in reports.items():
    row = report["sources"][source]
    print(
        f"{source:20} {row['n']:>5} {row['mean_pct']:>7.1f} {row['median_pct']:>7.1f} {row['worst_pct']:>7.1f} "
        f"{row['bias_pct']:>+7.1f}"
    )

# %% [markdown]
# Predicted against measured. The bands are 5 and 10 %; hollow points are rows that are flagged as doubtful in their file.

# %%
together = {
    "sources": {name: row for report in reports.values() for name, row in report["sources"].items()},
    "cases": [case for report in reports.values() for case in report["cases"]],
    "memory": {"sources": {}, "cases": []},
}
colossim.plot.published(together).figure

# %% [markdown]
# An error has a shape. vTrain's single-node runs are a grid over hidden width, tensor group and micro-batch: what is off there is
# off by cells, where launches, small products and NVLink dominate: most at tensor 8 on small models.

# %%
import re
from collections import defaultdict
from statistics import fmean

cells = defaultdict(list)
for case in reports["vtrain-single-node"]["cases"]:
    hidden, tensor = re.search(r"-h(\d+)-t(\d+)-", case["case"]).groups()
    cells[int(hidden), int(tensor)].append(case["error_pct"])
for (hidden, tensor), errors in sorted(cells.items()):
    print(f"hidden {hidden:>5}, tensor {tensor}: {len(errors):>3} runs, {fmean(errors):+6.1f} % ({min(errors):+.0f} to {max(errors):+.0f})")

# %% [markdown]
# What a step is made of says why a row moves. Llama 3 8B on torchtitan, with every second layer computed again and with
# everything but each second product's output:

# %%
for case in ("llama3-8b-selective-layer", "llama3-8b-selective-op"):
    result = colossim.simulate(colossim.load_scenario("torchtitan-a100", case=case))
    parts = ", ".join(f"{name} {100 * seconds / result.step_time_s:.0f} %" for name, seconds in result.breakdown_s.items() if seconds)
    print(f"{case}: {result.step_time_s:.3f} s ({parts}); HFU {100 * result.hfu:.1f} %")

# %% [markdown]
# Each answer carries the band of the runs nearest to it, and what is beyond all of them:

# %%
result.error_band
