"""Patches that let s3prl 0.4.18 (and the ESPnet fork of it) run on today's packages; every patch is in this module.

Each patch is one function. It looks whether what s3prl wants is missing, and only then adds it; so it does nothing on
an older stack, and nothing the second time. :func:`apply` runs all of them and is safe to call before s3prl is
imported, which is when most of them are needed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s3prl_ekd.errors import UserError, one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


PATCHES: dict[str, Callable[[], bool]] = {}
"""The patches by name, in their order: each adds what is missing, and returns whether anything was."""


def _patch(install: Callable[[], bool]) -> Callable[[], bool]:
    PATCHES[install.__name__] = install
    return install


def apply(*names: str) -> list[str]:
    """Run the named patches (default: all); returns the names of those that were needed and are now in place."""
    return [name for name, install in PATCHES.items() if (not names or name in names) and install()]


def _set(owner: Any, **values: Any) -> None:
    """Set attributes of a module or class."""
    for name, value in values.items():
        setattr(owner, name, value)


def _add_missing(owner: Any, **values: Any) -> bool:
    """Set those attributes that a module or class lacks; returns whether there were any."""
    missing = {name: value for name, value in values.items() if not hasattr(owner, name)}
    _set(owner, **missing)
    return bool(missing)


# What today's packages have to say, at every start, about code that nobody will change.
_NOISE: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, ""),  # torch.cuda.amp, torch.nn.utils.weight_norm, torch.jit
    (UserWarning, "This overload of add"),  # s3prl's own optimizers
    (SyntaxWarning, "invalid escape sequence"),  # each time anew where site-packages is read-only
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings about s3prl's age inside the block, nor about ESPnet, which only one of its upstreams needs."""
    espnet = logging.getLogger("s3prl.upstream.espnet_hubert.expert")
    espnet.addFilter(_not_of_espnet)
    try:
        with warnings.catch_warnings():
            for category, message in _NOISE:
                warnings.filterwarnings("ignore", category=category, message=message)
            yield
    finally:
        espnet.removeFilter(_not_of_espnet)


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module or class that have other values inside the block."""
    before = {name: getattr(owner, name) for name in values}
    _set(owner, **values)
    try:
        yield
    finally:
        _set(owner, **before)


def _not_of_espnet(record: logging.LogRecord) -> bool:
    return "ESPnet is not installed" not in record.getMessage()


# --- Python and numpy -------------------------------------------------------------------------------------------------


@_patch  # broken by Python 3.12, unless setuptools brings its own copy
def distutils() -> bool:
    """``distutils.util.strtobool``, imported by the hub entries of distiller, mockingjay and their kin."""
    try:
        importlib.import_module("distutils.util")
        return False
    except ImportError:
        package, util = types.ModuleType("distutils"), types.ModuleType("distutils.util")
        _set(package, __path__=[], util=util)
        _set(util, strtobool=_strtobool)
        sys.modules.update({"distutils": package, "distutils.util": util})
        return True


def _strtobool(value: str) -> int:
    """1 for y, yes, t, true, on, 1 and 0 for n, no, f, false, off, 0, as distutils had it."""
    word = value.lower()
    if word in {"y", "yes", "t", "true", "on", "1"}:
        return 1
    if word in {"n", "no", "f", "false", "off", "0"}:
        return 0
    raise ValueError(f"invalid truth value {value!r}")


@_patch  # broken by numpy 1.24
def numpy_scalar_aliases() -> bool:
    """``np.int`` (span masks of WavLM, wav2vec 2.0 and LightHuBERT) and ``np.complex`` (s3prl.utility.audio)."""
    import numpy as np

    return _add_missing(np, int=int, complex=complex)


# --- torchaudio -------------------------------------------------------------------------------------------------------


@_patch  # broken by torchaudio 2.9
def torchaudio_set_audio_backend() -> bool:
    """``torchaudio.set_audio_backend``, called by several modules during their import; there are no backends now."""
    import torchaudio

    return _add_missing(torchaudio, set_audio_backend=lambda backend=None: None)


@_patch  # broken by torchaudio 2.9, unless torchcodec is installed and finds its FFmpeg
def torchaudio_load() -> bool:
    """``torchaudio.load``, which reads through torchcodec now; :func:`load_audio` reads through soundfile."""
    import torchaudio

    if torchaudio.load is load_audio or not hasattr(torchaudio, "load_with_torchcodec") or _torchcodec_works():
        return False
    torchaudio.load = load_audio
    return True


def _torchcodec_works() -> bool:
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # RuntimeError: no FFmpeg that it could link to
        return False
    return True


class AudioFileError(UserError, RuntimeError):
    """A file that cannot be read as audio: a RuntimeError, as from torchaudio itself, whose message is one line."""


def load_audio(
    uri: str | Path | BinaryIO,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[Tensor, int]:
    """``torchaudio.load`` as it was before 2.9, on soundfile.

    Args:
        uri: a path or an open binary file.
        frame_offset: samples (per channel) to skip.
        num_frames: samples (per channel) to read at most; -1: all.
        normalize: float32 in [-1, 1]; if false, a WAV of integers keeps its integers (8 bit: uint8, 16 bit: int16,
            24 and 32 bit: int32).
        channels_first: (C, S) if true, else (S, C).
        format: accepted, not needed, as are ``buffer_size`` and ``backend``.

    Returns:
        The samples and the sampling rate in Hz.

    Raises:
        AudioFileError: missing, not audio or truncated.
        ValueError: ``num_frames`` is 0 or below -1, or ``frame_offset`` is negative.
    """
    import soundfile
    import torch

    if num_frames == 0 or num_frames < -1:
        raise ValueError(f"expected num_frames to be positive or -1, found {num_frames}")
    if frame_offset < 0:
        raise ValueError(f"expected frame_offset to be non-negative, found {frame_offset}")
    source = str(uri) if isinstance(uri, str | Path) else uri
    try:
        with soundfile.SoundFile(source) as file:
            file.seek(min(frame_offset, file.frames))
            samples = _read(file, num_frames, normalize)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioFileError(f"{uri}: cannot be read as audio ({one_line(error)})") from error
    waveform = torch.from_numpy(samples)  # (S, C)
    return (waveform.T.contiguous() if channels_first else waveform), rate


def _read(file: Any, num_frames: int, normalize: bool) -> np.ndarray:
    """Samples (S, C) of an open SoundFile in the type that torchaudio gave them."""
    as_stored = file.format == "WAV" and not normalize
    if as_stored and file.subtype == "PCM_U8":
        return ((file.read(num_frames, "int16", always_2d=True) >> 8) + 128).astype("uint8")
    integers = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32", "DOUBLE": "float64"}
    return file.read(num_frames, integers.get(file.subtype, "float32") if as_stored else "float32", always_2d=True)


@_patch  # broken by torchaudio 2.9
def torchaudio_sox_effects() -> bool:
    """``torchaudio.sox_effects``: many modules of s3prl import it, few call it, and those mostly for three effects."""
    import torchaudio

    if importlib.util.find_spec("torchaudio.sox_effects") is not None:
        return False
    module = types.ModuleType("torchaudio.sox_effects")
    module.__spec__ = ModuleSpec("torchaudio.sox_effects", loader=None)  # so that find_spec finds it the next time
    _set(module, apply_effects_tensor=_no_sox_effects, apply_effects_file=apply_effects_file)
    sys.modules["torchaudio.sox_effects"] = module
    _set(torchaudio, sox_effects=module)
    return True


def apply_effects_file(path: str, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """A file's samples (C, S) after ``channels 1``, ``rate HERTZ`` and ``gain DECIBEL``, and their rate in Hz.

    Raises:
        UserError: it cannot be read as audio, or another effect is asked for.
    """
    from torchaudio.functional import resample

    waveform, rate = load_audio(path)
    for name, value in effects:
        if (name, value) == ("channels", "1"):
            waveform = waveform.mean(dim=0, keepdim=True)
        elif name == "rate":
            waveform, rate = resample(waveform, rate, int(value)), int(value)
        elif name == "gain":
            waveform = waveform * 10 ** (float(value) / 20)
        else:
            _no_sox_effects()
    return waveform, rate


def _no_sox_effects(*args: object, **kwargs: object) -> None:
    import torchaudio

    raise UserError(
        f"this part of s3prl needs sox effects, which torchaudio {torchaudio.__version__} has no more;"
        " install torch and torchaudio below 2.9 for it"
    )


# --- catalyst ---------------------------------------------------------------------------------------------------------


@_patch  # missing where s3prl's own extras are not installed
def catalyst() -> bool:
    """``catalyst.data.sampler``, imported by ``-d speech_commands`` for training by several processes only."""
    if importlib.util.find_spec("catalyst") is not None:
        return False
    names = ("catalyst", "catalyst.data", "catalyst.data.sampler")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__, module.__path__ = ModuleSpec(name, loader=None, is_package=True), []
    _set(modules[names[-1]], DistributedSamplerWrapper=_no_catalyst)
    sys.modules.update(modules)
    return True


def _no_catalyst(*args: object, **kwargs: object) -> None:
    raise UserError("training keyword spotting by several processes needs catalyst: pip install catalyst")


# --- huggingface_hub --------------------------------------------------------------------------------------------------


@_patch  # broken by huggingface_hub 1.0
def huggingface_hub_names() -> bool:
    """``HfFolder`` and ``Repository``, imported by s3prl's downstream runner whether or not it meets the hub."""
    import huggingface_hub

    def save_token(token: str | None) -> None:
        if token:
            huggingface_hub.login(token=token)

    token_store = types.SimpleNamespace(get_token=huggingface_hub.get_token, save_token=save_token)
    return _add_missing(huggingface_hub, HfFolder=token_store, Repository=_no_repository)


