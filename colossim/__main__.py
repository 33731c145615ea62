"""`python -m colossim`, and what the command `colossim` starts."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line; an interrupt while it is still being imported ends in one line, too."""
    try:
        from colossim.cli import main as command_line
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
