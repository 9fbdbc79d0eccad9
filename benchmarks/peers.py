"""s3prl's side of the benchmarks: its models with random weights, and its distiller recipe, which its wheel lacks."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.s3prl_compat import patches


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of teachers and student."""

    conv_dim: int
    hidden_size: int
    intermediate_size: int
    heads: int
    conv_pos: int
    conv_pos_groups: int
    teacher_layers: int
    targets: tuple[int, ...]
    student_layers: int = 2

    @property
    def conv_layers(self) -> str:
        """As s3prl writes it."""
        return f"[({self.conv_dim},10,5)] + [({self.conv_dim},3,2)] * 4 + [({self.conv_dim},2,2)] * 2"


BASE = Sizes(
    conv_dim=512, hidden_size=768, intermediate_size=3072, heads=12, conv_pos=128, conv_pos_groups=16,
    teacher_layers=12, targets=(4, 8, 12),
)  # fmt: skip
TINY = Sizes(
    conv_dim=16, hidden_size=24, intermediate_size=48, heads=4, conv_pos=16, conv_pos_groups=4,
    teacher_layers=3, targets=(1, 2, 3),
)  # fmt: skip

KINDS = ("hubert", "hubert", "wavlm", "hubert")  # HuBERT, RobustHuBERT, WavLM; the fourth for cost as K grows
NAMES = ("hubert", "robust_hubert", "wavlm", "hubert_4")
UPSTREAMS = {"hubert": "hubert_local", "wavlm": "wavlm_local"}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what s3prl prints."""
    with contextlib.redirect_stdout(io.StringIO()), patches.quiet():
        yield


def _randomize(model: nn.Module) -> nn.Module:
    """LayerNorms and biases too, so that none can be confused or lost."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _encoder_settings(sizes: Sizes) -> dict[str, Any]:
    """Of HuBERT Base and WavLM Base+ as they were released, dropouts included."""
    return {
        "extractor_mode": "default", "encoder_layers": sizes.teacher_layers, "encoder_embed_dim": sizes.hidden_size,
        "encoder_ffn_embed_dim": sizes.intermediate_size, "encoder_attention_heads": sizes.heads,
        "conv_feature_layers": sizes.conv_layers, "conv_pos": sizes.conv_pos, "conv_pos_groups": sizes.conv_pos_groups,
        "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.05,
        "dropout_input": 0.1, "dropout_features": 0.1,
    }  # fmt: skip


def write_teacher(path: Path, kind: str, sizes: Sizes, seed: int) -> Path:
    """A checkpoint that s3prl's ``hubert_local`` or ``wavlm_local`` loads."""
    patches.apply()
    torch.manual_seed(seed)
    settings = _encoder_settings(sizes)
    with quiet():
        if kind == "wavlm":
            from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

            settings |= {
                "relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 320, "max_distance": 800,
                "normalize": False,
            }  # fmt: skip
            checkpoint: dict[str, Any] = {
                "cfg": settings,
                "model": _randomize(WavLM(WavLMConfig(settings))).state_dict(),
            }
        else:
            from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

            task, symbols = {"sample_rate": 16000}, [list("abcde")]
            settings |= {"label_rate": 50.0}
            model = HubertModel(HubertConfig(**settings), HubertPretrainingConfig(**task), symbols)
            checkpoint = {
                "task_cfg": task, "model_cfg": settings, "dictionaries_symbols": symbols,
                "model_weight": _randomize(model).state_dict(),
            }  # fmt: skip
    torch.save(checkpoint, path)
    return path


def load_upstream(name: str, path: Path) -> nn.Module:
    """An upstream of s3prl's hub in eval mode."""
    patches.apply()
    with quiet():
        import s3prl.hub

        return getattr(s3prl.hub, name)(str(path)).eval()


def distiller_settings(sizes: Sizes) -> dict[str, Any]:
    """pretrain/distiller/config_model.yaml, with the three heads of the released DistilHuBERT."""
    return {
        "extractor_mode": "default", "extractor_conv_feature_layers": sizes.conv_layers, "feature_grad_mult": 0.1,
        "conv_pos": sizes.conv_pos, "conv_pos_groups": sizes.conv_pos_groups, "encoder_layers": sizes.student_layers,
        "encoder_embed_dim": sizes.hidden_size, "encoder_ffn_embed_dim": sizes.intermediate_size,
        "encoder_attention_heads": sizes.heads, "activation_fn": "gelu", "dropout": 0.1, "attention_dropout": 0.1,
        "activation_dropout": 0.1, "final_dim": sizes.hidden_size, "out_layer_type": "expand-last",
        "n_tasks": len(sizes.targets), "task_emb_type": "expand-last", "loss_type": "l1", "feat_pen_loss": 0.0,
        "cosine_loss": 1.0, "pred_layer_id": list(sizes.targets),
    }  # fmt: skip