def _no_repository(*args: object, **kwargs: object) -> None:  # the git client; only --push_to_hf_hub makes one
    raise UserError(
        "--push_to_hf_hub works with huggingface_hub below 1.0 only; upload the folder with `hf upload` instead"
    )


@_patch  # broken by huggingface_hub 0.23
def huggingface_hub_login() -> bool:
    """``HfApi().login(username, password)``, which ``--hub huggingface`` calls; passwords went away, tokens stayed."""
    import huggingface_hub

    def login(self: object, username: str | None = None, password: str | None = None) -> str | None:
        return huggingface_hub.get_token()

    return _add_missing(huggingface_hub.HfApi, login=login)


@_patch  # broken by huggingface_hub 1.0
def huggingface_hub_snapshot_download() -> bool:
    """``snapshot_download(name, revision, use_auth_token=True)``, as ``--hub huggingface`` calls it."""
    import huggingface_hub

    original = huggingface_hub.snapshot_download
    if "use_auth_token" in inspect.signature(original).parameters:
        return False

    def snapshot_download(
        repo_id: str, revision: str | None = None, *, use_auth_token: bool | str | None = None, **kwargs: Any
    ) -> str:
        if isinstance(use_auth_token, str):  # True means the stored token, which is used anyway
            kwargs["token"] = use_auth_token
        return original(repo_id, revision=revision, **kwargs)

    _set(huggingface_hub, snapshot_download=snapshot_download)
    return True


