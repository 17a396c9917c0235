"""Settings that every test runs under, and the rule that nothing is skipped silently in continuous integration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub, which reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAY_SKIP = ("gpu", "network")  # the only markers whose tests CI may leave out


def in_ci() -> bool:
    """Whether this is continuous integration, where a missing tool is a failure and not a skip."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def pytest_configure() -> None:
    """One thread a process: the workers share the cores, and sums keep one order."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip gpu tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn a skip into a failure: a test that did not run has shown nothing."""
    report = yield
    may_skip = any(item.get_closest_marker(name) for name in _MAY_SKIP)
    if in_ci() and report.skipped and not may_skip and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: {reason} (a skip is a failure in CI)"
    return report


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same global random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a headless-capable browser; skips where there is none, which CI counts as a failure."""
    for name in _BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium found; install the package `chromium`")
