"""Teachers from transformers: a folder, else a hub id."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd import FRAME_SHIFT, assets
from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.errors import UserError, nearest, one_line
from s3prl_ekd.teachers.base import ModelTeacher, truncate
from s3prl_ekd.transformers_model import MODEL_TYPES
from s3prl_ekd.weights.folders import damage_in, read_shapes, stated_normalization, weight_files

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 5.0  # seconds to wait for the hub before saying that it cannot be reached

# Encoders of one architecture: `encoder.layers`, run one after the other; batch mates of equal length do not matter.
_KNOWN = frozenset({"hubert", "wavlm", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio", *MODEL_TYPES})


class TransformersTeacher(ModelTeacher):
    """A model of transformers that reads waveforms."""

    module: Any  # of any of their architectures

    def __init__(self, config: TeacherConfig, where: str | Path, source: str) -> None:
        """Load it from ``where``: a folder, else a hub id. Messages name it as ``source``."""
        model, do_normalize = _load(where, f"teacher {config.name!r}: {source}")
        normalize = do_normalize if config.normalize_waveform is None else config.normalize_waveform
        super().__init__(
            config, model, source=source, normalize_waveform=normalize, batches=model.config.model_type in _KNOWN
        )

    def _forward(self, waveforms: list[Tensor]) -> Sequence[Tensor]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        mask = None
        if len(set(lengths.tolist())) > 1:
            mask = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long().to(waveforms[0].device)
        output = self.module(pad_sequence(waveforms, batch_first=True), attention_mask=mask, output_hidden_states=True)
        states = list(output.hidden_states)
        # Pre-norm models: some versions give the last hidden state before the final LayerNorm; s3prl has it after.
        if output.last_hidden_state.shape == states[-1].shape:
            states[-1] = output.last_hidden_state
        return states

    def _drop_layers(self, depth: int) -> dict[str, nn.Module]:
        config = self.module.config
        if config.model_type not in _KNOWN:
            return {}
        removed = truncate(self.module.encoder, depth, final_norm=getattr(config, "do_stable_layer_norm", False))
        config.num_hidden_layers = len(self.module.encoder.layers)
        return {f"encoder.{name}": module for name, module in removed.items()}


def load_transformers_teacher(config: TeacherConfig) -> TransformersTeacher:
    """The teacher of an entry with ``transformers:``; a folder wins over a hub id."""
    where = Path(config.origin).expanduser()
    return TransformersTeacher(config, where if where.exists() else config.origin, config.origin)


MINI_TEACHERS = ("hubert", "robust_hubert", "wavlm")


def load_mini_teacher(config: TeacherConfig) -> TransformersTeacher:
    """The teacher of an entry with ``mini:``, from the package's own files."""
    if config.origin not in MINI_TEACHERS:
        hint = nearest(config.origin, MINI_TEACHERS)
        raise UserError(f"teacher {config.name!r}: no mini teacher {config.origin!r}; {hint}")
    return TransformersTeacher(config, assets.folder(f"teachers/{config.mini}"), f"mini {config.mini}")


def _load(where: str | Path, who: str) -> tuple[Any, bool]:
    """A float32 model without masking and layer drop, and whether it wants its waveforms normalised.

    What is in the cache is taken from there; the hub is asked only for what is missing.
    """
    if isinstance(where, Path):
        if not (where / "config.json").is_file():
            raise UserError(f"{who} is not a transformers model: it has no config.json; give the folder that has it")
        return _open(where, who, local=True)
    check_hub_id(where, who)
    try:
        return _open(where, who, local=True)
    except _NotHereError:
        check_hub(where, who)
    return _open(where, who, local=False)


class _NotHereError(Exception):
    """The model is not in the hub's cache."""


