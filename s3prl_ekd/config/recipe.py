"""The recipe's model side: student, teachers, objective, distortion."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Annotated

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, cost
from s3prl_ekd.audio.distortions import DistortionConfig as DistortionConfig
from s3prl_ekd.audio.distortions import TeacherInput as TeacherInput
from s3prl_ekd.config.base import Config, Depth, Dropout, Name, Range, Size, Weight, require
from s3prl_ekd.config.parts import Parts, keys_with_parts
from s3prl_ekd.errors import nearest

TermWeight = Annotated[float, Range(at_least=0, at_most=1e6)]

MAX_PARAMETERS = 10**9
"""Of a student: four gigabytes of weights, sixteen with gradients and AdamW's state."""


AGGREGATORS = Parts(
    {
        "layerwise-average": "s3prl_ekd.targets:LayerwiseAverage",
        "layerwise-concatenation": "s3prl_ekd.targets:LayerwiseConcatenation",
        "separate-heads": "s3prl_ekd.targets:SeparateHeads",
    }
)
"""How several teachers' hidden states become targets: subclasses of :class:`s3prl_ekd.targets.Aggregator`."""

STUDENT_KINDS = Parts({"hubert": "s3prl_ekd.student.kinds:HUBERT"})
"""What students are put together from: instances of :class:`s3prl_ekd.student.kinds.StudentKind`."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """The student's architecture (DistilHuBERT, arXiv 2110.01900); names as in transformers' HubertConfig."""

    kind: Annotated[str, STUDENT_KINDS] = "hubert"
    """What it is put together from; ``hubert``: a stack of convolutions over the waveform and post-norm layers."""
    conv_dim: tuple[Size, ...] = (512,) * 7
    """Output channels of each convolution of the waveform encoder."""
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel width of each convolution."""
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution; their product must be 320 samples (20 ms)."""
    hidden_size: Size = 768
    """Width D of the transformer."""
    num_hidden_layers: Depth = 2
    """Number of transformer layers (post-norm)."""
    num_attention_heads: Size = 12
    """Attention heads of each layer."""
    intermediate_size: Size = 3072
    """Inner width of the feed-forward blocks."""
    num_conv_pos_embeddings: Size = 128
    """Kernel width of the position convolution."""
    num_conv_pos_embedding_groups: Size = 16
    """Groups of the position convolution."""
    hidden_dropout: Dropout = 0.1
    """Dropout after the position convolution, attention and feed-forward blocks, in training."""
    attention_dropout: Dropout = 0.1
    """Dropout of attention weights, in training."""
    activation_dropout: Dropout = 0.1
    """Dropout inside the feed-forward blocks, in training."""
    feature_grad_scale: Annotated[float, Range(at_least=0, at_most=1000)] = 0.1
    """Factor on the gradient that reaches the conv stack (DistilHuBERT: 0.1)."""
    normalize_waveform: bool = False
    """Whether each utterance is brought to zero mean and unit variance before the conv stack."""
    initialize_from: str | None = None
    """Name of the teacher whose conv stack, feature projection, position convolution and first layers are copied; null:
    random weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        require(len(lengths) == 1, "student: conv_dim, conv_kernel and conv_stride need the same number of entries")
        require(len(self.conv_dim) <= 32, f"student.conv_dim: {len(self.conv_dim)} convolutions, 32 are the most")
        stride = math.prod(self.conv_stride)
        message = f"student.conv_stride: the product is {stride}, but a frame is {FRAME_SHIFT} samples"
        require(stride == FRAME_SHIFT, message)
        field, least = self.receptive_field, MIN_SAMPLES - FRAME_SHIFT
        require(
            least <= field <= MIN_SAMPLES,
            f"student.conv_kernel: a frame is computed from {field} samples; expected {least} to {MIN_SAMPLES}, since"
            f" utterances of {MIN_SAMPLES} samples are used and teachers' frames may be one more or less",
        )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            require(
                self.hidden_size % getattr(self, name) == 0,
                f"student.hidden_size {self.hidden_size} is not divisible by {name} {getattr(self, name)}",
            )
        require(
            self.parameters <= MAX_PARAMETERS,
            f"student: these sizes make {self.parameters / 1e9:.1f} billion parameters, and"
            f" {MAX_PARAMETERS / 1e9:g} billion is the most; lower hidden_size, intermediate_size, conv_dim,"
            " num_conv_pos_embeddings or num_hidden_layers",
        )

    @property
    def receptive_field(self) -> int:
        """Samples that a frame is computed from."""
        pairs = zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True)
        return functools.reduce(lambda samples, layer: (samples - 1) * layer[1] + layer[0], pairs, 1)

    @property
    def parameters(self) -> int:
        """How many parameters the student has, prediction heads excluded."""
        return int(cost.parameters(cost.Architecture.of(self), cost.Counts.of(self)))


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """One teacher: a name, exactly one source (``s3prl``, ``transformers`` or ``mini``), and what to take from it.

    A source is a key that stands for a function from this entry to a :class:`~s3prl_ekd.teachers.base.Teacher`.
    """

    name: Name
    """Free name, unique in the recipe; logs and ``student.initialize_from`` use it."""
    s3prl: str | None = field(default=None, metadata={"part": "s3prl_ekd.teachers.from_s3prl:S3prlTeacher"})
    """An s3prl upstream, such as ``hubert_base_robust_mgr``; ``_local`` and ``_custom`` ones need ``ckpt``."""
    transformers: str | None = field(
        default=None, metadata={"part": "s3prl_ekd.teachers.from_transformers:load_transformers_teacher"}
    )
    """A transformers speech encoder: a local folder, else a hub id such as ``microsoft/wavlm-base-plus``."""
    mini: str | None = field(default=None, metadata={"part": "s3prl_ekd.teachers.from_transformers:load_mini_teacher"})
    """A tiny teacher that comes with this package: ``hubert``, ``robust_hubert`` or ``wavlm``."""
    ckpt: str | None = None
    """Checkpoint for s3prl's ``_local`` and ``_custom`` upstreams."""
    layers: tuple[Annotated[int, Range(at_least=0, at_most=1000)], ...] = (4, 8, 12)
    """Hidden states to predict: 0 is the input of the first transformer layer, i the output of layer i."""
    weight: Weight = 1.0
    """Relative weight in the average (layerwise-average) or of the heads' losses (separate-heads)."""
    layer_norm_targets: bool = False
    """Whether each target frame is layer-normalised (no affine part) before aggregation."""
    normalize_waveform: bool | None = None
    """Zero mean and unit variance of the teacher's input; null: as the model's own configuration says."""
    own_forward: bool = False
    """Run a HuBERT or WavLM by its source's code, utterance by utterance, instead of by this package's encoder (which
    gives the same numbers, faster)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = keys_with_parts(type(self))
        given = [source for source in sources if getattr(self, source) is not None]
        require(
            len(given) == 1,
            f"teacher {self.name!r}: give exactly one source of {', '.join(sources)}"
            f" (found {', '.join(given) or 'none'})",
        )
        require(
            self.ckpt is None or self.s3prl is not None, f"teacher {self.name!r}: ckpt is only for an s3prl upstream"
        )
        require(len(self.layers) > 0, f"teacher {self.name!r}: layers is empty, name at least one")
        require(len(set(self.layers)) == len(self.layers), f"teacher {self.name!r}: a layer is named twice")

    @property
    def source(self) -> str:
        """Which of the sources is given."""
        return next(key for key in keys_with_parts(type(self)) if getattr(self, key) is not None)

    @property
    def origin(self) -> str:
        """What the source's key says, such as the name of an upstream."""
        return str(getattr(self, self.source))


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """The distillation loss: L1 + cosine_weight x -log sigmoid(cosine), averaged over frames, then over heads.

    A loss term is a key ``NAME_weight`` that stands for a function of :mod:`s3prl_ekd.loss`.
    """

    aggregation: Annotated[str, AGGREGATORS] = "separate-heads"
    """``layerwise-average``, ``layerwise-concatenation`` or ``separate-heads``."""
    cosine_weight: TermWeight = field(default=1.0, metadata={"part": "s3prl_ekd.loss:cosine"})
    """Lambda of the cosine term (DistilHuBERT: 1)."""
    loss_on_padding: bool = False
    """True reproduces s3prl's distiller on padded batches: padding counts in the loss, in the conv stack's statistics
    and in what the teachers hear. Masked to real frames by default."""

    @property
    def terms(self) -> dict[str, tuple[str, float]]:
        """The address and the weight of each loss term, by its name; the L1 distance always has the weight 1."""
        keys = keys_with_parts(type(self))
        weighted = {key.removesuffix("_weight"): (address, getattr(self, key)) for key, address in keys.items()}
        return {"l1": ("s3prl_ekd.loss:l1", 1.0), **weighted}


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Everything a :class:`s3prl_ekd.distiller.Distiller` needs to know."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """The student's architecture."""
    teachers: tuple[TeacherConfig, ...]
    """The ensemble."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Aggregation and loss."""
    distortion: DistortionConfig = field(default_factory=DistortionConfig)
    """What the student hears."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [teacher.name for teacher in self.teachers]
        require(len(names) > 0, "teachers: name at least one teacher")
        require(len(set(names)) == len(names), f"teachers: names must be unique, found {', '.join(names)}")
        start = self.student.initialize_from
        require(
            start is None or start in names,
            f"student.initialize_from: no teacher is named {start!r}; {nearest(str(start), names)}",
        )
        depths = {len(teacher.layers) for teacher in self.teachers}
        aggregation = self.objective.aggregation
        require(
            aggregation == "separate-heads" or len(depths) == 1,
            f"objective.aggregation: {aggregation} pairs layers by position, but the teachers name"
            f" {sorted(depths)} layers; name equally many, or use separate-heads",
        )
        weights = {teacher.weight for teacher in self.teachers}
        require(
            aggregation != "layerwise-concatenation" or len(weights) == 1,
            "teachers: layerwise-concatenation has no weights; leave weight out, or use layerwise-average or"
            " separate-heads",
        )
