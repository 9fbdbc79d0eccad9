"""Small files: written whole or not at all, and lists, folders and YAML read the same way by everyone."""

from __future__ import annotations

import codecs
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from s3prl_ekd.errors import UserError, one_line, shorten

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks
_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at characters such as U+2028, U+0085
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (to be written as a file or made a folder) that replaces it at the end.

    If the block raises, the temporary thing and the folders made for it are removed and ``path`` stays as it was; what
    killed processes have left of an attempt is removed first. The temporary name keeps the suffix, since some writers
    choose the format by it.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
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
        made = []
    finally:
        _remove(temporary)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _process() -> str:
    """This process in the name of a temporary file: machine and number, since several machines may write there."""
    return f"{os.uname().nodename}-{os.getpid()}"


def _clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of :func:`atomic_path`; put back a folder that one of them had moved aside."""
    parts = rf"\.{re.escape(path.stem)}\.(?P<process>[^/]+)\.part{re.escape(path.suffix)}"
    olds = rf"\.{re.escape(path.name)}\.(?P<retired>[^/]+)\.old"
    with contextlib.suppress(OSError):  # the write that follows reports it
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
    """Whether the process in a temporary name is known to have ended (if it had our number, it ended before us)."""
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
    """Exchange two names in one go, so that both exist at every moment; False where the system cannot do that."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return exchange(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Make ``folder``, and keep out other processes that would do the same while the block runs.

    Args:
        folder: where the block writes.
        wait: until another process has left the folder, instead of refusing.

    The operating system frees the folder when this process ends, however it ends. (Therefore ``lockf``: a data loader's
    forked worker, which may outlive a killed process by seconds, would inherit a lock of ``flock``.)

    Raises:
        UserError: another process is at work there.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        while not _lock(stack.enter_context(path.open("w")), path, wait):
            if not wait:
                raise UserError(f"another process is at work in {folder}: wait until it ends, or end it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: TextIO, path: Path, wait: bool) -> bool:
    """Lock an open file; False where another process has it, or has removed it since it was opened."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning("%s: locks do not work here; see to it that no other process writes there", path.parent)
            return True
        if wait:
            raise
        return False
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def read_lines(path: str | Path, hint: str = "give the path of a text file") -> list[tuple[int, str]]:
    """The lines of a list, transcript or lexicon that are not blank, each with its number from 1.

    The text is UTF-8, with or without a byte order mark; lines end as on any system. Another encoding is refused and
    not guessed: a wrong guess would change words silently.

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


def is_remote(address: str) -> bool:
    """Whether an address is no path of a file system: an object store's, or a command's output (``pipe:``)."""
    return address.startswith("pipe:") or "://" in address


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


_YAML_BYTES = 1 << 20
_YAML_VALUES = 10_000  # an alias counts as all that it stands for: nine lines of them can mean gigabytes
_YAML_DEPTH = 50
_YAML_BITS = 256  # of an integer; int() itself refuses long decimals only, and printing long ones fails
_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


@functools.cache
def _strict_loader() -> type:
    """yaml.SafeLoader for settings: plain values of bounded number and depth only, no key twice.

    A date stays text, as nothing here is one.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._level = 0
            self._extent: dict[yaml.Node, tuple[int, int]] = {}  # of finished nodes: values below them, depth

        def _error(self, problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
            return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
            mark = self.peek_event().start_mark
            self._level += 1
            if self._level > _YAML_DEPTH:
                raise self._error(f"nested deeper than {_YAML_DEPTH} levels", mark)
            alias = self.check_event(yaml.AliasEvent)
            node = super().compose_node(parent, index)
            assert node is not None  # PyYAML always gives one, though its type allows None
            self._level -= 1
            if not alias:
                self._measure(node)
            elif node not in self._extent:
                raise self._error("an alias of what it stands in", mark)
            return node

        def _measure(self, node: yaml.Node) -> None:
            below = []
            if isinstance(node, yaml.MappingNode):
                below = [part for pair in node.value for part in pair]
                seen = set()
                for key in (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
                    name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
                    if name in seen:
                        raise self._error(f"{shorten(key.value)!r} is there twice", key.start_mark)
                    seen.add(name)
            elif isinstance(node, yaml.SequenceNode):
                below = node.value
            values = 1 + sum(self._extent[part][0] for part in below)
            depth = 1 + max((self._extent[part][1] for part in below), default=0)
            self._extent[node] = values, depth
            for what, most, found in (
                ("values", _YAML_VALUES, max(values, len(self._extent))),
                ("levels", _YAML_DEPTH, depth),
            ):
                if found > most:
                    raise self._error(f"more than {most} {what}, aliases included", node.start_mark)

        def refuse_tag(self, node: yaml.Node) -> None:
            raise self._error(f"a {shorten(node.tag)}; settings are plain values", node.start_mark)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
            except (ValueError, LookupError) as error:  # from what an explicit tag or a number makes of the text
                problem = f"{shorten(str(node.value))!r} is no {node.tag.rpartition(':')[2]}"
                raise self._error(problem, node.start_mark) from error
            if isinstance(value, int) and value.bit_length() > _YAML_BITS:
                raise self._error("a number of too many digits", node.start_mark)
            return value

    Loader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN}
    Loader.add_constructor(None, Loader.refuse_tag)
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: mappings, lists, strings, numbers, truth values and nothing else.

    Raises:
        UserError: it is not YAML; a key is there twice; it is, or stands for, more than any settings are; a tag asks
            for an object.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise UserError(f"not valid YAML ({place}{shorten(error.problem or error.context or 'unreadable')})") from error
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML ({one_line(error, 80)})") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, see :func:`parse_yaml`.

    Raises:
        UserError: the file is missing, unreadable, not YAML or not a mapping.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_YAML_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; give the path of a readable YAML file") from error
    try:
        if len(data) > _YAML_BYTES:
            raise UserError(f"not the YAML of settings (longer than {_YAML_BYTES} bytes)")
        value = parse_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected 'key: value' lines at the top level, found {type(value).__name__}")
    return value
