"""A whole distillation step, ours against s3prl's recipe: forward, backward, clipping, optimizer.

    python benchmarks/distill_step.py                      # CPU, one thread: 10 / 9 / 7.5 / 6 s, fp32
    python benchmarks/distill_step.py --device cuda        # GPU: 24 x 12 s, ours in bf16, s3prl in fp16 as its recipe

Both sides have base-size models with the same random weights and hear the same batch. Candidates:

    s3prl_k1             s3prl's recipe with one teacher (HuBERT), its teacher in eval mode
    s3prl_k1_as_shipped  the same as its runner leaves it, teacher in train mode
    s3prl_k3             with HuBERT, RobustHuBERT and WavLM in eval mode, the mean of their hidden states as target
    ours_k1, ours_k3     the same by this package
    ours_cached_k3       ours_k3 with targets that were computed before (float16), as the loader brings them

Before anything is timed, and in fp32 without dropout, the outputs are compared. Ours for the batch must be s3prl's for
each utterance alone (s3prl's features depend on padding, ours do not): the teachers' hidden states, the student's, the
loss as the mean over all frames, and its gradient. Cached targets differ by the rounding to float16.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from models import Ensemble, batch_of, our_cached_step, our_step, their_step, with_targets
from peers import BASE, TINY
from torch import Tensor

from s3prl_ekd.weights.names import from_distiller

SECONDS = {"cpu": (10.0, 9.0, 7.5, 6.0), "cuda": (12.0,) * 24}
QUICK_SECONDS = (1.0, 0.9, 0.75, 0.6)
TEACHERS = {"1": (1,), "3": (3,), "both": (1, 3)}
GOALS = {"step_k1": 1.8, "step_k1_as_shipped": 2.1, "step_k3": 1.7, "cached_over_online_k3": 2.4}
GOALS_GPU = {"step_k1": 2.5, "step_k3": 4.0}
GOALS_GPU_MS = {"ours_k1": 35, "ours_k3": 65, "ours_cached_k3": 20}
RATIOS = {
    "step_k1": ("s3prl_k1", "ours_k1"),
    "step_k1_as_shipped": ("s3prl_k1_as_shipped", "ours_k1"),
    "step_k3": ("s3prl_k3", "ours_k3"),
    "cached_over_online_k3": ("ours_k3", "ours_cached_k3"),
}
LIMITS = {
    "cpu": {
        "teacher_hidden_states": 5e-5,
        "student_hidden_states": 5e-5,
        "loss": 1e-6,
        "loss_of_cached_targets": 1e-4,
        "gradient_relative": 1e-5,
    },
    "cuda": {
        "teacher_hidden_states": 1e-3,
        "student_hidden_states": 1e-3,
        "loss": 1e-5,
        "loss_of_cached_targets": 1e-4,
        "gradient_relative": 1e-3,
    },
}


def differences(ensemble: Ensemble, counts: Sequence[int], waveforms: Sequence[Tensor]) -> dict[str, float]:
    """Largest differences between our batch and s3prl's single utterances, in fp32 and eval mode."""
    device, layers = ensemble.device, ensemble.sizes.targets
    batch = batch_of(waveforms, device).to(device)
    utterances = [waveform.to(device) for waveform in waveforms]
    found: dict[str, float] = {}

    def note(name: str, difference: Tensor | float) -> None:
        found[name] = max(found.get(name, 0.0), float(difference))

    alone: list[list[Tensor]] = []  # [teacher][utterance] (H, F, D)
    for ours, theirs in zip(ensemble.ours, ensemble.theirs, strict=True):
        output = ours.hidden_states(batch.clean, batch.lengths)
        states, frames = output.hidden_states, output.frame_lengths
        alone.append([])
        for row, utterance in enumerate(utterances):
            with torch.no_grad():
                reference = theirs([utterance])["hidden_states"]
            alone[-1].append(torch.stack([reference[layer][0] for layer in layers]))
            mine = torch.stack([state[row, : frames[row]] for state in states])
            note("teacher_hidden_states", (mine - alone[-1][-1]).abs().max())

    student = ensemble.distiller(1).student.eval()
    recipe = ensemble.recipe(1).eval()
    with torch.no_grad():
        output = student(batch.clean, batch.lengths)
    weights = output.frame_lengths / output.frame_lengths.sum()
    losses = dict.fromkeys(counts, 0.0)
    gradients: dict[int, dict[str, Tensor]] = {count: {} for count in counts}
    for row, utterance in enumerate(utterances):
        features, projected, predictions, _, hidden = recipe.distiller(
            utterance[None], torch.ones_like(utterance)[None], get_hidden=True
        )
        for mine, reference in zip(output.hidden_states, [projected, *hidden], strict=True):
            note("student_hidden_states", (mine[row, : reference.shape[1]] - reference[0]).detach().abs().max())
        for count in counts:
            targets = torch.stack([states[row] for states in alone[:count]]).mean(dim=0)
            loss = recipe.loss(features, predictions, targets[None]) * weights[row].item()
            losses[count] += loss.item()
            parameters = dict(recipe.distiller.named_parameters())
            for name, part in zip(
                parameters, torch.autograd.grad(loss, [*parameters.values()], retain_graph=True), strict=True
            ):
                gradients[count][name] = gradients[count].get(name, 0) + part
    for count in counts:
        distiller = ensemble.distiller(count).eval()
        loss = distiller(batch).loss
        loss.backward()
        note("loss", abs(loss.item() - losses[count]))
        with torch.no_grad():
            cached = distiller(with_targets(distiller, batch, device).to(device)).loss
        note("loss_of_cached_targets", abs(cached.item() - loss.item()))
        expected = from_distiller(gradients[count])
        given = {
            name.removeprefix("student."): parameter.grad
            for name, parameter in distiller.named_parameters()
            if parameter.grad is not None
        }
        assert given.keys() == expected.keys()
        one, other = (torch.cat([side[name].flatten() for name in given]) for side in (given, expected))
        note("gradient_relative", (one - other).norm() / other.norm())
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--teachers", choices=TEACHERS, default="both")
    args = parser.parse_args(argv)
    device = common.prepare(args)
    counts = TEACHERS[args.teachers]
    lengths = QUICK_SECONDS if args.quick else SECONDS[args.device]
    waveforms = common.speech(lengths)

    with tempfile.TemporaryDirectory() as folder:
        ensemble = Ensemble(Path(folder), TINY if args.quick else BASE, max(counts), device)
    with common.exact_float32():
        checked = differences(ensemble, counts, waveforms)
    print(f"equal outputs: {common.rounded(checked)}", file=sys.stderr)

    candidates: dict[str, common.Work] = {}
    if 1 in counts:
        candidates["s3prl_k1"] = their_step(ensemble, 1, waveforms, teachers_train=False)
        candidates["s3prl_k1_as_shipped"] = their_step(ensemble, 1, waveforms, teachers_train=True)
        candidates["ours_k1"] = our_step(ensemble, 1, waveforms)
    if 3 in counts:
        candidates["s3prl_k3"] = their_step(ensemble, 3, waveforms, teachers_train=False)
        candidates["ours_k3"] = our_step(ensemble, 3, waveforms)
        candidates["ours_cached_k3"] = our_cached_step(ensemble, 3, waveforms)
    times = common.interleaved(candidates, args.repeats, device)

    ratios = {name: common.ratio(times, *pair) for name, pair in RATIOS.items()}
    ranges = {name: common.ratio_range(times, *pair) for name, pair in RATIOS.items()}
    result = common.result(args, "one distillation step, s3prl's recipe over ours") | {
        "batch_seconds": list(lengths),
        "timings": common.summary(times),
        "ratios": {name: value for name, value in ratios.items() if value is not None},
        "ratio_ranges": {name: value for name, value in ranges.items() if value is not None},
        "goals": GOALS_GPU if args.device == "cuda" else GOALS,
        "max_differences": checked,
        "limits": LIMITS[args.device],
    }
    if args.device == "cuda":
        result["goals_ms"] = GOALS_GPU_MS
    return common.finish(args, "distill_step", result)


if __name__ == "__main__":
    sys.exit(main())
