"""Checkpoints with torchaudio's names: its own HuBERT and WavLM, and what was pruned by DPHuBERT's code.

torchaudio saves weights alone. DPHuBERT (arXiv 2305.17651) puts the arguments that its copy of torchaudio's functions
takes beside them, with lists for the layers; DiariZen keeps these in its code, and they are read from a JSON file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ekd.errors import UserError
from s3prl_ekd.weights.folders import read_json
from s3prl_ekd.weights.names import TORCHAUDIO, to_transformers_keys
from s3prl_ekd.weights.sizes import StoredEncoder, add_missing_blocks, sizes_of, strides_of

_FINAL_NORM = "encoder.transformer.layer_norm.weight"
"""Every encoder of torchaudio has it; what stands before it in a file's names is the encoder's own name there."""

# torchaudio's arguments -> ours, where the words differ only.
_SAME: dict[str, str] = {
    "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "hidden_dropout",
    "encoder_max_distance": "max_bucket_distance",
    "normalize_waveform": "normalize_waveform",
}
_ON_TOP = ("aux", "mask_generator", "logit_generator")
"""Modules that torchaudio's models have beside the encoder: a CTC head and what pretraining needs."""
_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Width -> attention heads, in every function of torchaudio that makes a published model."""


def is_torchaudio(state: Any) -> bool:
    """Whether these are names and tensors of torchaudio's, perhaps of a larger model with an encoder inside."""
    if not isinstance(state, Mapping):
        return False
    named = any(str(name).endswith(_FINAL_NORM) for name in state)
    return named and all(isinstance(value, Tensor) for value in state.values())


def read_weights_alone(state: Mapping[str, Tensor], path: Path) -> StoredEncoder:
    """An encoder whose arguments stand in a JSON file beside it, if anywhere: ``model.json`` for ``model.pt``.

    Raises:
        UserError: see :func:`read_encoder`; or the JSON file is damaged.
    """
    arguments = path.with_suffix(".json")
    try:
        return read_encoder(state, read_json(arguments) if arguments.is_file() else {})
    except _NotStatedError as error:
        raise UserError(f"{error}; write it to {arguments}, as JSON") from error


def read_dphubert(states: Mapping[str, Any], path: Path) -> StoredEncoder | None:
    """DPHuBERT's and DPWavLM's files, with the entries ``config`` and ``state_dict``; None: something else.

    Raises:
        UserError: see :func:`read_encoder`.
    """
    if not is_torchaudio(states["state_dict"]):
        return None
    stored = read_encoder(states["state_dict"], states["config"])
    heads = ("distill_linear_projs",) if states.get("distill_linear_projs") else ()
    return stored._replace(left_over=(*stored.left_over, *heads))


class _NotStatedError(UserError):
    """An argument that the weights do not tell."""


def read_encoder(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> StoredEncoder:
    """The encoder in ``state``.

    Args:
        state: weights under torchaudio's names, perhaps with an encoder's own name before each.
        arguments: what torchaudio's (or DPHuBERT's) ``wav2vec2_model`` or ``wavlm_model`` was called with, or some of
            it. Sizes that the weights tell are taken from there.

    Raises:
        UserError: a weight is unknown or missing, or the arguments needed are not there.
    """
    prefix = next(name for name in state if name.endswith(_FINAL_NORM)).removesuffix(_FINAL_NORM)
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    on_top = {name for name in inner if name.partition(".")[0] in _ON_TOP}
    left_over = {name.partition(".")[0] for name in state if not name.startswith(prefix)}
    left_over |= {name.partition(".")[0] for name in on_top}
    gates = sorted(name for name in inner if "hard_concrete" in name)
    if gates:
        raise UserError(f"its gates have not been applied yet ({gates[0]}): prune it by DPHuBERT's script first")
    inner = {name: tensor for name, tensor in inner.items() if name not in on_top}
    weights = add_missing_blocks(to_transformers_keys(flat_attention(inner), TORCHAUDIO))
    head_dim = _head_dim(weights, arguments)
    sizes = sizes_of(weights, head_dim)
    layers = arguments.get("extractor_conv_layer_config")
    strides = strides_of(sizes["conv_kernel"]) if layers is None else [stride for _, _, stride in layers]
    sizes |= {
        "conv_stride": strides,
        # In all published models both LayerNorms go together.
        "do_stable_layer_norm": sizes["conv_layer_norm"],
        "normalize_waveform": sizes["conv_layer_norm"],
        **{ours: arguments[theirs] for theirs, ours in _SAME.items() if theirs in arguments},
        **_remaining_heads(weights, sizes, arguments),
    }
    return StoredEncoder(sizes, weights, tuple(sorted(left_over)))


def flat_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's WavLM has torch's MultiheadAttention inside its own attention, with queries, keys and values in one
    tensor, (3 D, D) and (3 D,): here each has its own, and all belong to the attention itself."""
    flat: dict[str, Tensor] = {}
    for nested, tensor in state.items():
        name = nested.replace(".attention.attention.", ".attention.")
        attention, found, kind = name.rpartition("in_proj_")
        if found:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            flat |= {f"{attention}{letter}_proj.{kind}": part for letter, part in parts}
        else:
            flat[name] = tensor
    return flat


def _head_dim(weights: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> int:
    """The width of a head: as stated, as WavLM's gates have it, or as in torchaudio's models of this width."""
    gates = weights.get("encoder.layers.0.attention.gru_rel_pos_linear.weight")
    if gates is not None:
        return gates.shape[1]
    if "encoder_head_dim" in arguments:
        return int(arguments["encoder_head_dim"])
    size = len(weights["encoder.layer_norm.weight"])
    heads = arguments.get("encoder_num_heads", _HEADS.get(size))
    if not isinstance(heads, int) or heads < 1:
        raise _NotStatedError(
            f"weights alone do not tell how wide an attention head is, encoder_head_dim ({size} is the model's width)"
        )
    return size // heads


def _remaining_heads(
    weights: Mapping[str, Tensor], sizes: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Which heads of a pruned WavLM remained in each layer: their gates and biases are still those of all heads."""
    if "num_buckets" not in sizes:
        if any(name.endswith("gru_rel_pos_const") for name in weights):
            raise UserError("a WavLM whose first layer has lost its attention, and with it all layers' position bias")
        return {}
    if "encoder_remaining_heads" in arguments:
        return {"remaining_heads": arguments["encoder_remaining_heads"]}
    if "head_dim" in sizes:
        raise _NotStatedError(
            "weights alone do not tell which attention heads of a pruned WavLM these are, encoder_remaining_heads"
        )
    return {}