def distiller_model(sizes: Sizes) -> nn.Module:
    """s3prl's student."""
    patches.apply()
    with quiet():
        from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

        return _randomize(DistillerModel(DistillerConfig(distiller_settings(sizes))))


def write_student(path: Path, sizes: Sizes) -> Path:
    """A checkpoint as s3prl's recipe saves it, which ``distiller_local`` loads and so does this package."""
    state = distiller_model(sizes).state_dict()
    torch.save({"Distiller": state, "Config": {"distiller": distiller_settings(sizes)}, "Step": 200000}, path)
    return path


class Recipe(nn.Module):
    """``DistillerForPretrain`` of s3prl's pretrain/distiller/pretrain_expert.py, restated.

    With several teachers, which s3prl does not have, the target is the mean of their hidden states.
    """

    def __init__(self, distiller: Any, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.distiller = distiller
        self.teachers = nn.ModuleList(teachers)
        for parameter in self.teachers.parameters():
            parameter.requires_grad = False

    def targets(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(B, H, F, D)."""
        device = next(self.distiller.parameters()).device
        with torch.no_grad():
            waveforms = [waveform.to(device) for waveform in waveforms]
            with torch.autocast(device.type, enabled=False):
                hiddens = [teacher(waveforms)["hidden_states"] for teacher in self.teachers]
            stacked = [
                torch.stack([states[layer] for layer in self.distiller.pred_layer_id], dim=1) for states in hiddens
            ]
            return stacked[0] if len(stacked) == 1 else torch.stack(stacked).mean(dim=0)

    def loss(self, features: Tensor, predictions: Tensor, targets: Tensor) -> Tensor:
        """L1 and cosine, over padding too; the penalty on features is computed and weighted with 0, as shipped."""
        reconstruction = F.l1_loss(predictions, targets, reduction="none").mean()
        similarity = -F.logsigmoid(F.cosine_similarity(predictions, targets, dim=-1))
        penalty = features.float().pow(2).mean()
        return reconstruction + penalty * 0.0 + similarity.mean() * 1.0

    def forward(self, padded: Tensor, waveforms: Sequence[Tensor], mask: Tensor) -> Tensor:
        """The loss of (B, S) waveforms with their mask, given a second time as a list."""
        features, _, predictions, _ = self.distiller(padded, mask)
        return self.loss(features, predictions, self.targets(waveforms))


class RecipeStep:
    """One step as s3prl's pretrain runner makes it, on a GPU with its ``fp16: true``."""

    def __init__(self, recipe: Recipe, waveforms: Sequence[Tensor], *, teachers_train: bool) -> None:
        """``teachers_train``: as shipped, where the runner switches everything to train mode."""
        from s3prl.optimizers import get_optimizer

        self.recipe = recipe
        self.teachers_train = teachers_train
        self.device = next(recipe.distiller.parameters()).device
        settings = {
            "name": "AdamW_with_schedule", "lr": 2e-4, "warmup_proportion": 0.07, "betas": [0.9, 0.98], "eps": 1e-6,
            "weight_decay": 1e-6,
        }  # fmt: skip
        self.optimizer = get_optimizer([recipe], 200000, settings)
        self.amp = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp)
        self.hear(waveforms)

    def hear(self, waveforms: Sequence[Tensor]) -> None:
        """Take these from now on; padding and mask are the data loader's work and not part of a step."""
        padded = pad_sequence(list(waveforms), batch_first=True)
        mask = torch.ones(padded.shape)
        for row, waveform in enumerate(waveforms):
            mask[row, len(waveform) :] = 0
        self.data = tuple(self._pinned(tensor) for tensor in (padded, mask))
        self.waveforms = [self._pinned(waveform) for waveform in waveforms]

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.amp else tensor

    def __call__(self) -> float:
        self.recipe.train()
        self.recipe.teachers.train(self.teachers_train)
        padded, mask = (tensor.to(self.device) for tensor in self.data)
        with patches.quiet():
            with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
                loss = self.recipe(padded, self.waveforms, mask)
            self.scaler.scale(loss).backward()
            value = loss.item()
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.recipe.parameters(), 5.0)
            if not math.isnan(norm):
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.optimizer.zero_grad()
        return value
