"""Tiny models of other projects, and the files that these write of them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from helpers_files import object_of
from helpers_teachers import KERNELS, STRIDES
from torch import Tensor, nn
from torchaudio.models import Wav2Vec2Model, wav2vec2_model, wavlm_model

CONV = [(16, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)]
HEAD_DIM = 6
SIZES: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": CONV,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 24,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.2,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}
LARGE = {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}
WAVLM = {"encoder_num_buckets": 32, "encoder_max_distance": 40}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """LayerNorms, biases and gates are random too, so that none can be confused or lost."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if parameter.ndim == 1 or "gru_rel_pos_const" in name or "rel_attn_embed" in name else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def of_torchaudio(kind: str = "hubert", **sizes: Any) -> Wav2Vec2Model:
    """A random model of torchaudio's."""
    torch.manual_seed(0)
    if kind == "wavlm":
        return randomize(wavlm_model(**SIZES | WAVLM | sizes))
    return randomize(wav2vec2_model(**SIZES | sizes))


def states_of_torchaudio(model: Wav2Vec2Model, waveforms: Tensor) -> list[Tensor]:
    """The projected features, then each layer's output, (B, F, D) each; a pre-norm model's last with its LayerNorm."""
    features, _ = model.feature_extractor(waveforms, None)
    *layers, last = model.extract_features(waveforms)[0]
    transformer: Any = model.encoder.transformer
    if transformer.layers[-1].layer_norm_first:
        last = transformer.layer_norm(last)
    return [model.encoder.feature_projection(features), *layers, last]


class _NoAttention(nn.Module):
    """In the place of attention that has been dropped."""

    embed_dim = 24

    def forward(self, x: Tensor, **ignored: Any) -> Any:
        return torch.zeros_like(x), None


class _NoFeedForward(nn.Module):
    """In the place of a feed-forward block that has been dropped."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class _Scaled(nn.Module):
    """torchaudio's conv stack, and DPHuBERT's factors of its last channels."""

    def __init__(self, extractor: Any, factors: Tensor) -> None:
        super().__init__()
        self.conv_layers = extractor.conv_layers
        self.dummy_weight = nn.Parameter(factors, requires_grad=False)
        self._extractor = [extractor]  # no submodule, so that its weights have one name

    def forward(self, x: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, length = self._extractor[0](x, length)
        return x * self.dummy_weight, length


def cut(linear: nn.Linear, *, outputs: Sequence[int] | None = None, inputs: Sequence[int] | None = None) -> nn.Linear:
    """The same with these rows or columns only."""
    weight, bias = linear.weight.data, linear.bias.data
    if outputs is not None:
        weight, bias = weight[list(outputs)], bias[list(outputs)]
    if inputs is not None:
        weight = weight[:, list(inputs)]
    smaller = nn.Linear(weight.shape[1], weight.shape[0])
    smaller.weight, smaller.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return smaller


def units_of(heads: Sequence[int]) -> list[int]:
    """The rows of these heads in a projection."""
    return [head * HEAD_DIM + unit for head in heads for unit in range(HEAD_DIM)]


PRUNED_CONV = list(zip((16, 13, 11, 16, 9, 12, 10), KERNELS, STRIDES, strict=True))
REMAINING = [[0, 2, 3], [1], [0, 1, 2, 3]]
INNER = [20, 32, 7]


def pruned_hubert(
    *, remaining: Sequence[Sequence[int]] = REMAINING, inner: Sequence[int] = INNER, soft: bool = True, **sizes: Any
) -> tuple[Wav2Vec2Model, dict[str, Any]]:
    """A HuBERT of torchaudio's with smaller Linears, and the file that DPHuBERT would write of it."""
    model: Any = of_torchaudio(extractor_conv_layer_config=PRUNED_CONV, **sizes)
    for layer, heads, units in zip(model.encoder.transformer.layers, remaining, inner, strict=True):
        attention, feed_forward = layer.attention, layer.feed_forward
        if heads:
            rows = units_of(heads)
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(attention, name, cut(getattr(attention, name), outputs=rows))
            attention.out_proj = cut(attention.out_proj, inputs=rows)
            attention.num_heads = len(heads)
        else:
            layer.attention = _NoAttention()
        if units:
            feed_forward.intermediate_dense = cut(feed_forward.intermediate_dense, outputs=range(units))
            feed_forward.output_dense = cut(feed_forward.output_dense, inputs=range(units))
        else:
            layer.feed_forward = _NoFeedForward()
    factors = torch.linspace(0.3, 1.0, 10) if soft else torch.ones(10)
    model.feature_extractor = _Scaled(model.feature_extractor, factors)
    config = SIZES | sizes | {
        "extractor_conv_layer_config": [list(layer) for layer in PRUNED_CONV],
        "encoder_use_attention": [bool(heads) for heads in remaining],
        "encoder_use_feed_forward": [bool(units) for units in inner],
        "encoder_num_heads": [len(heads) for heads in remaining],
        "encoder_head_dim": HEAD_DIM,
        "encoder_ff_interm_features": list(inner),
        "normalize_waveform": False,
    }  # fmt: skip
    projections = {"0.weight": torch.eye(24), "0.bias": torch.zeros(24)}
    return model, {"config": config, "state_dict": model.state_dict(), "distill_linear_projs": projections}


