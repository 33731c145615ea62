"""Writes the README's table of published runs anew: every run predicted, errors by source.

Between `<!-- validate: begin -->` and `<!-- validate: end -->`. Run from the root of a checkout:
`python -m benchmarks.readme_table`.
"""

from __future__ import annotations

import os
from pathlib import Path

from colossim.result.validation import markdown
from colossim.validation import validate

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- validate: begin -->", "<!-- validate: end -->"


def replaced(text: str, table: str) -> str:
    """The text with a new table between the markers. Raises ValueError if they aren't there once each."""
    before, after = text.split(BEGIN), text.split(END)
    if len(before) != 2 or len(after) != 2:
        raise ValueError(f"README.md: {BEGIN} and {END} stand there once each")
    return f"{before[0]}{BEGIN}\n{table}\n{END}{after[1]}"


def main() -> None:
    table = markdown(validate(workers=os.cpu_count() or 1))
    README.write_text(replaced(README.read_text(), table))


if __name__ == "__main__":
    main()
