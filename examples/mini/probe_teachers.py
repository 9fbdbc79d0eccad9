"""Judge teachers by linear probes of their frozen hidden states against log-mel filter banks, and print the gates.

    python examples/mini/probe_teachers.py --corpus CORPUS --teachers FOLDER [FOLDER ...] [--out results.json]

- PR: phoneme (stress dropped) of each frame inside a phoneme; trained on train-clean, tested on test-clean and
  test-noisy (or hidden-clean and hidden-noisy). Frame accuracy in percent.
- SID, ER: speaker or emotion of an utterance from the mean over its frames. Accuracy in percent.

The probe is multinomial logistic regression on features of zero mean and unit variance over the training set. A teacher
is judged by one layer per task; that layer, and for SID and ER every feature's penalty, is chosen on a fifth of the
training utterances, never on the test set.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from teacher_data import WINDOW, log_mel, with_deltas
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd import FRAME_SHIFT
from s3prl_ekd.audio.read import load_audio
from s3prl_ekd.errors import EXIT_USER_ERROR, UserError
from s3prl_ekd.files import write_json

log = logging.getLogger("probe_teachers")

FBANK = "fbank"
UTTERANCE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
Probe = tuple[StandardScaler, LogisticRegression]
Extractor = Callable[[Tensor], dict[str, Tensor]]
"""A wave (S,) -> named features, each (F, D)."""


@dataclass(frozen=True)
class Utterance:
    """An audio file with what is to be found in it."""

    path: Path
    label: str | None = None
    """Speaker or emotion."""
    phones: tuple[tuple[str, int, int], ...] = ()
    """Phonemes with their first and last sample."""


@dataclass(frozen=True)
class Task:
    """Utterances to learn from, and named sets of utterances to be tested on."""

    name: str
    train: list[Utterance]
    tests: dict[str, list[Utterance]]
    framewise: bool
    penalties: tuple[float, ...]
    """Values of scikit-learn's C to choose from."""


def aligned_split(corpus: Path, split: str, limit: int) -> list[Utterance]:
    """Utterances of a split with their phonemes, evenly picked if there are more than ``limit``."""
    table = corpus / "alignments" / f"{split}.tsv"
    if not table.exists():
        raise UserError(f"{table} is missing: give the folder that mini-corpus wrote")
    found = []
    for line in table.read_text(encoding="utf-8").splitlines():
        name, _, phones = line.partition("\t")
        speaker, chapter = name.split("-")[:2]
        path = corpus / "LibriSpeech" / split / speaker / chapter / f"{name}.flac"
        if path.exists():
            intervals = (entry.split() for entry in phones.split(";") if entry.strip())
            spans = tuple(
                (phone.rstrip("012"), int(start), int(end)) for phone, start, end in intervals if phone != "SIL"
            )
            found.append(Utterance(path, phones=spans))
    step = max(1, len(found) / limit)
    return [found[int(i * step)] for i in range(min(limit, len(found)))]


def phoneme_recognition(corpus: Path, hidden: bool, limit: int) -> Task:
    name = "hidden" if hidden else "test"
    tests = {kind: aligned_split(corpus, f"{name}-{kind}", limit) for kind in ("clean", "noisy")}
    return Task("pr", aligned_split(corpus, "train-clean", limit), tests, framewise=True, penalties=(1.0,))


def speaker_identification(corpus: Path, hidden: bool, limit: int) -> Task:
    root = corpus / ("VoxCeleb1-hidden" if hidden else "VoxCeleb1")
    parts: dict[str, list[Utterance]] = {"1": [], "2": [], "3": []}
    with (root / "iden_split.txt").open(encoding="utf-8") as table:
        for part, name in csv.reader(table, delimiter=" "):
            places = (root / half / "wav" / name for half in ("dev", "test"))
            parts[part].append(Utterance(next(p for p in places if p.exists()), label=name.split("/")[0]))
    return Task("sid", parts["1"] + parts["2"], {"test": parts["3"]}, framewise=False, penalties=UTTERANCE_PENALTIES)


