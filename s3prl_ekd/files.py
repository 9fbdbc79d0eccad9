"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (to be written as a file or made a folder) that replaces it at the end.

    If the block raises, the temporary thing is removed and ``path`` stays as it was; what killed processes have left
    of an attempt is removed first. The temporary name keeps the suffix, since some writers choose the format by it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: no such folder, and it cannot be made ({error.strerror})") from error
    _clear_leftovers(path)
    temporary = path.with_name(f".{path.stem}.{_process()}.part{path.suffix}")
    try:
        yield temporary
        if not (temporary.is_dir() and path.exists()):
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            retired = path.with_name(f".{path.name}.{_process()}.old")
            os.replace(path, retired)
            os.replace(temporary, path)
            _remove(retired)
    finally:
        _remove(temporary)


def _process() -> str:
    """This process among those that may write there, which can be other machines'."""
    return f"{os.uname().nodename}-{os.getpid()}"


def _clear_leftovers(path: Path) -> None:
    """Remove what processes that are dead have left of :func:`atomic_path`; a folder that one had put aside is back."""
    parts = rf"\.{re.escape(path.stem)}\.(?P<process>[^/]+)\.part{re.escape(path.suffix)}"
    olds = rf"\.{re.escape(path.name)}\.(?P<retired>[^/]+)\.old"
    with contextlib.suppress(OSError):  # whoever writes next will say so
        for name in os.listdir(path.parent):
            found = re.fullmatch(f"{parts}|{olds}", name) if name.startswith(".") else None
            if found is None or not _is_dead(found["process"] or found["retired"]):
                continue
            leftover = path.with_name(name)
            if found["retired"] and not path.exists():
                logger.warning("%s: put back, since the process that was to replace it was killed", path)
                os.replace(leftover, path)
            else:
                _remove(leftover)


def _is_dead(process: str) -> bool:
    """Whether that of a temporary name is known to have ended; one of this number is one of before a restart."""
    host, _, number = process.rpartition("-")
    if not number.isdigit() or host not in ("", os.uname().nodename):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return int(number) == os.getpid()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names, so that there is no moment without either; False where the system cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return exchange(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
