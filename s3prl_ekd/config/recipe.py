"""The recipe's model side: student, teachers, objective, distortion."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, cost
from s3prl_ekd.audio.distortions import DistortionConfig as DistortionConfig
from s3prl_ekd.audio.distortions import TeacherInput as TeacherInput
from s3prl_ekd.config.base import Config, Count, Depth, Dropout, Name, OneOf, Probability, Range, Size, Weight, require
from s3prl_ekd.config.layer_sizes import Amount, PerLayer, check_layer_sizes
from s3prl_ekd.config.parts import Parts, keys_with_parts
from s3prl_ekd.errors import nearest

TermWeight = Annotated[float, Range(at_least=0, at_most=1e6)]
Layer = Annotated[int, Range(at_least=0, at_most=1000)]
Slot = int | tuple[int, ...]
"""What one slot of a teacher's ``layers`` names: a layer, or a group of layers, whose mean it is."""

ALL_LAYERS = 1000
"""As many as any teacher has."""
MAX_PARAMETERS = 10**9
"""Of a student: four gigabytes of weights, sixteen with gradients and AdamW's state."""


AGGREGATORS = Parts(
    {
        "layerwise-average": "s3prl_ekd.targets:LayerwiseAverage",
        "layerwise-concatenation": "s3prl_ekd.targets:LayerwiseConcatenation",
        "separate-heads": "s3prl_ekd.targets:SeparateHeads",
        "teacher-differences": "s3prl_ekd.targets:TeacherDifferences",
    }
)
"""How several teachers' hidden states become targets: subclasses of :class:`s3prl_ekd.targets.Aggregator`."""

LOSS_TERMS = Parts(
    {
        "l1": "s3prl_ekd.loss:l1",
        "l2": "s3prl_ekd.loss:l2",
        "cosine": "s3prl_ekd.loss:cosine",
        "kl": "s3prl_ekd.loss:kl",
        "gram": "s3prl_ekd.loss:gram",
        "correlation": "s3prl_ekd.loss:correlation",
    }
)
"""How far a prediction is from its target: functions of :mod:`s3prl_ekd.loss`."""

UNIT_TERMS = ("kl",)
"""The loss terms that compare a teacher's units; all others compare its hidden states."""

PREDICTION_HEADS = Parts(
    {"mlp": "s3prl_ekd.student.heads:PredictionHead", "linear": "s3prl_ekd.student.heads:LinearHead"}
)
"""The networks that predict a target from a student's hidden state."""

