"""Checkpoints with fairseq's names: HuBERT, wav2vec 2.0 and WavLM as released or converted, MaskHuBERT of Lightning."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.weights.kinds import ENCODER_OF_FAIRSEQ, upstream_of
from s3prl_ekd.weights.names import HUBERT, HUBERT_LARGE, WAVLM, WAVLM_LARGE, recognize, to_transformers_keys
from s3prl_ekd.weights.pickles import StandIn
from s3prl_ekd.weights.sizes import CONV_LAYERS, NORMALIZED, StoredEncoder, conv_layers, sizes_of

_TABLES = (HUBERT, HUBERT_LARGE, WAVLM, WAVLM_LARGE)
_UPSTREAMS = ("hubert_local", "wav2vec2_local", "wavlm_local")  # s3prl's, of the models that are read here

# fairseq's options -> ours; sizes that the weights tell are taken from there.
_OPTIONS = {
    "layer_norm_first": "do_stable_layer_norm",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feature_grad_mult": "feature_grad_scale",
    "max_distance": "max_bucket_distance",
}
# Options that change what the encoder computes though no weight tells -> the only value that can be read, and why.
_ONLY: dict[str, tuple[Any, str]] = {
    "activation_fn": ("gelu", "a student has GELU everywhere"),
    "layer_type": ("transformer", "a student has no conformer layers"),
    "enable_tr_layer": (False, "its layers halve the frame rate, and a student has a frame every 20 ms"),
}
_STUDENT = "student_model."
_ENCODER = ("feature_extractor.", "layer_norm.", "post_extract_proj.", "mask_emb", "encoder.")


def read_converted(states: Mapping[str, Any], path: Path) -> StoredEncoder | None:
    """A HuBERT or wav2vec 2.0 as s3prl converts it; None: another model of s3prl's."""
    return _read(states, states["model_weight"], states["model_cfg"], states.get("task_cfg"))


def read_released(states: Mapping[str, Any], path: Path) -> StoredEncoder | None:
    """A HuBERT or wav2vec 2.0 as fairseq writes it, or a WavLM as Microsoft released it; None: another model.

    Raises:
        UserError: see :func:`_encoder`.
    """
    config = plain(states.get("cfg") or states.get("args") or {})
    if not isinstance(config, Mapping):
        return None
    if isinstance(config.get("model"), Mapping):  # fairseq's sections; WavLM's and older options are in none
        return _read(states, states["model"], config["model"], config.get("task"))
    return _read(states, states["model"], config, config)


def read_lightning(states: Mapping[str, Any], path: Path) -> StoredEncoder | None:
    """A student of ARMHuBERT's code (arXiv 2305.11685) in a checkpoint of Lightning; None: something else.

    Its sizes are in the YAML file that it was trained with, in the section ``distiller``, which must lie beside it.

    Raises:
        UserError: see :func:`_encoder`; there is no such YAML file; or it reuses attention maps, as ARMHuBERT does.
    """
    state = {n.removeprefix(_STUDENT): t for n, t in states["state_dict"].items() if n.startswith(_STUDENT)}
    if not state:
        return None
    config = _distiller_beside(path)
    reusing = [str(i) for i in _layers(state) if f"encoder.layers.{i}.self_attn.q_proj.weight" not in state]
    if reusing:
        raise UserError(
            f"its layers {' '.join(reusing)} attend by the map of the layer before (ARMHuBERT's reuse), which a student"
            " cannot; the MaskHuBERT of the same project can be read"
        )
    encoder = {name: tensor for name, tensor in state.items() if name.startswith(_ENCODER)}
    return _encoder(encoder, config, {}, left_over={name.partition(".")[0] for name in state.keys() - encoder.keys()})


def _read(
    states: Mapping[str, Any], state: Any, config: Mapping[str, Any], task: Mapping[str, Any] | None
) -> StoredEncoder | None:
    known = upstream_of(states)
    if not isinstance(state, Mapping) or ENCODER_OF_FAIRSEQ not in state:
        return None
    if known is not None and known[1] not in _UPSTREAMS:
        return None
    return _encoder(state, config, task or {})


def _encoder(
    state: Mapping[str, Tensor], config: Mapping[str, Any], task: Mapping[str, Any], left_over: set[str] | None = None
) -> StoredEncoder:
    """The encoder in ``state``.

    Raises:
        UserError: a weight is unknown or missing, or the model has something that a student cannot have.
    """
    for option, (wanted, reason) in _ONLY.items():
        if config.get(option, wanted) != wanted:
            raise UserError(f"a model with {option}: {config[option]!r} cannot be read: {reason}")
    weights = to_transformers_keys(state, recognize(state, _TABLES))
    weights.pop("masked_spec_embed", None)  # only for masking in training, which a student never does
    size = len(weights["encoder.layer_norm.weight"])
    heads = int(config.get("encoder_attention_heads", 12))
    if heads < 1 or size % heads:
        raise UserError(f"{heads} attention heads do not divide a width of {size}")
    layers = config.get("conv_feature_layers", config.get("extractor_conv_feature_layers", CONV_LAYERS))
    sizes = sizes_of(weights, size // heads) | {
        "conv_stride": [stride for _, _, stride in conv_layers(layers)],
        **(NORMALIZED if task.get("normalize") else {}),
        **{ours: config[theirs] for theirs, ours in _OPTIONS.items() if theirs in config},
    }
    return StoredEncoder(sizes, weights, tuple(sorted(left_over or ())))


def _distiller_beside(path: Path) -> Mapping[str, Any]:
    """The section ``distiller`` of the YAML file in the folder of ``path``: of the same name, else the only one."""
    files = sorted(item for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml"))
    same = [item for item in files if item.stem == path.stem]
    sections = [section for file in same or files if isinstance(section := read_yaml(file).get("distiller"), Mapping)]
    if len(sections) != 1:
        raise UserError(
            "a student of ARMHuBERT's code, whose sizes are not in the file; put the YAML file that it was trained with"
            f" (it has a section 'distiller') beside it, as {path.with_suffix('.yaml')}"
        )
    return sections[0]


def _layers(state: Mapping[str, Tensor]) -> Iterator[int]:
    """The numbers of the transformer layers."""
    return iter(sorted({int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}))


def plain(value: Any) -> Any:
    """What an object of omegaconf's or argparse's stands for, as dicts, lists and values; anything else as it is."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, StandIn):
        value = value.state.get("_content", value.state.get("_val")) if isinstance(value.state, Mapping) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
