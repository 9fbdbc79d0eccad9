"""What the tests of training share: logs that reach caplog, and one finished run that no test changes."""

from __future__ import annotations

import logging

import helpers_train as h
import pytest


@pytest.fixture(autouse=True)
def _propagating_logs(monkeypatch):
    """Lightning sets its own loggers' levels; ours must reach caplog whatever ran before."""
    monkeypatch.setattr(logging.getLogger("s3prl_ekd"), "propagate", True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of 12 steps with everything on."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert h.run(h.recipe(output)) == 0
    return output