def emotion_recognition(corpus: Path, hidden: bool, limit: int) -> Task:
    def split(root: Path, part: str) -> list[Utterance]:
        table = json.loads((root / "meta_data" / "Session1" / f"{part}_meta_data.json").read_text(encoding="utf-8"))
        return [Utterance(root / entry["path"], label=str(entry["label"])) for entry in table["meta_data"]]

    judged = split(corpus / ("IEMOCAP-hidden" if hidden else "IEMOCAP"), "test")
    return Task(
        "er", split(corpus / "IEMOCAP", "train"), {"test": judged}, framewise=False, penalties=UTTERANCE_PENALTIES
    )


TASKS = {"pr": phoneme_recognition, "sid": speaker_identification, "er": emotion_recognition}


def fbank_features(wave: Tensor) -> dict[str, Tensor]:
    mels = log_mel(wave)
    return {FBANK: mels, f"{FBANK}+deltas": with_deltas(mels)}


def teacher_features(folder: Path) -> Extractor:
    """Hidden states of a teacher, named ``<folder>:<layer>``."""
    from transformers import AutoModel

    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json there; give a teacher's folder")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def extract(wave: Tensor) -> dict[str, Tensor]:
        states = model(wave[None], output_hidden_states=True).hidden_states
        return {f"{folder.name}:{layer}": state[0] for layer, state in enumerate(states)}

    return extract


