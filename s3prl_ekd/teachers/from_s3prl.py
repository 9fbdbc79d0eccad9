"""Teachers from s3prl's hub: any upstream of 320 samples a frame."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import pickle
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd import FRAME_SHIFT
from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_compat.upstream_names import takes_file, with_file
from s3prl_ekd.teachers.base import WAVEFORM_EPSILON, ModelTeacher, truncate
from s3prl_ekd.teachers.from_transformers import check_hub, check_hub_id
from s3prl_ekd.weights.file_kind import problem_of
from s3prl_ekd.weights.folders import damage_in
from s3prl_ekd.weights.kinds import kind_of, upstream_of
from s3prl_ekd.weights.pickles import load_pickle_safely

logger = logging.getLogger(__name__)

# Models of fairseq's architecture: `encoder.layers`, run one after the other, whose batch mates of equal length do not
# matter. All other upstreams run utterance by utterance and whole.
_KNOWN = frozenset(
    {
        "s3prl.upstream.hubert.hubert_model.HubertModel",
        "s3prl.upstream.wav2vec2.wav2vec2_model.Wav2Vec2Model",
        "s3prl.upstream.wavlm.WavLM.WavLM",
    }
)
# Where experts keep whether they normalise the waveform (attribute of the expert, attribute of that), and what they add
# to its variance; "extracter" is the feature extractor of the hf_... upstreams.
_NORMALIZE_SWITCHES = (
    ("task_cfg", "normalize", WAVEFORM_EPSILON),
    ("cfg", "normalize", WAVEFORM_EPSILON),
    (None, "wav_normalize", WAVEFORM_EPSILON),
    ("extracter", "do_normalize", 1e-7),
)


class S3prlTeacher(ModelTeacher):
    """An upstream of s3prl."""

    module: Any  # an expert, each with attributes of its own

    def __init__(self, config: TeacherConfig) -> None:
        expert = _load(config)
        model: Any = getattr(expert, "model", None)
        self._encoder = None
        # A model's other encoder is a conformer, which runs its layers otherwise.
        if torch.typename(model) in _KNOWN and type(model.encoder).__name__ == "TransformerEncoder":
            self._encoder = model.encoder
        normalize = _set_normalization(expert, config)
        super().__init__(
            config,
            expert,
            source=f"s3prl {config.s3prl}" + (f" ({config.ckpt})" if config.ckpt else ""),
            normalize_waveform=normalize,
            batches=self._encoder is not None,
        )

    def _forward(self, waveforms: list[Tensor]) -> Sequence[Tensor]:
        states = self.module(list(waveforms)).get("hidden_states")
        if not isinstance(states, list | tuple):
            raise UserError(f"teacher {self.name!r}: {self.source} gives no hidden states")
        return states

    def waveform_epsilon(self) -> float | None:
        switches = _normalization_switches(self.module)
        by_itself = next((epsilon for holder, switch, epsilon in switches if getattr(holder, switch)), None)
        return super().waveform_epsilon() or by_itself

    def _drop_layers(self, depth: int) -> dict[str, nn.Module]:
        if self._encoder is None:
            return {}
        removed = truncate(self._encoder, depth, final_norm=self._encoder.layer_norm_first)
        return {f"encoder.{name}": module for name, module in removed.items()}

    def _weights(self) -> Mapping[str, Tensor]:
        # Experts call it `model`; the distiller's wraps it once more, and has prediction heads.
        model = getattr(self.module, "model", self.module)
        weights = getattr(model, "model", model).state_dict()
        return {key: value for key, value in weights.items() if not key.startswith("output_layer.")}


def _load(config: TeacherConfig) -> nn.Module:
    patches.apply()
    with patches.quiet():
        from s3prl import hub

    name = config.origin
    who = f"teacher {config.name!r}: s3prl's {name}"
    if name not in hub.options():
        close = difflib.get_close_matches(name, hub.options(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "see s3prl's list of upstreams"
        raise UserError(f"teacher {config.name!r}: s3prl has no upstream {name!r}; {hint}")
    arguments = _check_ckpt(config, getattr(hub, name), who)
    try:
        with unsafe_loads_named(who) as files:
            expert = getattr(hub, name)(**arguments)
    except Exception as error:
        if is_download(error):
            local = with_file(name, hub.options())
            hint = f"'s3prl: {local}' and 'ckpt: PATH', or " if local else ""
            raise UserError(
                f"{who} could not be downloaded ({type(error).__name__}): no network, or the address is gone; give a"
                f" local copy with {hint}'transformers: FOLDER'"
            ) from error
        origin = f" from {config.ckpt}" if arguments else ""
        reason = file_problem(error, files, name)
        if reason is None:
            reason = type(error).__name__ + (f": {one_line(error, 200)}" if str(error) else "")
        raise UserError(f"{who} cannot be loaded{origin} ({reason})") from error
    if not isinstance(expert, nn.Module):
        raise UserError(f"{who} is not an upstream model")
    rates: Any = getattr(expert, "get_downsample_rates", None)
    rate = FRAME_SHIFT if rates is None else rates("hidden_states")
    if rate != FRAME_SHIFT:
        raise UserError(f"{who} has {rate} samples a frame; a teacher needs {FRAME_SHIFT}")
    return expert


def _check_ckpt(config: TeacherConfig, entry: Callable[..., nn.Module], who: str) -> dict[str, str]:
    """The upstream's arguments."""
    needed = takes_file(config.origin)
    if config.ckpt is None:
        if needed:
            raise UserError(f"{who} needs the path of a checkpoint: add 'ckpt: PATH'")
        return {}
    if not needed and "ckpt" not in inspect.signature(entry).parameters:
        raise UserError(f"{who} brings its own checkpoint; leave ckpt out, or use an upstream that ends in _local")
    path = Path(config.ckpt).expanduser()
    if config.origin.startswith("hf_"):
        _check_transformers_ckpt(config.ckpt, path, who)
        return {"ckpt": str(path) if path.exists() else config.ckpt}
    if not path.exists():
        if config.ckpt.startswith("http") and not config.origin.endswith("_local"):
            return {"ckpt": config.ckpt}
        raise UserError(f"{who}: ckpt {config.ckpt} does not exist")
    if path.is_file():
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"{who}: ckpt {config.ckpt} cannot be read ({error.strerror})") from error
    return {"ckpt": str(path)}


