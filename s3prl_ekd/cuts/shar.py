"""Audio out of tars, by name and in any order; tars that are not on a file system are copied to a cache first.

Lhotse's own reader goes through a tar from its start, so that every cut before the position of a resumed run would be
read. Tars written for it are read here by an index of their members.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import time
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.manifests import open_bytes
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import atomic_path, is_remote

logger = logging.getLogger(__name__)

_NOT_AUDIO = frozenset({".json", ".nodata", ".nometa"})
_OPEN_TARS = 64
_ATTEMPTS = 3


class TarReader:
    """Reads members of Shar tars; each process has its own.

    Tars from an object store or a command are copied to a folder that all processes of a node share.

    Args:
        folder: for these copies; None: one in the system's folder for temporary files.
        limit_gb: what they may take; those that were not used for longest are deleted.
    """

    def __init__(self, folder: str | None, limit_gb: float) -> None:
        self.folder = Path(folder or os.path.join(tempfile.gettempdir(), f"s3prl-ekd-shar-{os.getuid()}"))
        self.limit = limit_gb * 1e9
        self._opened: OrderedDict[str, tuple[BinaryIO, dict[str, tuple[int, int]]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # open files stay in their process

    def read(self, tar: str, name: str) -> bytes:
        """The audio file called ``name`` (whatever its suffix) in ``tar``.

        Raises:
            SourceError: there is no such tar.
            UserError: the tar has no such member, or ends within it.
        """
        file, members = self._tar(tar)
        if name not in members:
            raise UserError(f"{tar}: holds no audio of {name}; write the shard again")
        offset, size = members[name]
        try:
            size = min(size, os.fstat(file.fileno()).st_size)  # no memory for what a damaged header promises
            file.seek(offset)
            data = file.read(size)
        except OSError as error:
            raise UserError(f"{tar}: {name} cannot be read ({error.strerror or error})") from error
        if len(data) < members[name][1]:
            raise UserError(f"{tar}: truncated within {name}; copy the tar again")
        return data

    def _tar(self, tar: str) -> tuple[BinaryIO, dict[str, tuple[int, int]]]:
        if tar in self._opened:
            self._opened.move_to_end(tar)
        else:
            if len(self._opened) >= _OPEN_TARS:
                _, (file, _) = self._opened.popitem(last=False)
                file.close()
            file = self._open(tar)
            self._opened[tar] = file, index_members(file, tar)
        return self._opened[tar]

    def _open(self, tar: str) -> BinaryIO:
        if not is_remote(tar):
            try:
                return Path(tar).open("rb")
            except OSError as error:
                raise SourceError(f"{tar}: {error.strerror}; a Shar manifest needs this tar beside it") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        copy = self.folder / f"{hashlib.blake2b(tar.encode(), digest_size=16).hexdigest()}.tar"
        with open(copy.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first to need it copies it, the others wait
            if copy.exists():
                os.utime(copy)
            else:
                _fetch(tar, copy)
            file = copy.open("rb")  # opened under the lock: removing it from now on does not matter
        self._evict()
        return file

    def _evict(self) -> None:
        found = []
        for tar in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                found.append((tar.stat().st_mtime, tar.stat().st_size, tar))
        total = sum(size for _, size, _ in found)
        for _, size, tar in sorted(found)[:-1]:  # by last use; the newest stays
            if total <= self.limit:
                return
            total -= size
            tar.unlink(missing_ok=True)


def index_members(file: BinaryIO, name: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each audio member by its name without suffix; what a truncated tar has lost is left out."""
    members = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and path.suffix not in _NOT_AUDIO:
                    members[str(path.with_suffix(""))] = member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:  # damaged headers give other errors too
        if not members:
            raise SourceError(f"{name}: not an uncompressed tar file ({error})") from error
        logger.warning("%s: damaged or truncated after %d recordings (%s)", name, len(members), error)
    return members


def _fetch(address: str, copy: Path) -> None:
    reason = ""
    for attempt in range(_ATTEMPTS):
        try:
            with atomic_path(copy) as temporary, open(temporary, "wb") as file, open_bytes(address) as source:
                shutil.copyfileobj(source, file)
            return
        except Exception as error:  # what an object store's client can raise is not ours to list
            logger.warning("%s: attempt %d to fetch it failed (%s)", address, attempt + 1, error)
            reason = one_line(error)
            time.sleep(attempt)
    raise SourceError(f"{address}: cannot be fetched ({reason})")
