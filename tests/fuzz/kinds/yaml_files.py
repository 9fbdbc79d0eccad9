"""Text in the place of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz.change import Change
from fuzz.kinds.good import RECIPE
from s3prl_ekd.files import read_yaml, write_yaml

ABOUT = "YAML: cut, doubled, mixed with tags, anchors, aliases, brackets, control characters; bytes flipped"

FRAGMENTS = (
    "[", "{", "}", "]", "[" * 10_000, "{a: " * 1000, ": ", "? ", "- ", "\t", "\0", "\x1b", "\u2028", "\ufeff", "'", '"',
    "|\n", ">-\n", "#", "%YAML 9.9\n---\n", "---\n", "...\n", "!!python/object/apply:os.system [ls]", "!!int x",
    "!!set", "!!binary =", "!!timestamp x", "!x ", "&a ", "*a", "*b", "&a [*a]", "<<: *a\n", "<<: [1]\n", "2024-13-45",
    "0b_", "0x" + "f" * 4000, "9" * 5000, "1:90:90", ".inf", "~", "=", "<<", "\\ud800", '"\\ud800"', "x" * 20_000, "é",
    "a0: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
)  # fmt: skip


def prepare(good: Path) -> None:
    write_yaml(good / "recipe.yaml", RECIPE)


def draw(good: Path, change: Change) -> Callable[[], object]:
    data = (good / "recipe.yaml").read_bytes()
    if change.rng.random() < 0.3:
        data = change.data(data)
    else:
        data = change.text(data.decode(), FRAGMENTS).encode("utf-8", "surrogatepass")
    Path("recipe.yaml").write_bytes(data)
    return lambda: repr(read_yaml("recipe.yaml"))
