"""The interface of all teachers: waveforms to the hidden states that the recipe needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.network.frames import HiddenStates, Packing
from s3prl_ekd.teachers.layouts import layout
from s3prl_ekd.weights.folders import check_finite
from s3prl_ekd.weights.names import recognize, to_transformers_keys

WAVEFORM_EPSILON = 1e-5  # added to the waveform's variance, as fairseq and s3prl do (layer_norm's default)
_INITIALIZES = ("feature_extractor.", "feature_projection.", "encoder.")


class Teacher(ABC):
    """A frozen speech encoder in eval mode.

    Not an ``nn.Module``, so that nothing wraps, saves, trains or counts it.

    Attributes:
        name, weight: as in the recipe.
        layers: the hidden states that it computes: all that the recipe's slots and units are made of, each once.
        module: the model itself; each call switches it to eval mode first.
        source: where it comes from, for the log.
        padded: how it computes a batch. False: each utterance as if alone. True: the zero-padded batch in one pass,
            padding and all, with the model's own masking: what s3prl's distiller trains on
            (``objective.loss_on_padding``).
        num_hidden_layers: the index of its last hidden state; absent where only its cached targets are known.
        hidden_size: width D of these hidden states.
    """

    name: str
    layers: tuple[int, ...]
    weight: float
    source: str
    padded: bool = False
    module: nn.Module
    num_hidden_layers: int
    hidden_size: int
    _device: torch.device
    _normalize: bool
    _parameters: int
    _computed: int
    _dropped: dict[str, Tensor]  # weights of layers that are not computed

    @abstractmethod
    def hidden_states(self, waveforms: Tensor, lengths: Tensor) -> HiddenStates:
        """The hidden states that the recipe needs.

        Args:
            waveforms: (B, S) at 16 kHz, on any device.
            lengths: (B,) samples of each, best on the CPU.

        Returns:
            Rows (N, D) in float32 for each of :attr:`layers`; where :attr:`padded` all utterances have F frames.

        Raises:
            ValueError: an utterance is too short for a frame.
            UserError: the layers differ by more than one frame.
        """

    @abstractmethod
    def encoder_state(self) -> dict[str, Tensor]:
        """Conv stack, feature projection, position convolution and layers, for a student's initialisation.

        Returns:
            float32 tensors under transformers' HubertModel names; what only this kind of model has (a WavLM's position
            bias, a feature-projection LayerNorm) is there too.

        Raises:
            UserError: the layout is not a HuBERT's.
        """

    @abstractmethod
    def architecture(self) -> Architecture:
        """What a student that is a copy of this teacher needs to know beside :meth:`encoder_state`.

        Raises:
            UserError: it is no HuBERT, WavLM or wav2vec 2.0.
        """

    def to(self, device: torch.device | str) -> Self:
        """Move the model; returns itself."""
        self.module.to(device)
        self._device = torch.device(device)
        return self

    def forget_layers(self, first: int) -> None:
        """Let go of layers from index ``first`` on that are not computed, and only a student could start from."""
        self._dropped = {name: tensor for name, tensor in self._dropped.items() if _layer_of(name) < first}

    def describe(self) -> str:
        """One line for the log."""
        assert self.num_hidden_layers is not None, "a loaded model has layers"
        layers = f"layers {' '.join(map(str, self.layers))} of {self.num_hidden_layers}"
        computed = f" ({self._computed} computed)" if self._computed < self.num_hidden_layers else ""
        normalized = ", input normalised" if self._normalize else ""
        size = f"width {self.hidden_size}, {self._parameters:,} parameters"
        return f"{self.name}: {self.source}, {layers}{computed}, {size}{normalized}"


class ModelTeacher(Teacher):
    """A teacher that runs by its source's own code."""

    _epsilon = WAVEFORM_EPSILON

    def __init__(
        self, config: TeacherConfig, module: nn.Module, *, source: str, normalize_waveform: bool, batches: bool
    ) -> None:
        """Freeze ``module``, try it on a second of noise and drop the layers that are not needed.

        Args:
            config: the recipe's entry.
            module: the model in float32 or convertible to it.
            source: where it comes from, for messages.
            normalize_waveform: whether each utterance is brought to zero mean and unit variance here.
            batches: whether utterances of equal length may share a forward pass; else they run one by one.

        Raises:
            UserError: it is no speech encoder of 320 samples a frame, has fewer layers than the recipe names, or has
                weights that are not finite.
        """
        self.name = config.name
        self.layers = config.computed_layers
        self.weight = config.weight
        self.source = source
        self.module = module.float().eval().requires_grad_(False)
        self._normalize = normalize_waveform
        self._batches = batches
        self._device = torch.device("cpu")

        check_finite(self.module.state_dict(), f"teacher {self.name!r}: {self.source}")
        states = self._try()
        self.num_hidden_layers = len(states) - 1
        if max(self.layers) > self.num_hidden_layers:
            units = config.units is not None and config.units.layer > self.num_hidden_layers
            where = "the one to cluster under 'units.layer'" if units else "those to predict under 'layers'"
            raise UserError(
                f"teacher {self.name!r}: layer {max(self.layers)} of {self.num_hidden_layers}; {self.source} has hidden"
                f" states 0 to {self.num_hidden_layers}, name {where}"
            )
        sizes = {layer: states[layer].shape[-1] for layer in self.layers}
        if len(set(sizes.values())) > 1:
            raise UserError(f"teacher {self.name!r}: its layers differ in width {sizes}; make a teacher of each width")
        self.hidden_size = sizes[self.layers[0]]
        self._parameters = sum(parameter.numel() for parameter in self.module.parameters())
        depth = max(1, *self.layers)  # hidden state 0 is the first layer's input
        self._dropped = {
            f"{prefix}.{name}": tensor
            for prefix, dropped in self._drop_layers(depth).items()
            for name, tensor in dropped.state_dict().items()
        }
        self._computed = depth if self._dropped else self.num_hidden_layers

    @abstractmethod
    def _forward(self, waveforms: list[Tensor]) -> Sequence[Tensor]:
        """All hidden states (B, F, D), from index 0, of B waveforms (S_b,); where they differ in length they are padded
        and masked as the model does it."""

    def _drop_layers(self, depth: int) -> dict[str, nn.Module]:
        """Take out of :attr:`module` what comes after layer ``depth``, if its architecture is known; here it is not.

        Returns:
            What was taken out, by the names that :meth:`_weights` would have given.
        """
        return {}

    def _weights(self) -> Mapping[str, Tensor]:
        """The encoder's state dict as it is now, in any format that :func:`s3prl_ekd.weights.names.recognize` knows."""
        return self.module.state_dict()

    def _try(self) -> list[Tensor]:
        """All hidden states of a second of noise."""
        noise = 0.1 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                states = list(self._forward([noise]))
            frames = {int(state.shape[1]) for state in states}
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"teacher {self.name!r}: {self.source} is not a speech encoder that turns waveforms into hidden states"
                f" ({one_line(error, 200)})"
            ) from error
        wanted = SAMPLE_RATE // FRAME_SHIFT
        if min(frames) < wanted - 1 or max(frames) > wanted + 1:
            found = " or ".join(str(count) for count in sorted(frames))
            raise UserError(
                f"teacher {self.name!r}: {self.source} gives {found} frames for a second of speech; a teacher needs"
                f" {wanted} ({FRAME_SHIFT} samples a frame)"
            )
        return states

    def hidden_states(self, waveforms: Tensor, lengths: Tensor) -> HiddenStates:
        samples = lengths.tolist()
        if min(samples) < MIN_SAMPLES:
            raise ValueError(f"an utterance of {min(samples)} samples; teacher {self.name!r} needs {MIN_SAMPLES}")
        batch = waveforms.to(self._device, torch.float32, non_blocking=True)
        utterances = [waveform[:count] for waveform, count in zip(batch, samples, strict=True)]
        states: list[Sequence[Tensor]] = [()] * len(samples)  # of each utterance, (F, D) for each layer
        with torch.no_grad():
            self.module.eval()  # in case somebody called .train() on it
            if self._normalize:
                utterances = [F.layer_norm(wave, wave.shape, eps=self._epsilon) for wave in utterances]
            for group in self._groups(samples):
                layers = self._selected([utterances[i] for i in group])
                for i, *of_utterance in zip(group, *layers, strict=True):
                    states[i] = of_utterance
        frames = torch.tensor([len(of_utterance[0]) for of_utterance in states])
        rows = tuple(torch.cat(layer) for layer in zip(*states, strict=True))
        return HiddenStates(rows, Packing(frames, self._device))

    def _groups(self, samples: list[int]) -> list[list[int]]:
        """Indices of the utterances that share a forward pass."""
        if self.padded:
            return [list(range(len(samples)))]
        if not self._batches:
            return [[i] for i in range(len(samples))]
        groups: dict[int, list[int]] = {}
        for i, count in enumerate(samples):
            groups.setdefault(count, []).append(i)
        return list(groups.values())

    def _selected(self, waveforms: list[Tensor]) -> list[Tensor]:
        """The layers of the recipe, float32, cropped to the frames that all of them have."""
        states = self._forward(waveforms)
        selected = [states[layer].float() for layer in self.layers]
        frames = [state.shape[1] for state in selected]
        if max(frames) - min(frames) > 1:
            raise UserError(f"teacher {self.name!r}: its layers have {frames} frames; only one can be cropped away")
        return [state[:, : min(frames)] for state in selected]

    def encoder_state(self) -> dict[str, Tensor]:
        weights = {**self._weights(), **self._dropped}
        try:
            state = to_transformers_keys(weights, recognize(weights))
        except UserError as error:
            raise UserError(
                f"teacher {self.name!r} cannot initialise a student ({error}); HuBERT, WavLM and wav2vec 2.0 can, and"
                " their distilled students; or set student.initialize_from: null"
            ) from error
        return {key: value.float().cpu() for key, value in state.items() if key.startswith(_INITIALIZES)}

    def architecture(self) -> Architecture:
        found = layout(self.module, self.num_hidden_layers)
        if found is None:
            raise UserError(
                f"teacher {self.name!r}: {self.source} is no HuBERT, WavLM or wav2vec 2.0, and no student can be a copy"
                " of it; leave student.copy out and give the student sizes"
            )
        return Architecture.of(found, self.waveform_epsilon())

    def waveform_epsilon(self) -> float | None:
        """What is added to the waveform's variance when it is normalised; None: it is not."""
        return self._epsilon if self._normalize else None


def _layer_of(name: str) -> int:
    """The index of the transformer layer that a weight belongs to, by its name; 0 for what is in no layer."""
    return int(name.split(".")[2]) if name.startswith("encoder.layers.") else 0


def truncate(encoder: Any, depth: int, *, final_norm: bool) -> dict[str, nn.Module]:
    """Shorten a transformer encoder in place to its first ``depth`` layers.

    Args:
        encoder: a module with ``layers`` and ``layer_norm``.
        depth: layers to keep.
        final_norm: whether ``layer_norm`` follows the last layer (pre-norm models): then it goes with that layer.

    Returns:
        What was taken out, by its name in ``encoder``.
    """
    removed: dict[str, nn.Module] = {f"layers.{i}": encoder.layers[i] for i in range(depth, len(encoder.layers))}
    if removed:
        encoder.layers = encoder.layers[:depth]
        if final_norm:
            removed["layer_norm"] = encoder.layer_norm
            encoder.layer_norm = nn.Identity()
    return removed
