"""`python -m colossim` is the command line."""

from colossim.cli import main

main()