def frame_labels(phones: tuple[tuple[str, int, int], ...], frames: int) -> np.ndarray:
    """The phoneme at the centre of each frame, "" where there is none."""
    labels = np.full(frames, "", dtype=object)
    for phone, start, end in phones:
        first = max(0, -(-(start - WINDOW // 2) // FRAME_SHIFT))
        labels[first : max(0, -(-(end - WINDOW // 2) // FRAME_SHIFT))] = phone
    return labels


@dataclass
class Examples:
    """Rows of each feature with their labels and the utterance they come from."""

    features: dict[str, np.ndarray]
    labels: np.ndarray
    utterance: np.ndarray


def examples(utterances: list[Utterance], extractors: list[Extractor], framewise: bool, name: str) -> Examples:
    rows: dict[str, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    for utterance in tqdm(utterances, desc=name, unit="utt", leave=False):
        wave = load_audio(utterance.path)
        features = {key: value for extract in extractors for key, value in extract(wave).items()}
        frames = min(map(len, features.values()))
        if framewise:
            label = frame_labels(utterance.phones, frames)
            kept = np.flatnonzero(label != "")
        else:
            label, kept = np.array([utterance.label], dtype=object), np.array([0])
            features = {key: value.mean(0, keepdim=True) for key, value in features.items()}
        labels.append(label[kept])
        for key, value in features.items():
            rows.setdefault(key, []).append(value[kept].numpy().astype(np.float32))
    utterance_of = np.repeat(np.arange(len(labels)), [len(label) for label in labels])
    return Examples({k: np.concatenate(v) for k, v in rows.items()}, np.concatenate(labels).astype(str), utterance_of)


def fitted(features: np.ndarray, labels: np.ndarray, penalty: float) -> Probe:
    scaler = StandardScaler().fit(features)
    probe = LogisticRegression(C=penalty, max_iter=60, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the same for all features
        probe.fit(scaler.transform(features), labels)
    return scaler, probe


def accuracy(probe: Probe, features: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(probe[1].predict(probe[0].transform(features)) == labels))


def judge(task: Task, extractors: list[Extractor]) -> dict[str, dict[str, float]]:
    """For every feature: accuracy on ``held-out`` (a fifth of the training utterances) and on each test set."""
    train = examples(task.train, extractors, task.framewise, f"{task.name} train")
    tests = {
        key: examples(value, extractors, task.framewise, f"{task.name} {key}") for key, value in task.tests.items()
    }
    held_out = np.random.default_rng(0).permutation(len(task.train)) % 5 == 0
    held_out = held_out[train.utterance]
    results = {}
    for key in tqdm(train.features, desc=f"{task.name} probes", leave=False):
        rows = train.features[key]
        part = rows[~held_out], train.labels[~held_out]
        choices = {c: accuracy(fitted(*part, c), rows[held_out], train.labels[held_out]) for c in task.penalties}
        penalty = max(choices, key=choices.__getitem__)
        results[key] = {"held-out": choices[penalty]}
        whole = fitted(rows, train.labels, penalty)
        for name, test in tests.items():
            results[key][name] = accuracy(whole, test.features[key], test.labels)
    return results


@dataclass(frozen=True)
class Gate:
    """A claim about a teacher: one of its layers is better than a rival."""

    kind: str
    """must or wish."""
    name: str
    task: str
    test: str
    rival: str = FBANK
    """The filter bank: against the layer chosen on held-out utterances. Layer 0: against the last layer."""


LAYER_0 = "layer 0"
GATES = (
    Gate("must", "noisy PR", "pr", "noisy"),
    Gate("wish", "clean PR, last layer over layer 0", "pr", "clean", LAYER_0),
    Gate("wish", "noisy PR, last layer over layer 0", "pr", "noisy", LAYER_0),
    Gate("wish", "clean PR", "pr", "clean"),
    Gate("wish", "ER", "er", "test"),
    Gate("wish", "SID", "sid", "test"),
)


def judged_gate(gate: Gate, results: dict[str, dict[str, float]], teacher: str) -> dict[str, Any]:
    """The two features a gate compares, their accuracies, and whether it holds."""
    layers = sorted(key for key in results if key.startswith(f"{teacher}:"))
    rival, ours = FBANK, max(layers, key=lambda layer: results[layer]["held-out"])
    if gate.rival == LAYER_0:
        rival, ours = layers[0], layers[-1]
    accuracies = {"accuracy": results[ours][gate.test], "rival_accuracy": results[rival][gate.test]}
    passed = accuracies["accuracy"] > accuracies["rival_accuracy"]
    return (
        {"teacher": teacher, "kind": gate.kind, "gate": gate.name, "feature": ours, "rival": rival}
        | accuracies
        | {"passed": passed}
    )


def report(results: dict[str, dict[str, dict[str, float]]], judged: list[dict[str, Any]]) -> str:
    """The two tables as text."""
    columns = [(task, test) for task, value in results.items() for test in next(iter(value.values()))]
    lines = [" ".join([f"{'feature':20s}"] + [f"{task + ' ' + test:>13s}" for task, test in columns])]
    for key in next(iter(results.values())):
        lines.append(" ".join([f"{key:20s}"] + [f"{results[task][key][test]:13.1f}" for task, test in columns]))
    lines.append("")
    for gate in judged:
        verdict = "pass" if gate["passed"] else "FAIL"
        values = f"{gate['feature']} {gate['accuracy']:.1f} over {gate['rival']} {gate['rival_accuracy']:.1f}"
        lines.append(f"{gate['teacher']:15s} {gate['kind']:5s} {verdict:5s} {gate['gate']:35s} {values}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by mini-corpus")
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="folders in transformers' format")
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    parser.add_argument("--utterances", type=int, default=200, help="most utterances per split for PR (default 200)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--split", choices=("public", "hidden"), default="public", help="test sets (default public)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    try:
        extractors = [fbank_features, *(teacher_features(folder) for folder in args.teachers)]
        results = {
            name: judge(TASKS[name](args.corpus, args.split == "hidden", args.utterances), extractors)
            for name in args.tasks
        }
    except UserError as error:
        log.error("%s", error)
        return EXIT_USER_ERROR
    judged = [
        judged_gate(gate, results[gate.task], folder.name)
        for folder in args.teachers
        for gate in GATES
        if gate.task in results
    ]
    if args.out:
        write_json(args.out, {"accuracy": results, "gates": judged})
    sys.stdout.write(report(results, judged) + "\n")
    log.info("%.0f s", time.monotonic() - begun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