def pruned_wavlm(
    remaining: Sequence[Sequence[int]] = REMAINING, *, drop: bool = False
) -> tuple[Wav2Vec2Model, dict[str, Any]]:
    """A WavLM of torchaudio's of whose heads some have no effect, and the file of the same without these heads.

    ``drop``: attention without any heads has no effect at all, and nothing of it is in the file.
    """
    model: Any = of_torchaudio("wavlm")
    state = model.state_dict()
    weights = {name: tensor for name, tensor in state.items() if ".attention." not in name or "rel_" in name}
    for number, (layer, heads) in enumerate(zip(model.encoder.transformer.layers, remaining, strict=True)):
        inside, rows = layer.attention.attention, units_of(heads)
        prefix = f"encoder.transformer.layers.{number}.attention"
        parts = zip("qkv", inside.in_proj_weight.chunk(3), inside.in_proj_bias.chunk(3), strict=True)
        for letter, weight, bias in parts:
            weights |= {f"{prefix}.{letter}_proj.weight": weight[rows], f"{prefix}.{letter}_proj.bias": bias[rows]}
        weights |= {
            f"{prefix}.out_proj.weight": inside.out_proj.weight[:, rows].clone(),
            f"{prefix}.out_proj.bias": inside.out_proj.bias,
        }
        gone = units_of([head for head in range(4) if head not in heads])
        inside.out_proj.weight[:, gone] = 0.0
        if drop and not heads:
            inside.out_proj.bias[:] = 0.0
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    config = SIZES | WAVLM | {
        "encoder_use_attention": [True] * 3,
        "encoder_use_feed_forward": [True] * 3,
        "encoder_total_num_heads": [4] * 3,
        "encoder_remaining_heads": [list(heads) for heads in remaining],
        "encoder_ff_interm_features": [32] * 3,
        "normalize_waveform": False,
    }  # fmt: skip
    return model, {"config": config, "state_dict": weights}


@contextmanager
def modules_of(*objects: Any) -> Iterator[None]:
    """The modules of these objects' classes exist while something is pickled."""
    there: dict[str, Any] = {}
    for cls in map(type, objects):
        for i in range(1, cls.__module__.count(".") + 2):
            name = ".".join(cls.__module__.split(".")[:i])
            there.setdefault(name, sys.modules.get(name))
            sys.modules[name] = sys.modules.get(name) or types.ModuleType(name)
        setattr(sys.modules[cls.__module__], cls.__name__, cls)
    try:
        yield
    finally:
        for name, module in there.items():
            if module is None:
                del sys.modules[name]


def as_fairseq_writes_it(converted: Path, path: Path) -> Path:
    """The checkpoint that s3prl has converted, with fairseq's dictionary and omegaconf's settings as objects in it."""
    from omegaconf import OmegaConf

    states = torch.load(converted, weights_only=True)
    dictionary = object_of("fairseq.data.dictionary", "Dictionary")
    dictionary.symbols, dictionary.indices = ["<s>", "1"], {"<s>": 0, "1": 1}
    settings = {"model": {"_name": "hubert", **states["model_cfg"]}, "task": states["task_cfg"], "seed": 1337}
    with modules_of(dictionary):
        torch.save(
            {
                "args": None,
                "cfg": OmegaConf.create(settings),
                "model": states["model_weight"],
                "criterion": None,
                "task_state": {"dictionaries": [dictionary]},
                "extra_state": {"epoch": 1, "best": 2.5},
            },
            path,
        )
    return path


def nine_layers() -> str:
    """A conv stack with two 1x1 convolutions, as MaskHuBERT's."""
    kernels, strides = (10, 3, 3, 1, 3, 3, 2, 1, 2), (5, 2, 2, 1, 2, 2, 2, 1, 2)
    channels = (16, 16, 16, 12, 16, 16, 16, 12, 24)
    return str(list(zip(channels, kernels, strides, strict=True)))


def masked_hubert(folder: Path, **settings: Any) -> tuple[nn.Module, Path]:
    """s3prl's model of a distilled HuBERT as Lightning's checkpoint and the YAML file that lies beside it."""
    import yaml
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    sizes = {
        "extractor_conv_feature_layers": nine_layers(),
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "encoder_layers": 3,
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 4,
        "out_layer_type": "none",
        "task_emb_type": "none",
        "n_tasks": 1,
    } | settings
    torch.manual_seed(0)
    model = randomize(DistillerModel(DistillerConfig(sizes)))
    state = {f"student_model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"student_model.proj_head.weight": torch.zeros(2, 24), "teacher_model.mask_emb": torch.zeros(24)}
    torch.save({"pytorch-lightning_version": "1.9.0", "epoch": 3, "state_dict": state}, folder / "student.ckpt")
    (folder / "student.yaml").write_text(yaml.safe_dump({"distiller": sizes, "train": {"lr": 1.0e-3}}))
    return model, folder / "student.ckpt"
