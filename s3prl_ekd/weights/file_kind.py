"""What a file that should hold weights really is, judged by its bytes, and what to do about it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

logger = logging.getLogger(__name__)

# First bytes -> what such a file is, and what to do about it (None: get the right file again).
_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file that it stands for",
        "run 'git lfs install' and 'git lfs pull' in its repository",
    ),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file, as TensorFlow writes it", "take the PyTorch weights of the same model"),
    (b"\x93NUMPY", "a NumPy array, not a model", None),
    (b"GGUF", "a GGUF file", "take the PyTorch weights of the same model"),
    (b"RIFF", "a RIFF file, such as a WAV recording, not a model", None),
    (b"fLaC", "a FLAC recording, not a model", None),
    (b"OggS", "an Ogg recording, not a model", None),
    (b"%PDF", "a PDF document", None),
    (b"\x89PNG", "a PNG picture", None),
)
_FOLDER = "name the folder that has it beside its config.json (as a teacher: transformers: FOLDER)"
_SAMPLE = 4096  # bytes that tell text from anything else
_OF_TENSORS = re.compile(r"torch\.\w+|torch\._.*|__torch__\..*|collections\.OrderedDict|(__builtin__|builtins)\.set")
_MAX_PICKLES = 5  # one after the other in files of torch before 1.6: three of its own, the object, storages' names
_MAX_HEADER = 100_000_000  # what safetensors itself allows


def problem_of(path: str | Path, *, pickled: bool = False) -> str | None:
    """What is wrong with a file and what to do, as the end of a sentence that begins with its path.

    Args:
        path: the file.
        pickled: whether torch.save should have written it; safetensors and JSON are then wrong, too.

    Returns:
        None if its bytes show nothing wrong: it may be a checkpoint, safetensors or JSON.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        found = _wrong(file, path.stat().st_size, pickled)
    if found is None:
        return None
    kind, remedy = found
    return f"{kind}; {remedy or again(path)}"


def again(path: str | Path) -> str:
    """How to get a damaged file anew: in a cache it must be deleted first."""
    actual = Path(path).resolve()  # the hub's cache names files by links to them
    if any(actual.is_relative_to(cache) for cache in _caches()):
        return f"delete {actual} and start again, then it is downloaded anew"
    return "download or copy it again"


def _caches() -> list[Path]:
    """Folders of files that were downloaded, whose paths the user may not know."""
    folders = []
    with contextlib.suppress(RuntimeError):  # the home folder is unknown
        folders.append(Path.home() / ".cache/s3prl/download")
    s3prl_download = sys.modules.get("s3prl.util.download")
    if s3prl_download is not None:
        with contextlib.suppress(OSError):  # get_dir also makes the folder
            folders.append(Path(s3prl_download.get_dir()))  # which a user can set
    with contextlib.suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders.append(Path(HF_HUB_CACHE))
    return [folder.resolve() for folder in folders]


def _wrong(file: BinaryIO, size: int, pickled: bool) -> tuple[str, str | None] | None:
    """Kind and remedy of what cannot be a model."""
    start = file.read(_SAMPLE)
    if not start:
        return "an empty file", None
    for signature, kind, remedy in _SIGNATURES:
        if start.startswith(signature):
            return kind, remedy
    if not start.strip(b"\0"):
        return "filled with zeros where it begins, as a download leaves it that was broken off", None
    if start.startswith(b"PK\x03\x04"):
        return _wrong_zip(file)
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it first"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= _MAX_HEADER:
        return _wrong_safetensors(file, header, size) or (("a safetensors file", _FOLDER) if pickled else None)
    text = _as_text(start)
    if text is None:
        return None
    if text.lower().startswith(("<!doctype html", "<html", "<head")):
        return "a web page (HTML), not the file that it links to", None
    if text.lower().startswith("<?xml"):
        return "a web server's answer in XML, not the file that it was asked for", None
    if text.startswith(("{", "[")):
        return ("a JSON file, not weights", _FOLDER) if pickled else None
    words = " ".join(text.split())
    return f"a text file, not a model (it begins with {words[:40]!r})", None


def _wrong_zip(file: BinaryIO) -> tuple[str, str | None] | None:
    """Kind and remedy of a zip archive that is no checkpoint. (A zip archive has its list of contents at the end.)"""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "incomplete: its end is missing", None
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, which holds code", "take the weights of the same model"
    if not any(name.endswith("/data.pkl") for name in names):
        holds = ", ".join(names[:3]) or "nothing"
        return f"a zip archive that torch did not write (it holds {holds})", "unpack it first"
    return None


def _wrong_safetensors(file: BinaryIO, header: int, size: int) -> tuple[str, str | None] | None:
    """The same for safetensors. (The header's length in 8 bytes; the header, in JSON, places the tensors behind it.)"""
    file.seek(8)
    try:
        entries = json.loads(file.read(header))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + header + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        wanted = 8 + header
        if size >= wanted:
            return "a damaged safetensors file: its header cannot be read", None
    if size < wanted:
        return f"incomplete: {size:,} of {wanted:,} bytes are there", None
    return None


def objects_in(path: str | Path) -> list[str]:
    """The classes and functions that a pickle (alone or in a file of torch.save) would import; nothing is imported.

    Left out are those that tensors consist of, and TorchScript's own classes.
    """
    names: list[str] = []
    try:
        for pickled in _pickles(Path(path)):
            names += _imported(pickled)
    except Exception as error:  # no pickle, no further one, or damaged: reading it can raise nearly anything
        logger.debug("%s: %s: %s", path, type(error).__name__, error)
    return [name for name in dict.fromkeys(names) if not _OF_TENSORS.fullmatch(name)]


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """A file at the beginning of each pickle: one in a zip archive of torch, several in a row in other files."""
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                yield io.BytesIO(archive.read(member))
            return
        file.seek(0)
        for _ in range(_MAX_PICKLES):
            yield file


def _imported(file: IO[bytes]) -> list[str]:
    """The names that one pickle imports; the file is read to the pickle's end."""
    names: list[str] = []
    words: list[str] = []
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            names.append(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.append(".".join(words[-2:]))
        elif isinstance(argument, str):
            words.append(argument)
    return names


def _as_text(start: bytes) -> str | None:
    """The first bytes of a file as text without white space around it; None if they are not text."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # more than a character that the sample cuts in two
            return None
        text = start[: error.start].decode("utf-8")
    printable = sum(character.isprintable() or character.isspace() for character in text)
    return text.strip() if printable == len(text) and text.strip() else None