def _open(where: str | Path, who: str, *, local: bool) -> tuple[Any, bool]:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(where, local_files_only=local, trust_remote_code=False)
        _check_config(config, who)
        if isinstance(where, Path):
            with _named(who):
                _check_sizes(config, where)
        config.add_adapter = False  # hidden states come before it
        with _quiet_loading(downloads=not local):
            model, info = AutoModel.from_pretrained(
                where,
                config=config,
                dtype=torch.float32,
                local_files_only=local,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:
        folder = where if isinstance(where, Path) else _in_cache(where)
        damage = None if folder is None else damage_in(folder)
        if local and not isinstance(where, Path) and isinstance(error, OSError) and damage is None:
            raise _NotHereError from error
        raise UserError(f"{who} cannot be loaded as a transformers model ({damage or one_line(error, 200)})") from error
    wrong = [key for key in info["missing_keys"] if key != "masked_spec_embed"]
    wrong += [key for key, *_ in info["mismatched_keys"]]
    if wrong:
        raise UserError(
            f"{who}: weights are missing or of another shape than its config.json says, such as {min(wrong)}"
        )
    for knob in ("mask_time_prob", "mask_feature_prob", "layerdrop"):
        if hasattr(model.config, knob):
            setattr(model.config, knob, 0.0)
    return model, _wants_normalization(where, config, who, local=local)


def _in_cache(name: str) -> Path | None:
    """The folder of the hub's cache that holds a model's files, if it has its config.json."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


@contextlib.contextmanager
def _named(who: str) -> Iterator[None]:
    """Errors of the block say which teacher the file belongs to."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{who} cannot be loaded as a transformers model ({error})") from error


@contextlib.contextmanager
def _quiet_loading(*, downloads: bool) -> Iterator[None]:
    """Without transformers' report of heads that are left out, and with its progress bars only over downloads."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not downloads:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def check_hub_id(where: str, who: str) -> None:
    """Refuse what is no folder and cannot be the name of a model on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(where)
    except HFValidationError as error:
        raise UserError(f"{who} is no folder that exists, and a hub id looks otherwise") from error


def check_hub(where: str, who: str) -> None:
    """One quick request: a download without network would be retried for half a minute.

    Raises:
        UserError: the hub cannot be reached, or has no such model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    remedy = "give the path of a local folder instead, or fetch it into the cache where there is network"
    if constants.is_offline_mode():
        raise UserError(f"{who} is no local folder and not in the cache, and the hub is switched off; {remedy}")
    try:
        HfApi().model_info(where, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        raise UserError(f"{who} is no local folder, and on the hub there is none, or a private one") from error
    except Exception as error:
        reason = one_line(error, 200)
        raise UserError(f"{who} is no local folder, and the hub cannot be reached ({reason}); {remedy}") from error


def _check_config(config: Any, who: str) -> None:
    from transformers import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(config), None)
    strides = getattr(config, "conv_stride", None)
    if getattr(model_class, "main_input_name", None) != "input_values" or strides is None:
        raise UserError(f"{who} is a {config.model_type} model, not a speech encoder that reads waveforms")
    stride = int(torch.tensor(strides).prod())
    if stride != FRAME_SHIFT:
        raise UserError(f"{who} has {stride} samples a frame; a teacher needs {FRAME_SHIFT}")


# What takes memory in a model of these families.
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_conv_pos_embeddings", "conv_dim",
    "layer_intermediate_sizes",
)  # fmt: skip


def _check_sizes(config: Any, folder: Path) -> None:
    """Refuse sizes that the weights do not have: transformers would fill what they leave open.

    Each size is the length of some tensor, or counts layers, which have a tensor each.
    """
    shapes = read_shapes(weight_files(folder))
    if not shapes or config.model_type not in _KNOWN:
        return
    lengths = {length for tensor in shapes.values() for length in tensor.shape}
    sizes = {name: getattr(config, name, ()) for name in _SIZES}
    sizes["layer_heads times head_dim"] = [heads * config.head_dim for heads in getattr(config, "layer_heads", ())]
    for name, values in sizes.items():
        for value in values if isinstance(values, list | tuple) else (values,):
            if value not in lengths and value > len(shapes):
                raise UserError(f"{folder / 'config.json'}: {name} is {value}, but none of the weights has that size")


def _wants_normalization(where: str | Path, config: Any, who: str, *, local: bool) -> bool:
    """What the preprocessor's file says, else whether each convolution is layer-normalised: those models want it.

    Except that models with a GroupNorm in the conv stack were trained without, whatever their file says
    (``facebook/hubert-base-ls960`` says the contrary), and get the same from s3prl's upstream.
    """
    from transformers.utils.hub import cached_file

    by_architecture = getattr(config, "feat_extract_norm", None) == "layer"
    with _named(who):
        stated = stated_normalization(
            lambda name: cached_file(
                where, name, local_files_only=local, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        )  # fmt: skip
    if stated is None:
        return by_architecture
    if stated and not by_architecture:
        logger.warning(
            "%s: its preprocessor says that waveforms are normalised, but such models (GroupNorm in the conv stack) are"
            " trained without, and s3prl's upstream does without; for it, set normalize_waveform: true",
            who,
        )
    return stated and by_architecture
