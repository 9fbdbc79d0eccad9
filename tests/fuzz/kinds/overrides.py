"""``key.path=value`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fuzz.change import VALUES, Change, places
from fuzz.kinds.good import RECIPE
from fuzz.kinds.yaml_files import FRAGMENTS
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.files import write_yaml

ABOUT = "settings on the command line: paths to nowhere, values of other kinds, fragments of YAML"

_PARTS = (
    *RECIPE, "0", "1", "2", "-1", "²", "٣", "", "hidden_size", "name", "layers", "lr", "betas", "cuts", "devices",
    "max_steps", "snr_db", "gaussian_noise", "x" * 5000, "\x1b", "9" * 5000,
)  # fmt: skip

_PATHS = [path.lstrip(".") for path, _, _ in places(RECIPE)]


def prepare(good: Path) -> None:
    write_yaml(good / "recipe.yaml", RECIPE)


def draw(good: Path, change: Change) -> Callable[[], object]:
    rng, overrides = change.rng, []
    for _ in range(0 if change.harmless else rng.randint(1, 3)):
        path = ".".join(rng.choice(_PARTS) for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 200))))
        if rng.random() < 0.6:
            path = rng.choice(_PATHS)
        value = rng.choice(VALUES)
        text = rng.choice((str(value), json.dumps(value), rng.choice(FRAGMENTS)))
        overrides.append(rng.choice((f"{path}={text}",) * 9 + (f"{path}{text}",)))
        change.note(overrides[-1])
    return lambda: RunConfig.from_yaml(good / "recipe.yaml", overrides).to_mapping()
