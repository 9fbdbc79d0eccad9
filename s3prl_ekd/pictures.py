"""What all pictures share: colours that colour-blind readers tell apart, and files that are written whole or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's palette (2008, Color Universal Design) but black, which is left for what is drawn upon the others."""


def colours(count: int) -> list[str]:
    """``count`` different colours; more than the palette has are shades of a colour map made for the colour-blind."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["cividis"](number / (count - 1))) for number in range(count)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which opens no window.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def literal(text: str) -> str:
    """``text`` for matplotlib to show as it is, in one line.

    Between two dollar signs it would see a formula, and it leaves what begins with an underscore out of legends.
    """
    text = " ".join(text.split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a picture in the format of its file's suffix, with ``options`` of matplotlib's ``savefig``.

    Raises:
        UserError: there is no such format, or the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, **{"format": path.suffix[1:], "dpi": 120, **options})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
