"""Every shell command of docs/your_corpora.md is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

from helpers_documents import run_commands


def test_commands(tmp_path):
    run_commands("docs/your_corpora.md", tmp_path)