STUDENT_KINDS = Parts({"hubert": "s3prl_ekd.student.kinds:HUBERT", "wavlm": "s3prl_ekd.student.kinds:WAVLM"})
"""What students are put together from: instances of :class:`s3prl_ekd.student.kinds.StudentKind`."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """The student's architecture (DistilHuBERT, arXiv 2110.01900); names as in transformers' HubertConfig."""

    kind: Annotated[str, STUDENT_KINDS] = "hubert"
    """What it is put together from; ``hubert``: a stack of convolutions over the waveform and a transformer;
    ``wavlm``: the same with relative positions."""
    conv_dim: tuple[Size, ...] = (512,) * 7
    """Output channels of each convolution of the waveform encoder."""
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel width of each convolution."""
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution; their product must be 320 samples (20 ms)."""
    hidden_size: Size = 768
    """Width D of the transformer."""
    num_hidden_layers: Depth = 2
    """Number of transformer layers."""
    num_attention_heads: PerLayer = 12
    """Attention heads of each layer: one number, or one for each layer."""
    intermediate_size: PerLayer = 3072
    """Inner width of the feed-forward blocks: one number, or one for each layer."""
    head_dim: Size | None = None
    """Width of an attention head; null: ``hidden_size / num_attention_heads``, which must be one number then."""
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
    normalization_eps: Annotated[float, Range(more_than=0, at_most=1)] = 1e-7
    """Added to the waveform's variance then: transformers' 1e-7; models of fairseq and torchaudio are used to 1e-5."""
    conv_bias: bool = False
    """Whether the convolutions have a bias (HuBERT Large: yes)."""
    conv_layer_norm: bool = False
    """LayerNorm after every convolution (Large) instead of GroupNorm after the first (Base)."""
    feat_proj_layer_norm: bool = False
    """LayerNorm before the feature projection, as HuBERT and WavLM have it and DistilHuBERT does not."""
    feature_scale: bool = False
    """A fixed factor for each channel of the conv stack, before that LayerNorm: what DPHuBERT's files have kept of the
    last convolution's gates."""
    do_stable_layer_norm: bool = False
    """Pre-norm layers and a LayerNorm at the end (Large) instead of post-norm layers (Base)."""
    layer_norm_eps: Annotated[float, Range(more_than=0, at_most=1)] = 1e-5
    """Added to variances in the transformer's LayerNorms."""
    num_buckets: Annotated[int, Range(at_least=0, at_most=65_536)] = 0
    """Buckets of the gated relative position bias of kind ``wavlm`` (320); ``hubert`` has none."""
    max_bucket_distance: Annotated[int, Range(at_least=0, at_most=10**9)] = 800
    """Distance in frames from which on all fall into the last bucket."""
    remaining_heads: tuple[tuple[Amount, ...], ...] | None = None
    """Of a pruned ``wavlm``: which heads of its origin each layer has kept, since the gate of head h reads slice h of
    the layer's input; null: all."""
    initialize_from: str | None = None
    """Name of the teacher whose conv stack, feature projection, position convolution and first layers are copied; null:
    random weights."""
    copy: str | None = None
    """Name of the teacher that the student is a copy of, in sizes, variants and weights (DPHuBERT, arXiv 2305.17651),
    dropouts and feature_grad_scale aside; null: the sizes above."""
    copy_layers: tuple[Amount, ...] | None = None
    """Which of its transformer layers, from 0 on; null: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_copy()
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
        check_layer_sizes(self, "student.")
        require(
            self.hidden_size % self.num_conv_pos_embedding_groups == 0,
            f"student.hidden_size {self.hidden_size} is not divisible by num_conv_pos_embedding_groups"
            f" {self.num_conv_pos_embedding_groups}",
        )
        wavlm = self.kind == "wavlm"
        require(
            self.num_buckets == 0 or wavlm,
            f"student.num_buckets: a {self.kind} has no relative positions; leave it out, or set kind: wavlm",
        )
        require(self.num_buckets > 0 or not wavlm, "student.num_buckets: kind wavlm needs some; WavLM has 320")
        require(
            self.feat_proj_layer_norm or not wavlm,
            "student.feat_proj_layer_norm: kind wavlm has this LayerNorm; set it to true",
        )
        require(
            self.parameters <= MAX_PARAMETERS,
            f"student: these sizes make {self.parameters / 1e9:.1f} billion parameters, and"
            f" {MAX_PARAMETERS / 1e9:g} billion is the most; lower hidden_size, intermediate_size, conv_dim,"
            " num_conv_pos_embeddings or num_hidden_layers",
        )

    def _check_copy(self) -> None:
        layers = self.copy_layers
        if self.copy is None:
            require(layers is None, "student.copy_layers: says which layers of student.copy; name a teacher there")
            return
        for item in fields(self):
            require(
                item.name in _OF_A_COPY or getattr(self, item.name) == item.default,
                f"student.{item.name}: a copy has what its teacher has; leave this out, or student.copy",
            )
        require(
            layers is None or (len(layers) > 0 and list(layers) == sorted(set(layers))),
            f"student.copy_layers: expected numbers of layers in rising order, found {list(layers or ())}",
        )

    @property
    def origin(self) -> str | None:
        """Name of the teacher whose weights it starts from; None: random weights."""
        return self.initialize_from if self.copy is None else self.copy

    @property
    def origin_layers(self) -> int:
        """Of that teacher, how many of the first layers are needed; ALL_LAYERS: all."""
        if self.copy is None:
            return self.num_hidden_layers
        return ALL_LAYERS if self.copy_layers is None else max(self.copy_layers) + 1

    @property
    def receptive_field(self) -> int:
        """Samples that a frame is computed from."""
        pairs = zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True)
        return functools.reduce(lambda samples, layer: (samples - 1) * layer[1] + layer[0], pairs, 1)

    @property
    def parameters(self) -> int:
        """How many parameters the student has, prediction heads excluded."""
        return int(cost.parameters(cost.FixedSizes.of(self), cost.UnitCounts.of(self)))


_OF_A_COPY = frozenset(
    {"copy", "copy_layers", "hidden_dropout", "attention_dropout", "activation_dropout", "feature_grad_scale"}
)
"""The settings of a student that a copy has of its own."""


def slot_name(slot: Slot) -> str:
    """``4``, ``1-4`` for a group of neighbours, ``1,3,5`` for another."""
    if isinstance(slot, int):
        return str(slot)
    neighbours = len(slot) > 1 and list(slot) == list(range(slot[0], slot[0] + len(slot)))
    return f"{slot[0]}-{slot[-1]}" if neighbours else ",".join(map(str, slot))


def last_layer(slot: Slot) -> int:
    """The layer itself, or a group's last."""
    return slot if isinstance(slot, int) else max(slot)


