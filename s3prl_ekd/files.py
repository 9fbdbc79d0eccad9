"""Reading and writing small files: never half of one, and the same text and the same folder for every reader."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks
_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at characters such as U+2028, U+0085


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (to be written as a file or made a folder) that replaces it at the end.

    If the block raises, the temporary thing is removed and ``path`` stays as it was. The temporary name keeps the
    suffix, since some writers choose the format by it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: no such folder, and it cannot be made ({error.strerror})") from error
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Make ``folder``, and keep out other processes that would do the same while the block runs.

    The operating system frees the folder when this process ends, however it ends. (Therefore ``lockf``: a data loader's
    forked worker, which may outlive a killed process by seconds, would inherit a lock of ``flock``.)

    Raises:
        UserError: another process is at work there.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())  # not one just removed
        except OSError as error:
            ours = error.errno in _NO_LOCKS
            if ours:
                logger.warning("%s: locks do not work here; see to it that no other process writes there", folder)
        if not ours:
            raise UserError(f"another process is at work in {folder}: wait until it ends, or end it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_lines(path: str | Path, hint: str = "give the path of a text file") -> list[tuple[int, str]]:
    """The lines of a list, transcript or lexicon that are not blank, each with its number from 1.

    The text is UTF-8, with or without a byte order mark; lines end as on any system. Another encoding is refused and
    not guessed: a wrong guess would change words without a word.

    Args:
        path: the file.
        hint: what to do where it cannot be read, for the message.

    Raises:
        UserError: the file is missing or unreadable, or no UTF-8 text.
    """
    try:
        data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; {hint}") from error
    if b"\0" in data:
        raise UserError(f"{path}: not a text file in UTF-8 (UTF-16, or no text at all); {hint}, saved as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = len(_LINE_END.split(data[: error.start].decode()))
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02X}, Latin-1 perhaps); save the file as UTF-8,"
            " for instance by: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from error
    return [(number, line) for number, line in enumerate(_LINE_END.split(text), start=1) if line.strip()]


def files_below(folder: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """All files below ``folder``, however deeply nested, whose names end in one of ``suffixes`` in any case; sorted.

    Hidden files and folders are left out (such as ``._x.flac``, which macOS puts beside ``x.flac``), links are
    followed, but not in circles. A folder that cannot be entered is warned about.
    """
    from tqdm import tqdm

    endings = tuple(suffix.lower() for suffix in suffixes)
    found = []
    walk = os.walk(folder, followlinks=True, onerror=lambda error: logger.warning("left out: %s", error))
    for root, folders, names in tqdm(walk, desc=f"files in {folder}", delay=2, leave=False):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(root, name)]
        found += [Path(root, name) for name in names if name.lower().endswith(endings) and not name.startswith(".")]
    return sorted(found)


def _leads_back(root: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    path = os.path.join(root, name)
    return os.path.islink(path) and Path(os.path.realpath(root)).is_relative_to(os.path.realpath(path))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write ``value`` as YAML, keys in their order, atomically."""
    import yaml

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


@functools.cache
def _strict_loader() -> type:
    """yaml.SafeLoader, which takes the last of two equal keys, made to refuse the second."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"line {node.start_mark.line + 1} and after: {key!r} is there twice")
            return super().construct_mapping(node, deep)

    return Loader


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, unreadable, not YAML or not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_strict_loader())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a readable YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected 'key: value' lines at the top level, found {type(value).__name__}")
    return value
