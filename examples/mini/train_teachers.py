"""Train the tiny HuBERT, RobustHuBERT and WavLM teachers that come with the package, by masked prediction.

    python examples/mini/train_teachers.py --teacher all --corpus CORPUS --out OUT

CORPUS is what ``s3prl-ekd mini-corpus CORPUS`` wrote (or any folder of speech). OUT/<teacher>/ becomes a folder that
transformers' ``AutoModel.from_pretrained`` reads; OUT/work/ holds the checkpoints an interrupted training resumes from.
All settings are in teachers.yaml beside this file.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from teacher_data import (
    FEATURES,
    WINDOW,
    Crops,
    chunked,
    cluster,
    draw_crops,
    mix_utterances,
    speech_streams,
)
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
)

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.distortions.gaussian_noise import GaussianNoiseConfig
from s3prl_ekd.audio.distortions.noise import NoiseConfig
from s3prl_ekd.audio.distortions.reverberation import ReverberationConfig
from s3prl_ekd.audio.randomness import keyed_generator
from s3prl_ekd.config.base import Config
from s3prl_ekd.errors import EXIT_USER_ERROR, UserError, nearest
from s3prl_ekd.files import atomic_path

log = logging.getLogger("train_teachers")

Teacher = HubertModel | WavLMModel
ARCHITECTURES = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}


def check_features(name: str) -> None:
    if name not in FEATURES:
        raise UserError(f"unknown features {name!r}; {nearest(name, FEATURES)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Sizes shared by the three teachers; names as in transformers' HubertConfig."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_dim: tuple[int, ...]
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(Config):
    """One set of cluster labels to predict."""

    features: str | None = None
    """``mfcc``, ``voice`` or ``spectrum`` ..."""
    teacher: str | None = None
    """... or an already trained teacher,"""
    layer: int = 0
    """and which of its hidden states to cluster."""
    clusters: int
    weight: float = 1.0
    """Factor of this codebook's loss."""

    def __post_init__(self) -> None:
        if (self.features is None) == (self.teacher is None):
            raise UserError("codebook: give either features or teacher")
        if self.features is not None:
            check_features(self.features)


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(Config):
    """Features of the clean speech to predict as they are, besides their clusters."""

    features: str
    weight: float = 1.0
    """Factor of the mean squared error, each dimension of unit variance."""

    def __post_init__(self) -> None:
        check_features(self.features)


@dataclass(frozen=True, kw_only=True)
class InputConfig(Config):
    """What happens to the input while the labels stay those of the clean speech; each with its probability."""

    reverberation: float = 0.0
    noise: float = 0.0
    """From the corpus's noise folder."""
    gaussian_noise: float = 0.0
    snr_db: tuple[float, float] = (0.0, 20.0)
    mixing: float = 0.0
    """WavLM's utterance mixing."""

    def distorter(self, noise_folder: Path, seed: int) -> Distorter:
        """The package's own distorter with these settings."""
        return Distorter(
            DistortionConfig(
                seed=seed,
                reverberation=ReverberationConfig(probability=self.reverberation),
                noise=NoiseConfig(folder=str(noise_folder), probability=self.noise, snr_db=self.snr_db),
                gaussian_noise=GaussianNoiseConfig(probability=self.gaussian_noise, snr_db=self.snr_db),
            )
        )


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """One run of the optimizer, from warm-up to zero learning rate."""

    steps: int
    learning_rate: float
    codebooks: tuple[CodebookConfig, ...]
    input: InputConfig = field(default_factory=InputConfig)
    regressions: tuple[RegressionConfig, ...] = ()
    from_scratch: bool = False
    """Forget the stage before (its labels may still come from it)."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """One teacher: its architecture, where its weights start, its stages."""

    name: str
    architecture: str
    start_from: str | None = None
    """Another teacher whose weights are continued; null: random weights."""
    stages: tuple[StageConfig, ...]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(Config):
    """teachers.yaml."""

    model: ModelConfig
    crop_frames: int
    batch_size: int
    warmup: float
    """Share of a stage's steps in which the learning rate rises."""
    weight_decay: float
    mask_probability: float
    """Chance that a masked span starts at a frame."""
    mask_span: int
    """Length of a masked span in frames."""
    unmasked_weight: float
    """Weight of the loss on frames that are not masked (HuBERT: 0)."""
    warm_start_steps: int
    """Steps in which the conv stack alone learns to predict the log-mel spectrum, before the first stage."""
    warm_start_learning_rate: float
    checkpoint_steps: int
    teachers: tuple[TeacherConfig, ...]


