"""Every shell command of README.md and docs/ is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

import contextlib
import re

import pytest
from helpers_documents import ROOT, Shop, blocks, run_commands

DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "reliability.md"  # `make fuzz` takes ten minutes, test_fuzz.py runs a part
    and blocks(path.read_text(encoding="utf-8"), "bash")
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with contextlib.closing(Shop(tmp_path_factory.mktemp("shop"))) as shop:
        yield shop


@pytest.mark.timeout(1800)  # a minute or two for the longest, on cores that do nothing else
@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands(name, shop, tmp_path):
    run_commands(name, shop, tmp_path)


def test_nothing_is_left_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", path.read_text(encoding="utf-8")), path
