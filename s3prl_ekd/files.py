"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks


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
