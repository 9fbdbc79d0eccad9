"""The student's one format on disk, and everything that can be read as a student.

A student is a folder: ``config.json`` + ``model.safetensors`` in transformers' HuBERT or WavLM names (it opens with
``AutoModel.from_pretrained``; :mod:`s3prl_ekd.student.config_json` says how where layers differ in size),
``preprocessor_config.json``, ``heads.safetensors``, ``recipe.yaml`` and a model card.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from s3prl_ekd import cost
from s3prl_ekd.config.layer_sizes import layer_heads, layer_intermediate_sizes
from s3prl_ekd.config.recipe import PREDICTION_HEADS, DistillConfig, StudentConfig, slot_name
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path, write_json, write_yaml
from s3prl_ekd.student.checkpoint import Contents, read_checkpoint
from s3prl_ekd.student.config_json import MODELING_FILE, from_config_json, is_stock, to_config_json
from s3prl_ekd.student.heads import HeadPlan, PredictionHeads, Tap, stored_sizes
from s3prl_ekd.student.kinds import StudentKind, student_kind
from s3prl_ekd.student.model import Student
from s3prl_ekd.weights.file_kind import again
from s3prl_ekd.weights.folders import (
    WEIGHTS,
    check_finite,
    read_json,
    read_metadata,
    read_shapes,
    read_tensors,
    weight_files,
)
from s3prl_ekd.weights.names import base_model, recognize, to_transformers_keys

logger = logging.getLogger(__name__)

_EXTRACTOR_EPSILON = 1e-7  # what transformers' feature extractor adds to a waveform's variance, whatever a file says


def load_student(where: str | Path) -> Student:
    """A student in eval mode, on the CPU, in fp32; s3prl is not imported.

    Args:
        where: a student folder, also as transformers writes it (fine-tuned: what stands on top of the student is left
            out), or that of a HuBERT or WavLM; a ``states-*.ckpt`` of run_pretrain (ours or s3prl's distiller); a
            HuBERT or WavLM as fairseq, torchaudio, DPHuBERT, MaskHuBERT or DiariZen write it; or a hub id. A local path
            wins over a hub id.

    Raises:
        UserError: nothing is there, it is not a student (said what it is), or its weights are damaged or not finite.

    Example:
        >>> from s3prl_ekd import assets, load_student
        >>> student = load_student(assets.folder("student_mini"))
        >>> output = student(torch.zeros(2, 16000), lengths=torch.tensor([16000, 12000]))
        >>> output.hidden_states[-1].shape, output.frame_lengths.tolist()
        (torch.Size([2, 49, 192]), [49, 37])
    """
    return load_student_and_heads(where)[0]


def load_student_and_heads(where: str | Path) -> tuple[Student, PredictionHeads | None]:
    """As :func:`load_student`, with the prediction heads where they are stored."""
    path = Path(where).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            raise UserError(f"{path}: a file of a student's folder; name the folder, {path.parent}")
        return _assemble(read_checkpoint(path), path)
    return _read_folder(_download(str(where)))


def save_student(
    folder: str | Path,
    student: Student,
    heads: PredictionHeads | None = None,
    recipe: DistillConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a student folder, atomically, and read it back.

    Args:
        folder: replaced if it is already a student folder, otherwise it must not exist or be empty.
        student: the network.
        heads: its prediction heads, if they are to be kept.
        recipe: what it was distilled with; saved as ``recipe.yaml`` and told in the model card.
        dtype: of the stored tensors; loading always gives fp32.

    Raises:
        UserError: ``folder`` holds something else, or a weight is not finite (in this ``dtype``).
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the student")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: holds other files; name a new folder for the student")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", to_config_json(student.config))
        write_json(temporary / "preprocessor_config.json", _preprocessor(student.config))
        if not is_stock(student.config):
            (temporary / MODELING_FILE.name).write_bytes(MODELING_FILE.read_bytes())
        # save_file would write a file that only its owner can read.
        weights = _portable(student.state_dict(), dtype, folder)
        (temporary / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
        if heads is not None:
            weights = _portable(heads.state_dict(), dtype, folder)
            (temporary / "heads.safetensors").write_bytes(save(weights, _head_metadata(heads)))
        if recipe is not None:
            write_yaml(temporary / "recipe.yaml", recipe.to_mapping())
        (temporary / "README.md").write_text(_model_card(student, recipe), encoding="utf-8")
        reread, _ = _read_folder(temporary)
        for name, tensor in student.state_dict().items():
            if not torch.equal(reread.state_dict()[name], tensor.cpu().to(dtype).float()):
                raise RuntimeError(f"{folder}: {name} was not stored faithfully")
    logger.info("student saved to %s", folder)
    return folder


def _portable(state: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    check_finite(weights, folder)
    return weights


def _head_metadata(heads: PredictionHeads) -> dict[str, str]:
    """What ``heads.safetensors`` says of its taps: the student's layer of each (0 is the input of the first transformer
    layer, -1 the last's output), its target's name, and the number of the head that it uses."""
    lists = {
        "student_layers": [tap.layer for tap in heads.taps],
        "targets": [tap.target for tap in heads.taps],
        "heads": list(heads.uses),
    }
    return {"format": "pt", "kind": heads.kind, **{key: json.dumps(value) for key, value in lists.items()}}


def _preprocessor(config: StudentConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": config.normalize_waveform,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def _read_folder(folder: Path) -> tuple[Student, PredictionHeads | None]:
    if not (folder / "config.json").exists():
        if any(any(folder.glob(pattern)) for pattern in ("states-*.ckpt", "checkpoints", "*/checkpoints")):
            raise UserError(
                f"{folder}: a run's folder, not a student's; name one of its checkpoints, or make a student of the last"
                f" one: s3prl-ekd export {folder} STUDENT"
            )
        raise UserError(f"{folder}: no student folder, it has no config.json; name the folder that has it")
    raw = read_json(folder / "config.json")
    config = from_config_json(raw, folder)
    kind = student_kind(config)
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder}: has no model.safetensors; a student folder needs one (or {', '.join(WEIGHTS[1:])})")
    _check_size(config, _student_weights(read_shapes(files), kind, folder)[0], folder)  # before memory is taken
    state, left_over = _student_weights(read_tensors(files), kind, folder)
    if left_over:
        logger.warning(
            "%s: %s; the student is taken out of it, without %s",
            folder, " ".join(map(str, raw.get("architectures") or ["a larger model"])), ", ".join(left_over),
        )  # fmt: skip
    heads_file = folder / "heads.safetensors"
    heads = read_tensors([heads_file]) if heads_file.is_file() else {}
    if not heads:
        return _assemble(Contents(config, state, heads), folder)
    metadata = read_metadata(heads_file)
    plan = _stored_plan(heads_file, metadata, _count(heads), config)
    kind_of_heads = metadata.get("kind", "mlp")
    if kind_of_heads not in PREDICTION_HEADS:
        raise UserError(f"{heads_file}: heads of kind {kind_of_heads!r:.60}, which this version does not have")
    return _assemble(Contents(config, state, heads, *plan, kind_of_heads), folder)


def _count(heads: Mapping[str, Tensor]) -> int:
    """How many heads these weights are of."""
    return len({name.split(".")[0] for name in heads})


def _stored_plan(path: Path, metadata: Mapping[str, str], heads: int, config: StudentConfig) -> HeadPlan:
    """From which layers which of so many heads predict what. Older folders do not say which head; those of version
    0.1.0 have no layers and maybe no names either."""
    try:
        layers, targets, uses = (json.loads(metadata.get(key, "[]")) for key in ("student_layers", "targets", "heads"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}); {again(path)}") from error
    uses = uses or list(range(heads))
    if not isinstance(uses, list) or not all(type(use) is int for use in uses) or {*uses} != {*range(heads)}:
        raise UserError(f"{path}: says that its taps use the heads {uses!r:.60}, and has {heads}; {again(path)}")
    if not isinstance(targets, list) or len(targets) != len(uses):
        targets = [""] * len(uses)
    layers = layers or [-1] * len(uses)
    known = range(-config.num_hidden_layers - 1, config.num_hidden_layers + 1)
    if not isinstance(layers, list) or len(layers) != len(uses) or not all(layer in known for layer in layers):
        raise UserError(
            f"{path}: predicts from student layers {layers!r:.60}, where {len(uses)} numbers of {known.start} to"
            f" {known.stop - 1} are needed; {again(path)}"
        )
    taps = tuple(Tap(int(layer), str(target)) for layer, target in zip(layers, targets, strict=True))
    return HeadPlan(taps, tuple(uses))


def _student_weights(
    weights: Mapping[str, Tensor], kind: StudentKind, folder: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The student's weights under transformers' names, and which modules of a fine-tuned model are left out."""
    inner, left_over = base_model(weights, f"{kind.architecture['model_type']}.")
    inner.pop("masked_spec_embed", None)  # only for masking in training, which a student never does
    try:  # several tables, since older folders name the weight norm otherwise
        return to_transformers_keys(inner, recognize(inner, kind.tables)), left_over
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _assemble(contents: Contents, where: Path) -> tuple[Student, PredictionHeads | None]:
    """Networks with exactly these weights, in fp32."""
    config, state, heads, *_ = contents
    _check_size(config, state, where)
    check_finite(state, where)
    student = Student(config)
    _load_strictly(student, state, where)
    head_modules = None
    if heads:
        check_finite(heads, where)
        head_modules = _assemble_heads(contents, where).eval()
    return student.eval(), head_modules


def _assemble_heads(contents: Contents, where: Path) -> PredictionHeads:
    config, _, weights, taps, uses, kind = contents
    count = _count(weights)
    uses = uses or tuple(range(len(taps) or count))
    try:
        sizes = [stored_sizes(weights, number, kind) for number in range(count)]
    except KeyError as error:
        raise UserError(f"{where}: its heads are no prediction heads of kind {kind}, they lack {error}") from error
    if {*uses} != {*range(count)}:
        raise UserError(f"{where}: {count} prediction heads, but its recipe has {max(uses) + 1}")
    widths = [width for width, _ in sizes]
    heads = PredictionHeads(config.hidden_size, widths, sizes[0][1], taps or None, uses=uses, kind=kind)
    _load_strictly(heads, weights, where)
    return heads


def _check_size(config: StudentConfig, state: Mapping[str, Tensor], where: Path) -> None:
    """Refuse a configuration that its tensors do not bear out, before a network of its sizes takes memory."""
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    stored = sum(tensor.numel() for tensor in state.values())
    if config.num_hidden_layers != len(layers):
        problem = f"num_hidden_layers is {config.num_hidden_layers}, but there are weights of {len(layers)} layers"
    elif config.parameters > 2 * stored:
        problem = f"it describes {config.parameters} parameters, but there are {stored}"
    else:
        return
    raise UserError(f"{where}: the weights do not fit the student's configuration: {problem}")


def _load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if name not in found:
            problem = "is missing"
        elif name not in shapes:
            problem = "has no place in it"
        elif found[name] != shapes[name]:
            problem = f"is {found[name]}, where {shapes[name]} is described"
        else:
            continue
        raise UserError(f"{where}: the weights do not fit the student's configuration: {name} {problem}")
    module.load_state_dict(state)


def _download(name: str) -> Path:
    """The folder of a hub repository in the local cache, fetched if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "model*.safetensors", "heads.safetensors", "recipe.yaml"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"]))
        return folder
    except HFValidationError as error:
        raise UserError(f"{name}: no such file or folder") from error
    except Exception as error:  # whatever the network, the hub or its client raise: the user can do one thing
        raise UserError(
            f"{name}: no such file or folder, and it could not be had from the hub ({type(error).__name__});"
            " give the path of a student folder or of a states-*.ckpt"
        ) from error


def _model_card(student: Student, recipe: DistillConfig | None) -> str:
    config = student.config
    lines = [
        "---",
        "library_name: s3prl_ekd",
        f"tags: [speech, self-supervised, knowledge-distillation, {config.kind}]",
        "---",
        "# A speech student",
        "",
        f"{cost.in_words(cost.FixedSizes.of(config), cost.UnitCounts.of(config))};"
        f" {config.num_hidden_layers} transformer layers of width {config.hidden_size}, a frame every 20 ms of 16 kHz"
        " audio.",
        "",
    ]
    if not is_stock(config):
        heads, inner = layer_heads(config), layer_intermediate_sizes(config)
        lines += [
            f"Attention heads of each layer: {', '.join(map(str, heads))}; inner units: {', '.join(map(str, inner))}.",
            "",
        ]
    if recipe is not None:
        teachers = ", ".join(f"{t.name} (layers {', '.join(map(slot_name, t.slots))})" for t in recipe.teachers)
        lines += [f"Distilled from {teachers} by {recipe.objective.aggregation}; `recipe.yaml` has it all.", ""]
    lines += [
        "```python",
        "from s3prl_ekd import load_student",
        'student = load_student("this folder")            # or transformers.AutoModel.from_pretrained("this folder")',
        "```",
        "",
    ]
    if not is_stock(config):
        lines += [
            f"Without s3prl_ekd, transformers needs `trust_remote_code=True`: it reads `{MODELING_FILE.name}`.",
            "",
        ]
    if config.normalize_waveform and config.normalization_eps != _EXTRACTOR_EPSILON:
        lines += [
            f"Waveforms are normalised with {config.normalization_eps:g} added to their variance; transformers' feature"
            f" extractor adds {_EXTRACTOR_EPSILON:g}, so that AutoModel's features differ a little.",
            "",
        ]
    lines += ["s3prl: `python -m s3prl_ekd.run_downstream -m train -u ekd_student -k 'this folder' ...`", ""]
    return "\n".join(lines)
