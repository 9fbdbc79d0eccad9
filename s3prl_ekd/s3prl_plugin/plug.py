"""Puts our line into an environment, or our files into a checkout of s3prl, and takes them back."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sysconfig
from pathlib import Path

from s3prl_ekd import assets, recipe_files
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path
from s3prl_ekd.s3prl_plugin import hook

PTH = "s3prl_ekd_plug.pth"
# Every start of Python runs it: nothing is imported that is not loaded anyway, and should the package be gone one day,
# nothing happens.
PTH_LINE = (
    f"import os; os.path.isfile({hook.__file__!r}) and __import__({hook.__name__!r}, fromlist=['install']).install()\n"
)
RECIPE = "ekd_student"
CODE = {
    "__init__.py": "",
    "pretrain_expert.py": "from s3prl_ekd.s3prl_plugin.checkout import UpstreamPretrainExpert  # noqa: F401\n",
}
YAML = ("config_model.yaml", "config_runner.yaml")
FILES = (*CODE, *YAML)
_MARK = "# Written by s3prl-ekd plug; taken out by s3prl-ekd unplug --s3prl DIR unless edited. sha256 "


# --- the environment --------------------------------------------------------------------------------------------------


def pth_file() -> Path:
    """Where this environment's line of plugging is, if it is plugged."""
    return Path(sysconfig.get_path("purelib")) / PTH


def plug_environment() -> None:
    """Put one line into site-packages that waits, at the start of Python, for s3prl to be imported."""
    path = pth_file()
    if path.is_file() and path.read_text(encoding="utf-8") == PTH_LINE:
        print(f"already plugged: {path}")
        return
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(PTH_LINE, encoding="utf-8")
    except (OSError, UserError) as error:
        reason = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise UserError(f"{reason}; use python -m s3prl_ekd.run_downstream, which needs no plugging") from error
    print(f"plugged: {path}")
    print("python -m s3prl.run_downstream -u ekd_student -k WHERE ... works now (without a GPU add --device cpu)")


def unplug_environment() -> None:
    """Remove the line from site-packages."""
    path = pth_file()
    if not path.is_file():
        print("not plugged: nothing to do")
        return
    path.unlink()
    print(f"unplugged: {path} removed")


# --- a checkout -------------------------------------------------------------------------------------------------------


def plug_checkout(folder: Path, recipe: str) -> None:
    """Put ``pretrain/ekd_student/`` into a checkout: a re-export and two YAML files.

    A file that is there from an earlier plugging and has been edited stays.
    """
    target = recipe_folder(folder)
    if target.exists() and not any(is_ours(target / name) for name in FILES):
        raise UserError(f"{target} is there already and not from s3prl-ekd plug; move it away first")
    source = assets.recipe(recipe)
    missing = [name for name in YAML if not (source / name).is_file()]
    if missing:
        valid = ", ".join(recipe_files.for_pretraining())
        raise UserError(f"--recipe {recipe}: has no {missing[0]}; recipes for pretraining: {valid}")
    texts = CODE | {name: (source / name).read_text(encoding="utf-8") for name in YAML}
    kept = {name for name in FILES if (target / name).exists() and not is_untouched(target / name)}
    try:
        with contextlib.nullcontext(target) if target.exists() else atomic_path(target) as written:
            written.mkdir(exist_ok=True)
            for name in texts.keys() - kept:
                with atomic_path(written / name) as temporary:
                    temporary.write_text(marked(texts[name]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}") from error
    print(f"plugged: {target}")
    for name in sorted(kept):
        print(f"kept, since it was edited: {target / name}")
    print(f"say where the data are in {target / YAML[1]}, under pretrain_expert.datarc")
    print(f"in {target.parent.parent}: python run_pretrain.py -u {RECIPE} -n NAME (without a GPU add --device cpu)")


def unplug_checkout(folder: Path) -> None:
    """Remove ``pretrain/ekd_student/``; what was edited or added there stays, and is named.

    Raises:
        UserError: no checkout, or an ``ekd_student`` that plug did not write.
    """
    target = recipe_folder(folder)
    if not target.exists():
        print("not plugged: nothing to do")
        return
    if not any(is_ours(target / name) for name in FILES):
        raise UserError(f"{target} is not from s3prl-ekd plug; it stays")
    for name in FILES:
        if is_untouched(target / name):
            (target / name).unlink()
    shutil.rmtree(target / "__pycache__", ignore_errors=True)
    left = sorted(path.name for path in target.iterdir())
    if left:
        print(f"unplugged; in {target} these stay, since they were edited or added: {', '.join(left)}")
    else:
        target.rmdir()
        print(f"unplugged: {target} removed")


def recipe_folder(folder: Path) -> Path:
    """``pretrain/ekd_student`` of a checkout, given the repository or the folder ``s3prl`` in it.

    Raises:
        UserError: it is no checkout of s3prl.
    """
    for root in (folder / "s3prl", folder):
        if all((root / name).is_file() for name in ("run_pretrain.py", "pretrain/runner.py", "utility/helper.py")):
            return root / "pretrain" / RECIPE
    raise UserError(f"--s3prl {folder}: not a checkout of s3prl (no s3prl/run_pretrain.py with its pretrain/ there)")


def marked(text: str) -> str:
    """``text`` under a line that says whose it is and what it was."""
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n{text}"


def is_ours(path: Path) -> bool:
    """Whether plug wrote this file, edited since or not."""
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


def is_untouched(path: Path) -> bool:
    """Whether this file is as plug wrote it."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text == marked(text.partition("\n")[2])
