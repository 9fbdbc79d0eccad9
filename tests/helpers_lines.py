"""Links from documents to lines of code: their text is the name of what is defined there.

``[`Distiller.forward`](../s3prl_ekd/distiller.py#L120)`` leads to the line of ``def forward`` in ``class Distiller``.
``python tests/helpers_lines.py`` writes the lines into docs/architecture.md anew (``make links``).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<file>[\w./]+\.py)#L\d+\)")


def definitions(path: Path) -> dict[str, int]:
    """Qualified names of a module's classes, functions and constants, and the lines that they begin at."""
    found: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef() | ast.FunctionDef():
                    found[prefix + node.name] = node.lineno
                    if isinstance(node, ast.ClassDef):
                        visit(node.body, f"{prefix}{node.name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found[prefix + name] = node.lineno

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def relinked(text: str, folder: Path) -> str:
    """A document of ``folder`` with every link to a definition at the line where that is now.

    Raises:
        KeyError: there is no definition of that name in the file.
    """
    return _LINK.sub(
        lambda link: f"[`{link['name']}`]({link['file']}#L{definitions(folder / link['file'])[link['name']]})", text
    )


if __name__ == "__main__":
    page = ROOT / "docs/architecture.md"
    page.write_text(relinked(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
