"""Every shell command of README.md is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

from helpers_documents import run_commands


def test_commands(tmp_path):
    run_commands("README.md", tmp_path)