# --- torch ------------------------------------------------------------------------------------------------------------


@_patch  # broken by torch 2.6
def torch_safe_globals() -> bool:
    """What s3prl's checkpoints hold besides tensors, allowed where torch loads with ``weights_only`` (2.6: always).

    Both runners store an ``argparse.Namespace``; the ``*_with_schedule`` optimizers keep their schedule objects in
    their state. ``run_pretrain.py`` imports s3prl's modules at top level, so those classes have two names.
    """
    import argparse

    import torch

    allowed = {argparse.Namespace} | set(_schedule_classes())
    before = torch.serialization.get_safe_globals()
    new = allowed - set(before)
    # torch finds them by name; a class of a module that was imported anew since could be read, and not be written.
    names = {(item.__module__, item.__qualname__) for item in new}
    kept = [item for item in before if not (isinstance(item, type) and (item.__module__, item.__qualname__) in names)]
    if len(kept) < len(before):
        torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*kept, *new])
    return bool(new)


def _schedule_classes() -> Iterator[type]:
    with contextlib.suppress(ImportError):  # there may be a checkout of s3prl and nothing installed
        importlib.import_module("s3prl.optimizers")
    for name in ("s3prl.optimizers", "optimizers"):
        base = getattr(sys.modules.get(name), "_LRSchedule", None)
        if base is not None:
            yield from _subclasses(base)


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


# --- what the wheel of s3prl leaves out -------------------------------------------------------------------------------


@_patch  # missing from s3prl 0.4.18's wheel
def ctc_corpus() -> bool:
    """``s3prl.downstream.ctc.corpus``, the data sets of ``-d ctc``; ours are in :mod:`.ctc_corpus`."""
    if any(isinstance(finder, _CtcCorpusFinder) for finder in sys.meta_path):
        return False
    sys.meta_path.append(_CtcCorpusFinder())  # last: where s3prl has the folder, its own is found first
    return True


class _CtcCorpusFinder:
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "s3prl.downstream.ctc.corpus":
            return None
        folder = Path(__file__).parent / "ctc_corpus"
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


# --- other processes --------------------------------------------------------------------------------------------------


@_patch  # multiprocessing's spawn and forkserver start a process without any of these patches
def new_processes() -> bool:
    """All of the above in the processes that this one starts, such as the workers of s3prl's data loaders."""
    from s3prl_ekd.s3prl_compat import processes

    return processes.reach_new_processes()