@dataclass(frozen=True, kw_only=True)
class LayerClusters(Config):
    """Groups of layers that are alike, found on the run's own data before it begins (the idea is SKILL's, arXiv
    2402.16830, which does not say by which measure)."""

    clusters: Size
    """How many groups."""
    similarity: Annotated[str, OneOf("cka", "cosine")] = "cka"
    """How alike two layers are: linear CKA (arXiv 1905.00414), or the mean cosine of their frames."""
    linkage: Annotated[str, OneOf("average", "complete", "single", "ward")] = "average"
    """How clusters are joined, scipy's word."""
    utterances: Count = 64
    """Utterances that the layers are compared on."""


@dataclass(frozen=True, kw_only=True)
class UnitsConfig(Config):
    """Units of a teacher for the loss term ``kl``: k-means clusters of a layer (HuBERT, arXiv 2106.07447, section
    II-A)."""

    count: Annotated[int, Range(at_least=2, at_most=10_000)] = 100
    """How many clusters."""
    layer: Layer
    """The hidden state that is clustered, as it is, whatever ``layer_norm_targets`` says."""
    temperature: Annotated[float, Range(more_than=0, at_most=1e6)] = 0.1
    """How soft the targets are: a frame's logits are minus its squared distances to the centres, in units of their mean
    over frames and centres, divided by this. With 1 a hundred units are nearly equally likely (entropy 0.97 log 100 for
    layer 4 of the mini HuBERT), with 0.1 a few are (0.58), with 0.01 hardly more than one (0.06). The loss term kl
    divides these logits, and the student's, by its own temperature once more."""
    weight: Weight = 1.0
    """Share in the loss, beside the teacher's other targets."""
    utterances: Count = 64
    """Utterances that the clusters are found on."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """One teacher: a name, exactly one source (``s3prl``, ``transformers``, ``mini`` or ``student``), and what to take
    from it.

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
    student: str | None = field(default=None, metadata={"part": "s3prl_ekd.student_teacher:StudentTeacher"})
    """Whatever can be a student (``-u ekd_student -k``): a student's folder, a checkpoint, another project's file."""
    ckpt: str | None = None
    """Checkpoint for s3prl's ``_local`` and ``_custom`` upstreams."""
    layers: tuple[Layer | tuple[Layer, ...], ...] | LayerClusters = (4, 8, 12)
    """Hidden states to predict: 0 is the input of the first transformer layer, i the output of layer i. A list in the
    list is a group of layers, whose mean is predicted (SKILL, arXiv 2402.16830); ``{clusters: 4}`` finds groups."""
    units: UnitsConfig | None = None
    """Cluster units to predict, too; null: none."""
    principal_components: Size | None = None
    """Predict so many principal components of each slot, found on the run's own data; null: the whole. Those of
    several teachers can be predicted one by one or side by side, not averaged."""
    weight: Weight = 1.0
    """Relative weight in the average (layerwise-average, teacher-differences) or of the heads' losses
    (separate-heads)."""
    layer_norm_targets: bool = False
    """Whether each frame of a layer is layer-normalised (no affine part) before anything else; so a group is the mean
    of normalised layers (as in data2vec, arXiv 2202.03555)."""
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
        if isinstance(self.layers, LayerClusters):
            return
        require(len(self.layers) > 0, f"teacher {self.name!r}: layers is empty, name at least one")
        members = [frozenset((slot,) if isinstance(slot, int) else slot) for slot in self.layers]
        require(
            len(set(members)) == len(members),
            f"teacher {self.name!r}: a layer is named twice, or a group (in whatever order its layers are)",
        )
        for group in (slot for slot in self.layers if isinstance(slot, tuple)):
            require(len(group) > 0, f"teacher {self.name!r}: a group of layers is empty")
            require(
                len(set(group)) == len(group),
                f"teacher {self.name!r}: the group {list(group)} names a layer twice",
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The layers and groups to predict.

        Raises:
            UserError: the groups have not been found yet.
        """
        require(
            not isinstance(self.layers, LayerClusters),
            f"teacher {self.name!r}: its groups of layers have not been found yet; s3prl-ekd cluster-layers writes them"
            " into a recipe, and s3prl-ekd distill finds them itself",
        )
        assert not isinstance(self.layers, LayerClusters)
        return self.layers

    @property
    def needs_calibration(self) -> bool:
        """Whether something is found on the run's own data before it begins: groups of layers, units, components."""
        asked = (self.units, self.principal_components)
        return isinstance(self.layers, LayerClusters) or any(one is not None for one in asked)

    def require_calibrated(self) -> None:
        """Check that nothing is to be found on the run's own data, where that is not done.

        Raises:
            UserError: something is.
        """
        _ = self.slots
        require(
            not self.needs_calibration,
            f"teacher {self.name!r}: units and principal_components are found on a run's own data, which s3prl-ekd"
            " distill does; leave them out here",
        )

    @property
    def slot_count(self) -> int:
        """How many slots there are, or will be."""
        return self.layers.clusters if isinstance(self.layers, LayerClusters) else len(self.layers)

    @property
    def computed_layers(self) -> tuple[int, ...]:
        """The hidden states that are needed for the slots and the units, each once."""
        return tuple(dict.fromkeys(self._layers_needed()))

    def _layers_needed(self) -> Iterator[int]:
        for slot in self.slots:
            yield from (slot,) if isinstance(slot, int) else slot
        if self.units is not None:
            yield self.units.layer

    @property
    def source(self) -> str:
        """Which of the sources is given."""
        return next(key for key in keys_with_parts(type(self)) if getattr(self, key) is not None)

    @property
    def origin(self) -> str:
        """What the source's key says, such as the name of an upstream."""
        return str(getattr(self, self.source))


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(Config):
    """The prediction heads, one for each target."""

    kind: Annotated[str, PREDICTION_HEADS] = "mlp"
    """``mlp``: Linear, GELU, Linear (DistilHuBERT); ``linear``: one Linear (DPHuBERT)."""
    from_: Annotated[str, OneOf("last", "same")] | tuple[Layer, ...] = "last"
    """From which hidden state of the student each slot is predicted: the ``last``; the ``same`` as the teachers' (a
    group's last layer); or one number for each slot. They count as a teacher's: 0 is the input of the first layer.
    Units are predicted from the last one, or from the ``same``."""
    initialize: Annotated[str, OneOf("default", "identity")] = "default"
    """``identity``: a ``linear`` head starts as the identity (DPHuBERT), for targets as wide as the student; not one of
    units."""
    share: tuple[tuple[Layer, ...], ...] = ()
    """Slots that have one head together, by their numbers from 0 on (DPHuBERT: ``[[0], [1, 2, 3]]``); empty: none. With
    separate-heads, slots of one teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.initialize != "identity" or self.kind == "linear",
            "heads.initialize: identity needs heads.kind: linear",
        )
        shared = [slot for group in self.share for slot in group]
        require(len(set(shared)) == len(shared), "heads.share: a slot is named twice")
        for group in self.share:
            require(len(group) > 0, "heads.share: a group of slots is empty; name its slots, or leave it out")
            layers = [self._layer(slot) for slot in group]
            require(
                len(set(layers)) == len(layers),
                f"heads.share: slots {list(group)} are predicted by one head from one layer of the student, so that"
                " their predictions would be equal; give them different layers under heads.from",
            )

    def _layer(self, slot: int) -> object:
        """Equal for slots that are predicted from one layer, as far as can be told here."""
        if self.from_ == "last":
            return "last"
        return self.from_[slot] if isinstance(self.from_, tuple) and slot < len(self.from_) else f"of slot {slot}"


def require_all_layers_trained(deepest: int, depth: int) -> None:
    """Check that something is predicted from the last of a student's layers: no gradient reaches those above the
    deepest one that predictions are made from.

    Raises:
        UserError: nothing is.
    """
    require(
        deepest >= depth,
        f"heads.from: nothing is predicted from a layer of the student above {deepest}, so that of its {depth} layers"
        f" those above would never be trained; give it fewer layers (num_hidden_layers; copy_layers of a copy), or"
        f" predict something from layer {depth}",
    )


@dataclass(frozen=True, kw_only=True)
class LossTermConfig(Config):
    """One term of the loss."""

    kind: Annotated[str, LOSS_TERMS]
    """``l1``, ``l2``, ``cosine``, ``kl``, ``gram`` or ``correlation``."""
    weight: TermWeight = 1.0
    """Its factor."""
    form: Annotated[str, OneOf("raw", "log-sigmoid")] | None = field(default=None, metadata={"of": "cosine"})
    """Of ``cosine``: ``raw``, 1 - cosine (DPHuBERT's up to a constant), or ``log-sigmoid``, -log sigmoid(cosine)
    (DistilHuBERT's), which null is."""
    temperature: Annotated[float, Range(more_than=0, at_most=1e6)] | None = field(default=None, metadata={"of": "kl"})
    """Of ``kl``: T in T^2 KL(softmax(target / T), softmax(prediction / T)); null: 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            owner = item.metadata.get("of", self.kind)
            require(
                owner == self.kind or getattr(self, item.name) is None,
                f"objective.losses: {item.name} is a setting of {owner}, not of {self.kind}; leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class LearntWeightsConfig(Config):
    """Weights of the teachers that are trained with the student: a softmax over teachers for each slot."""

    floor: Probability = 0.1
    """The least weight of a teacher; without one the easiest teacher would get everything."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """The distillation loss: a weighted list of terms, averaged over frames, then over heads.

    Without a list: L1 + cosine_weight x -log sigmoid(cosine), DistilHuBERT's (arXiv 2110.01900, equation 1).
    """

    aggregation: Annotated[str, AGGREGATORS] = "separate-heads"
    """``layerwise-average``, ``layerwise-concatenation``, ``separate-heads`` or ``teacher-differences``."""
    cosine_weight: TermWeight = 1.0
    """Lambda of the cosine term where ``losses`` is not given (DistilHuBERT: 1)."""
    losses: tuple[LossTermConfig, ...] = ()
    """The terms of the loss; empty: L1 and cosine_weight x cosine."""
    learnt_weights: LearntWeightsConfig | None = None
    """Teachers' weights that are trained; null: those of the recipe."""
    loss_on_padding: bool = False
    """True reproduces s3prl's distiller on padded batches: padding counts in the loss, in the conv stack's statistics
    and in what the teachers hear. Masked to real frames by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [term.kind for term in self.losses]
        require(len(set(kinds)) == len(kinds), f"objective.losses: a kind is named twice, found {', '.join(kinds)}")
        require(
            not kinds or self.cosine_weight == 1.0,
            "objective: cosine_weight is for the loss without a list; give cosine its weight under losses",
        )
        require(
            any(term.weight > 0 for term in self.terms.values() if term.kind not in UNIT_TERMS),
            "objective.losses: nothing compares the hidden states that the teachers' layers name; add a term with a"
            " weight, such as l1",
        )
        self._check_learnt_weights()

    def _check_learnt_weights(self) -> None:
        if self.learnt_weights is None:
            return
        require(
            self.aggregation != "layerwise-concatenation",
            "objective.learnt_weights: layerwise-concatenation has no weights; use layerwise-average or separate-heads",
        )
        require(
            self.aggregation != "teacher-differences",
            "objective.learnt_weights: teacher-differences are differences from a fixed mean; use layerwise-average or"
            " separate-heads",
        )

    @property
    def terms(self) -> dict[str, LossTermConfig]:
        """The loss terms by their names."""
        default = (LossTermConfig(kind="l1"), LossTermConfig(kind="cosine", weight=self.cosine_weight))
        return {term.kind: term for term in self.losses or default}


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Everything a :class:`s3prl_ekd.distiller.Distiller` needs to know."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """The student's architecture."""
    teachers: tuple[TeacherConfig, ...]
    """The ensemble."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """How targets are predicted."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Aggregation and loss."""
    distortion: DistortionConfig = field(default_factory=DistortionConfig)
    """What the student hears."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [teacher.name for teacher in self.teachers]
        require(len(names) > 0, "teachers: name at least one teacher")
        require(len(set(names)) == len(names), f"teachers: names must be unique, found {', '.join(names)}")
        for key in ("initialize_from", "copy"):
            start = getattr(self.student, key)
            require(
                start is None or start in names,
                f"student.{key}: no teacher is named {start!r}; {nearest(str(start), names)}",
            )
        self._check_units()
        self._check_heads()
        slots = {teacher.slot_count for teacher in self.teachers}
        aggregation = self.objective.aggregation
        require(
            aggregation == "separate-heads" or len(slots) == 1,
            f"objective.aggregation: {aggregation} pairs layers by position, but the teachers name"
            f" {sorted(slots)} layers; name equally many, or use separate-heads",
        )
        weights = {teacher.weight for teacher in self.teachers}
        require(
            aggregation != "layerwise-concatenation" or len(weights) == 1,
            "teachers: layerwise-concatenation has no weights; leave weight out, or use layerwise-average or"
            " separate-heads",
        )
        self._check_components()
        if self.objective.learnt_weights is not None:
            self._check_learnt_weights(self.objective.learnt_weights.floor, slots, weights)

    @property
    def _student_depth(self) -> int | None:
        """How many layers the student has; None: as many as the teacher that it is a copy of."""
        student = self.student
        if student.copy is None:
            return student.num_hidden_layers
        return None if student.copy_layers is None else len(student.copy_layers)

    def _check_heads(self) -> None:
        start, depth = self.heads.from_, self._student_depth
        counts = {teacher.slot_count for teacher in self.teachers}
        beyond = [slot for group in self.heads.share for slot in group if slot >= min(counts)]
        require(
            not beyond,
            f"heads.share: slot {beyond[0] if beyond else ''} of {min(counts)}; the slots are numbered from 0 to"
            f" {min(counts) - 1}",
        )
        if isinstance(start, tuple):
            require(
                counts == {len(start)},
                f"heads.from: {len(start)} layers for {' or '.join(map(str, sorted(counts)))} slots; give one for each",
            )
            require(
                depth is None or max(start) <= depth,
                f"heads.from: layer {max(start)} of {depth}; the student's hidden states are 0 to {depth}",
            )
            if depth is not None and all(teacher.units is None for teacher in self.teachers):
                require_all_layers_trained(max(start), depth)
        elif start == "same" and not any(isinstance(teacher.layers, LayerClusters) for teacher in self.teachers):
            self._check_same(depth)

    def _check_same(self, depth: int | None) -> None:
        layers = {teacher.name: list(map(last_layer, teacher.slots)) for teacher in self.teachers}
        needed = {
            teacher.name: max(*layers[teacher.name], teacher.units.layer if teacher.units is not None else 0)
            for teacher in self.teachers
        }
        for name, deepest in needed.items():
            require(
                depth is None or deepest <= depth,
                f"heads.from: same needs layer {deepest} of the student, as of teacher {name!r}, and it has {depth};"
                " use last, or one layer for each slot",
            )
        require(
            self.objective.aggregation == "separate-heads" or len({tuple(one) for one in layers.values()}) == 1,
            "heads.from: same, but the teachers name different layers for one slot"
            f" ({'; '.join(f'{name} {one}' for name, one in layers.items())}); use last, or one layer for each slot",
        )
        for group in self.heads.share:
            for name, one in layers.items():
                require(
                    len({one[slot] for slot in group}) == len(group),
                    f"heads.share: slots {list(group)} end with one layer of teacher {name!r}, so that predictions"
                    " from it by one head would be equal; give them heads of their own",
                )
        if depth is not None:
            require_all_layers_trained(max(needed.values()), depth)

    def _check_components(self) -> None:
        reduced = [teacher.name for teacher in self.teachers if teacher.principal_components is not None]
        aggregation = self.objective.aggregation
        require(
            not reduced or len(self.teachers) == 1 or aggregation not in ("layerwise-average", "teacher-differences"),
            f"teacher {reduced[0] if reduced else ''!r}: principal_components are found for each teacher alone, so that"
            f" the first of one has nothing to do with the first of another, and {aggregation} would average them; use"
            " separate-heads or layerwise-concatenation, or leave principal_components out",
        )

    def _check_learnt_weights(self, floor: float, slots: set[int], weights: set[float]) -> None:
        count = len(self.teachers)
        require(count > 1, "objective.learnt_weights: weights of several teachers are learnt, and there is one")
        require(len(weights) == 1, "objective.learnt_weights: they begin equal; leave the teachers' weight out")
        require(
            len(slots) == 1,
            f"objective.learnt_weights: one for each teacher and slot, but the teachers name {sorted(slots)} layers;"
            " name equally many",
        )
        require(
            floor * count < 1,
            f"objective.learnt_weights.floor: {count} teachers of at least {floor:g} each are 1 or more together; give"
            f" less than {1 / count:.3g}",
        )

    def _check_units(self) -> None:
        units = [teacher.name for teacher in self.teachers if teacher.units is not None]
        kl = any(term.kind in UNIT_TERMS and term.weight > 0 for term in self.objective.terms.values())
        require(
            not kl or bool(units),
            "objective.losses: kl compares units, and no teacher has them; give one units: {count: 100, layer: 9}",
        )
        require(
            kl or not units,
            f"teacher {units[0] if units else ''!r}: units are learnt by the loss term kl; name it under"
            " objective.losses, or leave units out",
        )
