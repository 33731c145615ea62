"""Fits the constants that ship on all published runs, and writes them with their errors.

    python -m calibration.steps           # what would change
    python -m calibration.steps --write   # into colossim/catalog/calibrated.yaml and measured/validation.yaml
    python -m calibration.steps --as-is --write   # no fit: how far runs are predicted off with the entries as they are

Needs scipy (`pip install -e '.[calibration]'`), and some minutes. What it does is `colossim calibrate`'s: it begins at what the
entries say, so that running it twice finds the same.
"""

from __future__ import annotations

import argparse
import os

import yaml
from rich.console import Console

from colossim.calibrate import bands, catalogue_text, fit_sources, scores
from colossim.catalog import CALIBRATED, SCORES
from colossim.result.calibration import show_calibration

HEAD = """\
# Written by `python -m calibration.steps --write`, read by `colossim validate`: mean errors of step times in %, by source.
# bands: by how many % the runs of a GPU, stack and precision (with what these are based on) are predicted off, while left out.
# SOURCE: {untuned_mean_pct: before any fit, left_out_mean_pct: of whole configurations that the fit left out}
"""


def main() -> None:
    """Fits, shows and, if asked to, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--as-is", action="store_true")
    asked = parser.parse_args()
    fitted = fit_sources((), os.cpu_count() or 1, constants=() if asked.as_is else None)
    show_calibration(fitted, Console())
    if asked.write:
        text = "# Nothing is fitted: the entries hold as they are.\n{}\n" if asked.as_is else catalogue_text(fitted)
        CALIBRATED.write_text(text, encoding="utf-8")
        found = {"sources": {} if asked.as_is else scores(fitted), "bands": bands(fitted)}
        text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=128)
        SCORES.write_text(HEAD + text, encoding="utf-8")


if __name__ == "__main__":
    main()
