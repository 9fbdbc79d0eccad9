"""How much audio one core reads, crops and distorts: what the loader of ``s3prl-ekd distill`` delivers per worker.

    python benchmarks/loader.py

writes FLAC files of 12 s to a temporary folder and reads them in the same process, so that CPU time is all there is;
noise comes from 40 files of 30 s, impulse responses are generated. Results: benchmarks/results/loader_cpu.json.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import common
import soundfile

from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.cuts.stream import BatchStream

UTTERANCE_SECONDS = 12.0


def distortions(noise: Path) -> dict[str, DistortionConfig]:
    """Nothing, each kind on every utterance, and the recipes' mixture."""
    kinds = {
        "clean": {},
        "gaussian_noise": {"gaussian_noise": {"probability": 1.0}},
        "noise": {"noise": {"folder": str(noise), "probability": 1.0}},
        "reverberation": {"reverberation": {"probability": 1.0}},
        "recipe": {
            "reverberation": {"probability": 0.3},
            "noise": {"folder": str(noise), "probability": 0.5},
            "gaussian_noise": {"probability": 0.3},
        },
    }
    return {name: DistortionConfig.from_mapping(mapping) for name, mapping in kinds.items()}


def main() -> int:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=200, help="files of an epoch (default: %(default)s)")
    args = parser.parse_args()
    common.prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, count, seconds in (("speech", args.utterances, UTTERANCE_SECONDS), ("noise", 40, 30.0)):
            (root / name).mkdir()
            for index, wave in enumerate(common.speech([seconds] * count)):
                soundfile.write(root / name / f"{index}.flac", wave.numpy(), 16000)
        write_manifest(root / "cuts.jsonl.gz", folder_recordings(root / "speech"))
        config = DataConfig(cuts=(str(root / "cuts.jsonl.gz"),), batch_seconds=300.0, num_workers=0)
        streams = {name: BatchStream(config, kind, seed=0) for name, kind in distortions(root / "noise").items()}
        times: dict[str, list[float]] = {name: [] for name in streams}
        for epoch in range(args.repeats + 1):  # the first warms up
            for name, stream in streams.items():
                start = time.process_time()
                heard = sum(len(batch.utterances) for batch in stream.loader(epoch))
                times[name].append((time.process_time() - start) / heard)
    speed = {name: UTTERANCE_SECONDS / statistics.median(values[1:]) for name, values in times.items()}
    measured = {"timings": common.summary(times), "audio_seconds_per_core_second": speed}
    return common.finish(args, "loader", common.result(args, "seconds of CPU time per utterance of 12 s") | measured)


if __name__ == "__main__":
    sys.exit(main())
