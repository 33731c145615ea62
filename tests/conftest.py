"""Options of the test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the step times that the scenarios have now")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Golden numbers go into one file: one process writes it."""
    if config.getoption("--update-golden"):
        config.option.numprocesses, config.option.dist = None, "no"


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")