def _check_transformers_ckpt(ckpt: str, path: Path, who: str) -> None:
    """s3prl's ``hf_...`` upstreams look on the hub for whatever is missing, which without network takes minutes."""
    if path.exists():
        if not (path / "preprocessor_config.json").is_file():
            raise UserError(f"{who}: {ckpt} has no preprocessor_config.json; use 'transformers: {ckpt}' instead")
        damage = damage_in(path)
        if damage is not None:
            raise UserError(f"{who} cannot be loaded from {ckpt} ({damage})")
        return
    from huggingface_hub import try_to_load_from_cache

    check_hub_id(ckpt, f"{who}: ckpt {ckpt}")
    if not isinstance(try_to_load_from_cache(ckpt, "preprocessor_config.json"), str):
        check_hub(ckpt, f"{who}: ckpt {ckpt}")


def is_download(error: BaseException | None) -> bool:
    """Whether a failed request is somewhere in the chain of causes."""
    import requests

    while error is not None:
        if isinstance(error, urllib.error.URLError | requests.RequestException | TimeoutError | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def file_problem(error: BaseException, files: Sequence[object], upstream: str) -> str | None:
    """What is wrong with the file that s3prl was reading when it failed, and what to do.

    Args:
        error: what s3prl raised.
        files: what it has read, the last one last (see :func:`unsafe_loads_named`).
        upstream: its name in s3prl.

    Returns:
        None if nothing is known to be wrong with the file.
    """
    if not files or not isinstance(files[-1], str | Path) or not Path(files[-1]).is_file():
        return None
    path = Path(files[-1])
    try:
        states = load_pickle_safely(path)
    except UserError as refused:
        # s3prl reads any pickle of some upstreams: then it is not what went wrong that we are stricter.
        unread = isinstance(error, pickle.UnpicklingError | RuntimeError | EOFError)
        return str(refused) if unread or problem_of(path, pickled=True) else None
    found = upstream_of(states)
    if found is not None and upstream.startswith(found[1].removesuffix("_local")):
        return None
    return f"{path}: {kind_of(states)}; {type(error).__name__}: {one_line(error, 200)}"


@contextlib.contextmanager
def unsafe_loads_named(who: str) -> Iterator[list[object]]:
    """Warn of each file that s3prl itself unpickles without ``weights_only``; yields all files that it has read so
    far."""
    load = torch.load
    files: list[object] = []

    def named_load(file: Any, *args: Any, **kwargs: Any) -> Any:
        files.append(file)
        if kwargs.get("weights_only") is False:
            logger.warning("%s unpickles %s, which can run code in it: use only files that you trust", who, file)
        return load(file, *args, **kwargs)

    with patches.replaced(torch, load=named_load):
        yield files


def _normalization_switches(expert: nn.Module) -> Iterator[tuple[object, str, float]]:
    """The objects whose attribute switches the normalisation of waveforms, that attribute's name, and the epsilon."""
    for part, switch, epsilon in _NORMALIZE_SWITCHES:
        holder = expert if part is None else getattr(expert, part, None)
        if isinstance(getattr(holder, switch, None), bool):
            yield holder, switch, epsilon


def _set_normalization(expert: nn.Module, config: TeacherConfig) -> bool:
    """Make the expert follow ``normalize_waveform``.

    Returns:
        Whether the waveform is to be normalised before the expert sees it.
    """
    wanted = config.normalize_waveform
    if wanted is None:
        return False  # upstreams normalise by themselves where they need it
    for holder, switch, _ in _normalization_switches(expert):
        setattr(holder, switch, wanted)
        return False
    if wanted is False:
        raise UserError(
            f"teacher {config.name!r}: whether s3prl's {config.s3prl} normalises its input cannot be changed;"
            " leave normalize_waveform out"
        )
    return True
