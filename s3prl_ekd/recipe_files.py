"""The recipes that come with the package, and their files by name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from s3prl_ekd import assets
from s3prl_ekd.errors import UserError

_log = logging.getLogger(__name__)


def folders() -> dict[str, Path]:
    """Folders that hold YAML or job scripts, by their path below ``recipes/``."""
    root = assets.recipe()
    return {str(folder.relative_to(root)): folder for folder in sorted({path.parent for path in files(root.rglob)})}


def for_pretraining() -> list[str]:
    """Folders with the YAML of s3prl's ``run_pretrain.py``, by their path below ``recipes/``."""
    return [name for name, folder in folders().items() if (folder / "config_model.yaml").is_file()]


def find(path: str, where: str = "") -> str:
    """The path of a recipe: the user's own file, or else the packaged one of that name, which the log then says.

    Args:
        path: a path, or a name below ``recipes/``, such as ``mini/ekd.yaml`` or ``recipes/mini/ekd.yaml``.
        where: the option it belongs to, for the message.

    Raises:
        UserError: there is neither; the message names the nearest packaged one.
    """
    if Path(path).is_file():
        return path
    root = assets.recipe()
    packaged = {file.relative_to(root).as_posix(): file for file in files(root.rglob) if file.suffix == ".yaml"}
    name = path.removeprefix("recipes/")
    if name in packaged:
        _log.info("%s: not here, so the one that comes with s3prl-ekd: %s", path, packaged[name])
        return str(packaged[name])
    close = difflib.get_close_matches(name, packaged, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "s3prl-ekd recipes lists them"
    raise UserError(
        f"{f'{where} ' if where else ''}{path}: no such file (working folder: {Path.cwd()}), and none of s3prl-ekd's"
        f" recipes; {hint}"
    )


def files(search: Callable[[str], Iterable[Path]]) -> list[Path]:
    """YAML files and job scripts that ``search``, a folder's glob or rglob, finds."""
    return sorted(path for pattern in ("*.yaml", "*.sbatch") for path in search(pattern))
