"""This checkout against another one: the same steps and inferences, call by call in turns.

    python benchmarks/against.py --other DIR              # CPU, one thread: DIR is an older checkout of this repository
    python benchmarks/against.py --other .                # the checkout against itself: how far apart chance is

Each checkout works in a process of its own, with its own package and its own benchmarks/, on the same random weights of
base size and the same noise for speech. While one is timed the other waits. Candidates:

    step_k3          a distillation step with three teachers
    step_cached_k3   the same with targets that were computed before
    infer_b1         hidden states of one utterance of 10 s
    infer_mixed8     and of eight of 4 to 15 s

Before anything is timed, the outputs are compared: hidden states, the loss without and with dropout, its gradient. The
ratio is the other's time over this one's: above 1, this checkout is the faster one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
LIMITS = {
    "cpu": {"hidden_states": 1e-5, "loss": 1e-6, "loss_with_dropout": 1e-6, "gradient_relative": 1e-5},
    "cuda": {"hidden_states": 1e-3, "loss": 1e-5, "loss_with_dropout": 1e-4, "gradient_relative": 1e-3},
}


class Checkout:
    """The process that works with one checkout."""

    def __init__(self, root: Path, args: argparse.Namespace, outputs: Path) -> None:
        command = [sys.executable, __file__, "--other", str(root), "--serve", str(outputs), "--device", args.device]
        command += ["--threads", str(args.threads), *(["--quick"] if args.quick else [])]
        environment = os.environ | {"PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def ask(self, question: str = "") -> Any:
        """What it answers; without a question, what it says once it is ready."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if question:
            print(question, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # and not what other packages print
                return json.loads(line)
        raise RuntimeError(f"the process ended with {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def serve(root: Path, outputs: Path, args: argparse.Namespace) -> None:
    """Of one checkout: write its outputs, then time what is asked for."""
    sys.path[0] = str(root / "benchmarks")  # instead of this file's folder
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # s3prl prints

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    import common
    import distill_step
    import inference
    import models
    import peers
    import torch

    import s3prl_ekd

    assert Path(s3prl_ekd.__file__).is_relative_to(root), s3prl_ekd.__file__
    device = common.prepare(args)
    sizes = peers.TINY if args.quick else peers.BASE
    heard = common.speech(distill_step.QUICK_SECONDS if args.quick else distill_step.SECONDS[args.device])
    with tempfile.TemporaryDirectory() as folder:
        ensemble = models.Ensemble(Path(folder), sizes, 3, device)
    ensemble.theirs.clear()
    torch.manual_seed(0)  # whatever the loading of teachers has drawn
    ensemble.student = peers.distiller_model(sizes).state_dict()
    torch.manual_seed(0)
    extract = inference.extractors(sizes, device)["ours"]
    inputs = {
        name: [wave.to(device) for wave in common.speech(lengths)]
        for name, lengths in (inference.QUICK_INPUTS if args.quick else inference.INPUTS).items()
    }

    def infer(name: str) -> Any:
        with torch.no_grad():
            return extract(inputs[name])

    with common.exact_float32():
        distiller = ensemble.distiller(3).eval()
        batch = models.batch_of(heard, device).to(device)
        loss = distiller(batch).loss
        loss.backward()
        gradient = {name: one.grad.cpu() for name, one in distiller.named_parameters() if one.grad is not None}
        torch.manual_seed(0)
        found = {
            "hidden_states": {f"{name} {i}": state.cpu() for name in inputs for i, state in enumerate(infer(name))},
            "loss": loss.item(),
            "loss_with_dropout": distiller.train()(batch).loss.item(),
            "gradient": gradient,
        }
    torch.save(found, outputs)
    candidates: dict[str, Callable[[], object]] = {
        "step_k3": models.our_step(ensemble, 3, heard),
        "step_cached_k3": models.our_cached_step(ensemble, 3, heard),
        **{f"infer_{name}": partial(infer, name) for name in inputs},
    }
    answer({"candidates": list(candidates)})
    for line in sys.stdin:
        answer({"seconds": common.seconds(candidates[line.strip()], device)})


def differences(this: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Largest differences between the outputs of two checkouts."""
    import torch

    assert this["hidden_states"].keys() == other["hidden_states"].keys()
    assert this["gradient"].keys() == other["gradient"].keys(), "parameters of other names"
    states = [(state - other["hidden_states"][name]).abs().max() for name, state in this["hidden_states"].items()]
    mine, theirs = (
        torch.cat([side["gradient"][name].flatten() for name in this["gradient"]]) for side in (this, other)
    )
    return {
        "hidden_states": max(states).item(),
        "loss": abs(this["loss"] - other["loss"]),
        "loss_with_dropout": abs(this["loss_with_dropout"] - other["loss_with_dropout"]),
        "gradient_relative": ((mine - theirs).norm() / theirs.norm()).item(),
    }


@contextlib.contextmanager
def started(roots: dict[str, Path], args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Checkout]]:
    """The processes, one after the other ready."""
    checkouts: dict[str, Checkout] = {}
    try:
        for name, root in roots.items():
            checkouts[name] = Checkout(root, args, folder / f"{name}.pt")
            checkouts[name].ask()
        yield checkouts
    finally:
        for checkout in checkouts.values():
            checkout.close()


def commit(root: Path) -> str:
    """Which version a checkout has."""
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    if "--serve" in (sys.argv[1:] if argv is None else argv):
        options = argparse.ArgumentParser()
        options.add_argument("--other", type=Path)
        options.add_argument("--serve", type=Path)
        options.add_argument("--device")
        options.add_argument("--threads", type=int)
        options.add_argument("--quick", action="store_true")
        args = options.parse_args(argv)
        serve(args.other, args.serve, args)
        return 0

    import common
    import torch

    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, metavar="DIR", help="the other checkout")
    args = parser.parse_args(argv)
    roots = {"this": HERE, "other": args.other.resolve()}
    with tempfile.TemporaryDirectory() as name, started(roots, args, Path(name)) as checkouts:
        this, other = (torch.load(Path(name) / f"{which}.pt", weights_only=True) for which in roots)
        checked = differences(this, other)
        print(f"equal outputs: {common.rounded(checked)}", file=sys.stderr)
        candidates = ("step_k3", "step_cached_k3", "infer_b1", "infer_mixed8")
        times: dict[str, dict[str, list[float]]] = {
            candidate: {which: [] for which in roots} for candidate in candidates
        }
        for round_ in range(-3 if args.device == "cuda" else -1, args.repeats):  # those below 0 warm up
            for candidate in candidates:
                for which in sorted(roots, reverse=round_ % 2 == 0):
                    seconds = checkouts[which].ask(candidate)["seconds"]
                    if round_ >= 0:
                        times[candidate][which].append(seconds)
            print(f"round {max(round_ + 1, 0)} of {args.repeats}", file=sys.stderr)
    values = {
        "commits": {which: commit(root) for which, root in roots.items()},
        "timings": {candidate: common.summary(both) for candidate, both in times.items()},
        "ratios": {candidate: common.ratio(both, "other", "this") for candidate, both in times.items()},
        "ratio_ranges": {candidate: common.ratio_range(both, "other", "this") for candidate, both in times.items()},
        "max_differences": checked,
        "limits": LIMITS[args.device],
    }
    return common.finish(args, "against", common.result(args, "time of another checkout over this one's") | values)


if __name__ == "__main__":
    sys.exit(main())
