"""Checkpoints with torchaudio's names: its own HuBERT and WavLM, and what was pruned by DPHuBERT's code.

torchaudio saves weights alone. DPHuBERT (arXiv 2305.17651) puts the arguments that its copy of torchaudio's functions
takes beside them, with lists for the layers; DiariZen keeps these in its code, and they are read from a JSON file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.errors import UserError
from s3prl_ekd.weights.folders import read_json
from s3prl_ekd.weights.kinds import FINAL_NORM_OF_TORCHAUDIO, has_torchaudio_names
from s3prl_ekd.weights.names import SCALE, TORCHAUDIO, to_transformers_keys
from s3prl_ekd.weights.sizes import NORMALIZED, StoredEncoder, add_missing_blocks, sizes_of, strides_of

# torchaudio's arguments -> ours, where the words differ only.
_SAME: dict[str, str] = {
    "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "hidden_dropout",
    "encoder_max_distance": "max_bucket_distance",
}
_ON_TOP = ("aux", "mask_generator", "logit_generator")
"""Modules that torchaudio's models have beside the encoder: a CTC head and what pretraining needs."""
_IN_ATTENTION = "encoder.layers.{}.attention.{}"
_GATES = ("gru_rel_pos_linear.weight", "gru_rel_pos_linear.bias", "gru_rel_pos_const")
_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Width -> attention heads, in every function of torchaudio that makes a published model."""


def read_weights_alone(state: Mapping[str, Tensor], path: Path) -> StoredEncoder:
    """An encoder whose arguments stand in a JSON file beside it, if anywhere: ``model.json`` for ``model.pt``.

    Raises:
        UserError: see :func:`encoder_of`; or the JSON file is damaged.
    """
    arguments = path.with_suffix(".json")
    try:
        return encoder_of(state, read_json(arguments) if arguments.is_file() else {})
    except _NotStatedError as error:
        raise UserError(f"{error}; write it as JSON to {arguments}") from error


def read_dphubert(states: Mapping[str, Any], path: Path) -> StoredEncoder | None:
    """DPHuBERT's and DPWavLM's files, with the entries ``config`` and ``state_dict``; None: something else.

    Raises:
        UserError: see :func:`encoder_of`.
    """
    if not has_torchaudio_names(states["state_dict"]):
        return None
    stored = encoder_of(states["state_dict"], states["config"])
    heads = ("distill_linear_projs",) if states.get("distill_linear_projs") else ()
    return stored._replace(left_over=(*stored.left_over, *heads))


class _NotStatedError(UserError):
    """An argument that the weights do not tell."""


def encoder_of(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> StoredEncoder:
    """The encoder in ``state``.

    Args:
        state: weights under torchaudio's names, perhaps with an encoder's own name before each.
        arguments: what torchaudio's (or DPHuBERT's) ``wav2vec2_model`` or ``wavlm_model`` was called with, or some of
            it. Sizes that the weights tell are taken from there.

    Raises:
        UserError: a weight is unknown or missing, or the arguments needed are not there.
    """
    inner, left_over = _inner(state)
    weights = add_missing_blocks(to_transformers_keys(flat_attention(inner), TORCHAUDIO))
    sizes = sizes_of(weights, _head_dim(weights, arguments))
    layers = arguments.get("extractor_conv_layer_config")
    sizes |= {
        "conv_stride": strides_of(sizes["conv_kernel"]) if layers is None else [stride for _, _, stride in layers],
        # In all published models these LayerNorms and normalised waveforms go together.
        "do_stable_layer_norm": sizes["conv_layer_norm"],
        **(NORMALIZED if arguments.get("normalize_waveform", sizes["conv_layer_norm"]) else {}),
        **{ours: arguments[theirs] for theirs, ours in _SAME.items() if theirs in arguments},
    }
    scale = weights.get(SCALE)
    if scale is not None and bool((scale == 1).all()):  # gates of the last convolution that were all open, or none
        del weights[SCALE]
    sizes["feature_scale"] = SCALE in weights
    kept = _kept_heads(weights, sizes, arguments)
    if kept is not None:
        sizes["remaining_heads"] = kept
        weights |= _gates_of(weights, kept)
    return StoredEncoder(sizes, weights, tuple(sorted(left_over)))


def _inner(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The encoder's own weights under torchaudio's names, and the modules that are left out."""
    prefix = next(name for name in state if name.endswith(FINAL_NORM_OF_TORCHAUDIO)).removesuffix(
        FINAL_NORM_OF_TORCHAUDIO
    )
    inner: dict[str, Tensor] = {}
    left_over: set[str] = set()
    for name, tensor in state.items():
        own = name.removeprefix(prefix)
        module = own.partition(".")[0]
        if not name.startswith(prefix) or module in _ON_TOP:
            left_over.add(module)
        elif "hard_concrete" in own:
            raise UserError(f"its gates have not been applied yet ({own}): prune it by DPHuBERT's script first")
        else:
            inner[own] = tensor
    return inner, left_over


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
            f"weights alone do not tell how wide an attention head is (the model is {size} wide), such as"
            ' {"encoder_head_dim": 64}'
        )
    return size // heads


def _kept_heads(
    weights: Mapping[str, Tensor], sizes: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[list[int]] | None:
    """Which heads of a WavLM each layer has kept; None: all, or it is no WavLM.

    Raises:
        UserError: it is not stated, or the biases of all layers are gone, which the first layer has.
    """
    if "num_buckets" not in sizes:
        if any(name.endswith("gru_rel_pos_const") for name in weights):
            raise UserError("a WavLM whose first layer has lost its attention, and with it all layers' position bias")
        return None
    if "head_dim" not in sizes:
        return None
    if "encoder_remaining_heads" not in arguments:
        raise _NotStatedError(
            "weights alone do not tell which attention heads each layer of a pruned WavLM has kept, such as"
            ' {"encoder_remaining_heads": [[0, 2], [1]]}'
        )
    widths = (len(weights[_IN_ATTENTION.format(i, "q_proj.weight")]) for i in range(sizes["num_hidden_layers"]))
    stated, layers = arguments["encoder_remaining_heads"], sizes["num_hidden_layers"]
    if not isinstance(stated, list | tuple) or len(stated) != layers:
        raise UserError(f"encoder_remaining_heads: expected a list for each of {layers} layers, found {stated!r:.60}")
    kept = [list(heads) if width else [] for heads, width in zip(stated, widths, strict=True)]
    total = weights[_IN_ATTENTION.format(0, "rel_attn_embed.weight")].shape[1]
    if not all(head in range(total) for heads in kept for head in heads):
        raise UserError(f"encoder_remaining_heads: {kept}, where the heads of a layer are 0 to {total - 1}")
    return kept


def _gates_of(weights: Mapping[str, Tensor], kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """WavLM's gates of these heads alone; a file has those of all heads, or none where a layer's attention is gone."""
    gates: dict[str, Tensor] = {}
    template = weights[_IN_ATTENTION.format(0, "gru_rel_pos_linear.weight")]  # (8, width of a head)
    for number, heads in enumerate(kept):
        linear, bias, const = (_IN_ATTENTION.format(number, name) for name in _GATES)
        if const in weights:
            gates[const] = weights[const][:, list(heads)]
        else:
            gates |= {linear: torch.zeros_like(template), bias: template.new_zeros(8)}
            gates[const] = template.new_zeros(1, 0, 1, 1)
    return gates