def build_model(architecture: str, sizes: ModelConfig) -> Teacher:
    """A randomly initialised encoder that can mask time (``mask_time_prob`` > 0 creates the mask embedding)."""
    config_class, model_class = ARCHITECTURES[architecture]
    dropouts = ("hidden", "attention", "activation", "feat_proj", "final")
    config = config_class(
        **{**sizes.to_mapping(), "conv_dim": list(sizes.conv_dim)},
        feat_extract_norm="group",
        do_stable_layer_norm=False,
        mask_time_prob=0.5,
        mask_feature_prob=0.0,
        layerdrop=0.0,
        **{f"{part}_dropout": 0.0 for part in dropouts},
    )
    return model_class(config)


def span_mask(batch: int, frames: int, recipe: RecipeConfig, rng: torch.Generator) -> Tensor:
    """True where a frame is masked: spans of ``mask_span`` frames around random frames, (B, F)."""
    starts = torch.rand(batch, frames, generator=rng) < recipe.mask_probability
    spread = F.max_pool1d(starts.float()[:, None], recipe.mask_span, 1, recipe.mask_span // 2)[:, 0]
    return spread[:, :frames] > 0


@torch.no_grad()
def hidden_features(model: Teacher, streams: list[Tensor], layer: int) -> list[Tensor]:
    """A hidden state of every stream, [(F, D)] in half precision."""

    def features(wave: Tensor) -> Tensor:
        return model(wave[None], output_hidden_states=True).hidden_states[layer][0].half()

    return [chunked(stream, features, 200) for stream in tqdm(streams, desc=f"layer {layer}", leave=False)]


class Regression(nn.Module):
    """A linear head that predicts features of the clean speech."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: str, width: int, sample: Tensor):
        """``sample``: waves (N, S) to take the features' mean and deviation from."""
        super().__init__()
        self.features = features
        values = torch.stack([FEATURES[features](wave) for wave in sample]).flatten(0, 1)  # (N F, D)
        self.register_buffer("mean", values.mean(0))
        self.register_buffer("scale", values.std(0).clamp_min(1e-3))
        self.head = nn.Linear(width, values.shape[1])

    def forward(self, hidden: Tensor, waves: Tensor) -> Tensor:  # (B, F, D), (B, S) -> squared error (B, F)
        target = torch.stack([FEATURES[self.features](wave) for wave in waves])
        return (self.head(hidden) - (target - self.mean) / self.scale).square().mean(-1)


class Objective(nn.Module):
    """What the last hidden state must tell of the clean speech, masked or not: cluster labels and features."""

    def __init__(self, recipe: RecipeConfig, stage: StageConfig, sample: Tensor):
        super().__init__()
        self.codebooks, self.unmasked_weight = stage.codebooks, recipe.unmasked_weight
        self.weights = [regression.weight for regression in stage.regressions]
        width = recipe.model.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, codebook.clusters) for codebook in stage.codebooks)
        self.regressions = nn.ModuleList(Regression(r.features, width, sample) for r in stage.regressions)

    def forward(self, hidden: Tensor, crops: Crops, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss and what to log, from hidden states (B, F, D), clean crops and the mask (B, F)."""
        weight = torch.where(mask, 1.0, self.unmasked_weight)
        weight = weight / weight.sum()  # (B, F)
        loss, facts = torch.zeros(()), {}
        for codebook, head, labels in zip(self.codebooks, self.heads, crops.labels, strict=True):
            logits = head(hidden)  # (B, F, clusters)
            entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # (B, F)
            loss = loss + codebook.weight * (entropy * weight).sum()
            hits = (logits.argmax(-1) == labels)[mask].float().mean().item()
            facts[f"masked {codebook.features or codebook.teacher} accuracy"] = hits
        for regression, factor in zip(self.regressions, self.weights, strict=True):
            error = regression(hidden, crops.waves)  # (B, F)
            loss = loss + factor * (error * weight).sum()
            facts[f"masked {regression.features} error"] = error[mask].mean().item()
        return loss, {"loss": loss.item(), **facts}


class Training:
    """Everything a stage needs beside its own settings."""

    def __init__(self, recipe: RecipeConfig, streams: list[Tensor], noise: Path, out: Path, seed: int):
        self.recipe, self.streams, self.noise, self.out, self.seed = recipe, streams, noise, out, seed
        if max(map(len, streams)) < (recipe.crop_frames + 1) * FRAME_SHIFT + WINDOW:
            raise UserError(f"too little speech for crops of {recipe.crop_frames} frames; give a larger --corpus")
        rng = keyed_generator(seed, "sample")
        self.sample = draw_crops(streams, [], recipe.crop_frames, 100, rng).waves

    def labels(self, codebook: CodebookConfig) -> list[Tensor]:
        """The labels of one codebook, per stream (F,)."""
        if codebook.features is not None:
            analyse = FEATURES[codebook.features]
            features = [chunked(s, analyse) for s in tqdm(self.streams, desc=codebook.features, leave=False)]
        else:
            model = finished_teacher(self.out / str(codebook.teacher))
            features = hidden_features(model, self.streams, codebook.layer)
        return cluster(features, codebook.clusters, self.seed)

    def teacher(self, teacher: TeacherConfig) -> None:
        """Train one teacher through its stages, saving its folder after each."""
        torch.manual_seed(self.seed)  # the same weights whatever was trained before in this process
        model = build_model(teacher.architecture, self.recipe.model)
        fresh = teacher.start_from is None
        if teacher.start_from is not None:
            load_body(model, self.out / teacher.start_from)
        for number, stage in enumerate(teacher.stages):
            name = f"{teacher.name}-{number}"
            done = self.out / "work" / f"{name}.done"
            if done.exists():
                log.info("%s: already trained (remove %s to train it again)", name, done)
                load_body(model, self.out / teacher.name)
                fresh = False
                continue
            torch.manual_seed(self.seed + number)
            if stage.from_scratch:
                model, fresh = build_model(teacher.architecture, self.recipe.model), True
            self._stage(name, model, stage, fresh)
            fresh = False
            save_teacher(model, self.out / teacher.name)
            done.touch()
            (self.out / "work" / f"{name}.pt").unlink(missing_ok=True)

    def _stage(self, name: str, model: Teacher, stage: StageConfig, fresh: bool) -> None:
        recipe, checkpoint = self.recipe, self.out / "work" / f"{name}.pt"
        begun = time.monotonic()
        labels = [self.labels(codebook) for codebook in stage.codebooks]
        log.info("%s: labels made in %.0f s", name, time.monotonic() - begun)
        objective = Objective(recipe, stage, self.sample)
        trained = nn.ModuleDict({"model": model, "objective": objective})
        optimizer = torch.optim.AdamW(
            trained.parameters(), stage.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
        )
        schedule = one_cycle(optimizer, stage.steps, recipe.warmup)
        distorter = stage.input.distorter(self.noise, self.seed)
        start = 0
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            trained.load_state_dict(saved["trained"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
            start = saved["step"]
            log.info("%s: resumed at step %d", name, start)
        elif fresh and recipe.warm_start_steps:
            self._warm_start(name, model)
        trained.train()
        progress = tqdm(range(start, stage.steps), initial=start, total=stage.steps, desc=name, mininterval=5)
        for step in progress:
            rng = keyed_generator(self.seed, name, step)
            crops = draw_crops(self.streams, labels, recipe.crop_frames, recipe.batch_size, rng)
            mask = span_mask(recipe.batch_size, recipe.crop_frames, recipe, rng)
            waves = crops.waves
            if stage.input.mixing:
                mixed = torch.rand(len(waves), 1, generator=rng) < stage.input.mixing
                waves = torch.where(mixed, mix_utterances(waves, rng), waves)
            waves = torch.stack([distorter(w, epoch=step, utterance=f"{name}-{i}") for i, w in enumerate(waves)])
            hidden = model(waves, mask_time_indices=mask).last_hidden_state  # (B, F, D)
            loss, facts = objective(hidden, crops, mask)
            descend(loss, optimizer, list(trained.parameters()))
            schedule.step()
            if (step + 1) % 50 == 0:
                progress.set_postfix_str(", ".join(f"{k} {v:.3f}" for k, v in facts.items()), refresh=False)
            if (step + 1) % recipe.checkpoint_steps == 0:
                log.info("%s step %d: %s", name, step + 1, progress.postfix)
                with atomic_path(checkpoint) as temporary:
                    torch.save(
                        {
                            "trained": trained.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(),
                            "step": step + 1,
                        },
                        temporary,
                    )
        log.info("%s: %d steps in %.0f s: %s", name, stage.steps - start, time.monotonic() - begun, progress.postfix)

    def _warm_start(self, name: str, model: Teacher) -> None:
        """Teach the conv stack and the feature projection alone what a filter bank knows.

        Cluster labels are a poor teacher for a conv stack that starts from random weights: in the few thousand steps a
        CPU can afford, the stack would stay near them.
        """
        recipe = self.recipe
        head = Regression("spectrum", recipe.model.hidden_size, self.sample)
        parts = [model.feature_extractor, model.feature_projection, head]
        parameters = [p for part in parts for p in part.parameters()]
        optimizer = torch.optim.AdamW(parameters, recipe.warm_start_learning_rate, betas=(0.9, 0.98), fused=True)
        schedule = one_cycle(optimizer, recipe.warm_start_steps, recipe.warmup)
        for step in (progress := tqdm(range(recipe.warm_start_steps), desc=f"{name} conv stack", mininterval=5)):
            rng = keyed_generator(self.seed, name, "conv stack", step)
            crops = draw_crops(self.streams, [], recipe.crop_frames, recipe.batch_size, rng)
            features = model.feature_extractor(crops.waves).transpose(1, 2)  # (B, F, C)
            projected = model.feature_projection(features)
            projected = projected[0] if isinstance(projected, tuple) else projected  # WavLM gives two
            loss = head(projected, crops.waves).mean()
            descend(loss, optimizer, parameters)
            schedule.step()
            if (step + 1) % 50 == 0:
                progress.set_postfix_str(f"spectrum {loss.item():.3f}", refresh=False)
        log.info("%s conv stack: %s", name, progress.postfix)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear rise over a share ``warmup`` of the steps, then a cosine down to zero."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        return min(1, (step + 1) / rise) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """One step of the optimizer with clipped gradients."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def finished_teacher(folder: Path) -> Teacher:
    """A teacher that this recipe has saved, for inference in single precision."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no finished teacher there; train it first (--teacher {folder.name}, same --out)")
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def load_body(model: Teacher, folder: Path) -> None:
    """Copy a finished teacher's weights into ``model``; only the mask embedding may be missing there."""
    weights, own = finished_teacher(folder).state_dict(), model.state_dict()
    shapes = {key: value.shape for key, value in weights.items()}
    if shapes != {key: value.shape for key, value in own.items() if key != "masked_spec_embed"}:
        raise UserError(f"{folder}: not a teacher of this recipe's architecture; remove it and train again")
    model.load_state_dict(weights, strict=False)


def save_teacher(model: Teacher, folder: Path) -> None:
    """Write a folder in transformers' format, half precision, which neither masks nor drops when fine-tuned."""
    config = type(model.config).from_dict(
        {**model.config.to_dict(), "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
    )
    plain = AutoModel.from_config(config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "masked_spec_embed"})
    with atomic_path(folder) as temporary:
        plain.half().save_pretrained(temporary)
        Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=False).save_pretrained(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)  # the weights' writer leaves them to the owner alone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="all", help="a teacher's name in the recipe, or all (default)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by mini-corpus, or any speech")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("teachers.yaml"))
    parser.add_argument("--extra-audio", type=Path, help="more speech to mix in (16 kHz)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        recipe = RecipeConfig.from_yaml(args.recipe)
        names = [teacher.name for teacher in recipe.teachers]
        if args.teacher not in [*names, "all"]:
            raise UserError(f"--teacher {args.teacher}: the recipe has {', '.join(names)} (or all)")
        split = args.corpus / "LibriSpeech" / "distil-train"
        folders = [split if split.is_dir() else args.corpus] + ([args.extra_audio] if args.extra_audio else [])
        streams = speech_streams(folders, args.seed)
        noise = args.corpus / "noise"
        log.info("%.1f minutes of speech in %d folders", sum(map(len, streams)) / SAMPLE_RATE / 60, len(streams))
        (args.out / "work").mkdir(parents=True, exist_ok=True)
        training = Training(recipe, streams, noise, args.out, args.seed)
        for teacher in recipe.teachers:
            if args.teacher in (teacher.name, "all"):
                training.teacher(teacher)
    except UserError as error:
        log.error("%s", error)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
