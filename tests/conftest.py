"""Shared fixtures."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets and weights, GANSTYLE_TEST_DATA.

    Where it is missing, tests that need it are skipped, or fail if GANSTYLE_REQUIRE_DATA=1.
    """
    path = Path(os.environ.get("GANSTYLE_TEST_DATA") or ROOT / "../shared/data").resolve()
    if not path.is_dir():
        reason = f"no folder {path}: set GANSTYLE_TEST_DATA to the folder of test data"
        if os.environ.get("GANSTYLE_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
