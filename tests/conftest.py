"""Options of the test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the step times that the scenarios have now")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")
