"""A step of the demonstration by the fast path and by the plain one: ``python benchmarks/mini_step.py``."""

from __future__ import annotations

import dataclasses
import sys

import common
import torch

from s3prl_ekd import assets
from s3prl_ekd.audio.batch import collate
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.teachers import load_teachers


def main() -> int:
    args = common.parser(__doc__, repeats=11).parse_args()
    device = common.prepare(args)
    recipe = DistillConfig.from_yaml(assets.recipe("mini/config_model.yaml"))
    by_source = tuple(dataclasses.replace(teacher, own_forward=True) for teacher in recipe.teachers)
    distillers = {}
    for name, config in (("fast", recipe), ("plain", dataclasses.replace(recipe, teachers=by_source))):
        torch.manual_seed(0)
        teachers = [teacher.to(device) for teacher in load_teachers(config)]
        distillers[name] = Distiller(config, teachers).to(device).train()
        if name == "plain":
            for module in distillers[name].student.modules():
                if isinstance(module, torch.nn.Conv1d):  # one with a hook is called, not read by the matrix products
                    module.register_forward_hook(lambda module, inputs, output: None)
    waves = common.speech([1.5] * 8)
    batch = collate(waves, [wave.roll(1) for wave in waves], [str(number) for number in range(8)]).to(device)

    def step(distiller: Distiller) -> None:
        distiller.zero_grad()
        distiller(batch).loss.backward()

    work = {name: lambda distiller=distiller: step(distiller) for name, distiller in distillers.items()}
    times = common.interleaved(work, args.repeats, device)
    ratios = {"plain_over_fast": common.ratio(times, "plain", "fast")}
    measured = {"ratios": ratios, "timings": common.summary(times)}
    return common.finish(args, "mini_step", common.result(args, "a step of the demonstration, 8 x 1.5 s") | measured)


if __name__ == "__main__":
    sys.exit(main())
