"""A student's sizes as the ``config.json`` of its folder, in the words of transformers' HubertConfig and WavLMConfig.

A student whose layers have the same sizes is a plain HuBERT or WavLM to transformers. Else its ``model_type`` is
``ekd_hubert`` or ``ekd_wavlm``, which has the sizes of each layer beside them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.config.layer_sizes import (
    head_size,
    heads_fill,
    is_uniform,
    kept_heads,
    layer_heads,
    layer_intermediate_sizes,
    original_heads,
)
from s3prl_ekd.config.recipe import STUDENT_KINDS, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.kinds import StudentKind, student_kind
from s3prl_ekd.weights.folders import stated_normalization

logger = logging.getLogger(__name__)

OF_LAYERS = "ekd_"
"""What ``model_type`` begins with where layers differ in size."""
MODELING_FILE = Path(__file__).parent.parent / "transformers_model" / "modeling_ekd.py"
"""transformers' classes for such students, put into their folders."""
_FAMILIES = {"hubert": "Hubert", "wavlm": "WavLM"}  # in names of classes
_AUTO_CLASSES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForCTC": "ForCTC",
    "AutoModelForAudioClassification": "ForSequenceClassification",
}
# transformers' defaults would mask inputs and drop layers in training.
_NO_AUGMENTATION: dict[str, Any] = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}
_RELATIVE = ("num_buckets", "max_bucket_distance")  # a WavLM's only
_SAME_NAME = tuple(
    item.name
    for item in dataclasses.fields(StudentConfig)
    if item.name
    not in {
        "kind", "initialize_from", "copy", "copy_layers", "normalize_waveform", "conv_layer_norm",
        "num_attention_heads", "intermediate_size", "head_dim", "remaining_heads", *_RELATIVE,
    }
)  # fmt: skip


def is_stock(config: StudentConfig) -> bool:
    """Whether its network is a plain HuBERT or WavLM to transformers.

    Waveforms come to it as transformers' feature extractor normalises them, whatever ``normalization_eps`` is.
    """
    return is_uniform(config) and not config.feature_scale


def to_config_json(config: StudentConfig) -> dict[str, Any]:
    """What a student's ``config.json`` holds."""
    values = config.to_mapping()
    architecture = student_kind(config).architecture
    model = str(architecture["model_type"])
    family = _FAMILIES.get(model, "Hubert")
    return {
        "architectures": [f"{family}Model"],
        **architecture,
        **{name: values[name] for name in _SAME_NAME},
        "num_attention_heads": original_heads(config),
        "intermediate_size": max(layer_intermediate_sizes(config)),
        **({name: values[name] for name in _RELATIVE} if config.num_buckets else {}),
        **({} if is_stock(config) else _of_layers(config, model, family)),
        "feat_extract_norm": "layer" if config.conv_layer_norm else "group",
        "num_feat_extract_layers": len(config.conv_dim),
        **_NO_AUGMENTATION,
        # Also here where it is true: when transformers saves the model again, the preprocessor's file is lost.
        **({"normalize_waveform": True} if config.normalize_waveform else {}),
        "dtype": "float32",  # AutoModel opens it in this type, also where it is stored in half precision
    }


def _of_layers(config: StudentConfig, model: str, family: str) -> dict[str, Any]:
    """The sizes of each layer, and which classes have them."""
    file = MODELING_FILE.stem
    return {
        "architectures": [f"Ekd{family}Model"],
        "model_type": f"{OF_LAYERS}{model}",
        "auto_map": {auto: f"{file}.Ekd{family}{name}" for auto, name in _AUTO_CLASSES.items()},
        # transformers makes layers of these two before they are resized: they must be possible, and be no less than 1.
        "num_attention_heads": original_heads(config) if heads_fill(config) else 1,
        "intermediate_size": max(1, *layer_intermediate_sizes(config)),
        "layer_heads": list(layer_heads(config)),
        "layer_intermediate_sizes": list(layer_intermediate_sizes(config)),
        "head_dim": head_size(config),
        **({"remaining_heads": [list(heads) for heads in kept_heads(config)]} if config.num_buckets else {}),
    }


def kind_of_folder(config_json: Mapping[str, Any]) -> tuple[str, StudentKind]:
    """The kind that a folder's ``config.json`` names as its ``model_type``, and its name; else HuBERT's, the first."""
    kinds: dict[str, StudentKind] = {name: STUDENT_KINDS.load(name) for name in STUDENT_KINDS}
    found = str(config_json.get("model_type")).removeprefix(OF_LAYERS)
    same = [(name, kind) for name, kind in kinds.items() if kind.architecture["model_type"] == found]
    return same[0] if same else next(iter(kinds.items()))


def from_config_json(raw: Mapping[str, Any], folder: Path) -> StudentConfig:
    """A student's sizes.

    Args:
        raw: what ``config.json`` holds, of a student or of a HuBERT or WavLM of transformers.
        folder: where it is, with the file of its preprocessor.

    Raises:
        UserError: it is another model, or has a variant or sizes that no student has.
    """
    name, kind = kind_of_folder(raw)
    found = {**kind.defaults, **raw}
    of_layers = str(raw.get("model_type")).startswith(OF_LAYERS)
    for key, wanted in kind.architecture.items():
        value = str(found.get(key)).removeprefix(OF_LAYERS) if key == "model_type" else found.get(key)
        if value != wanted:
            raise UserError(
                f"{folder}: not a student, its config.json says {key}: {found.get(key)!r} where a student has"
                f" {wanted!r}; a {raw.get('model_type', 'model')} like this can be a teacher (transformers: {folder})"
            )
    mapping = {"kind": name} | {key: found[key] for key in _SAME_NAME if key in found}
    mapping |= {key: found[key] for key in ("num_attention_heads", "intermediate_size") if key in found}
    mapping |= {key: found[key] for key in _RELATIVE if key in found and name == "wavlm"}
    mapping["conv_layer_norm"] = found.get("feat_extract_norm") == "layer"
    if of_layers:
        mapping |= {key: found[theirs] for theirs, key in _LAYER_KEYS.items() if found.get(theirs) is not None}
    mapping["normalize_waveform"] = _normalizes(raw, bool(mapping["conv_layer_norm"]), folder)
    try:
        return StudentConfig.from_mapping(mapping, "student")
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


_LAYER_KEYS = {
    "layer_heads": "num_attention_heads",
    "layer_intermediate_sizes": "intermediate_size",
    "head_dim": "head_dim",
    "remaining_heads": "remaining_heads",
}


def _normalizes(raw: Mapping[str, Any], conv_layer_norm: bool, folder: Path) -> Any:
    """Whether waveforms are normalised, as the preprocessor says, else ``config.json``.

    Of folders that no student was ever written to, it is what the architecture is known to want: models with a
    GroupNorm in the conv stack were trained without, whatever their file says, and those with LayerNorms with it.
    """
    stated = stated_normalization(lambda name: folder / name if (folder / name).is_file() else None)
    if "feature_grad_scale" in raw:  # transformers keeps what a student's folder has and its models do not know
        return raw.get("normalize_waveform", False) if stated is None else stated
    if stated and not conv_layer_norm:
        logger.warning(
            "%s: its preprocessor says that waveforms are normalised, but such models (GroupNorm in the conv stack) are"
            " trained without; the student does without",
            folder,
        )
    return conv_layer_norm and stated is not False
