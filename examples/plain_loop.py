"""Ensemble distillation in plain PyTorch, without Lightning or s3prl: ``python examples/plain_loop.py AUDIO STUDENT``.

AUDIO is any folder of recordings, STUDENT the folder to write. The teachers are the three tiny ones that come with the
package; `s3prl: hubert_base` or `transformers: FOLDER` instead of `mini:` name others.
"""

from __future__ import annotations

import argparse

import torch

from s3prl_ekd import load_student
from s3prl_ekd.audio.batch import collate
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.read import audio_files, load_audio
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.teachers import load_teachers

CONFIG = DistillConfig.from_mapping(
    {
        "student": {"hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 768,
                    "conv_dim": [32, 48, 64, 96, 128, 160, 192], "initialize_from": "hubert"},
        "teachers": [{"name": name, "mini": name, "layers": [2, 4]} for name in ("hubert", "robust_hubert", "wavlm")],
        "objective": {"aggregation": "separate-heads"},
        "distortion": {"gaussian_noise": {"probability": 0.5, "snr_db": [5, 30]}},
    }
)  # fmt: skip
CROP = 24_000  # samples: 1.5 s at 16 kHz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", help="folder of recordings")
    parser.add_argument("student", help="folder to write")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teachers = [teacher.to(device) for teacher in load_teachers(CONFIG)]
    distiller = Distiller(CONFIG, teachers).to(device).train()  # student and heads; the teachers are not its parameters
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    distort = Distorter(CONFIG.distortion)

    files = audio_files(options.audio)
    for step in range(options.steps):
        chosen = [files[index] for index in torch.randint(len(files), (options.batch_size,))]
        clean = [load_audio(file, samples=CROP) for file in chosen]  # (S,) each
        heard = [distort(wave, epoch=step, utterance=file.name) for wave, file in zip(clean, chosen, strict=True)]
        output = distiller(collate(clean, heard, [str(file) for file in chosen]).to(device))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {output.loss.item():.4f}")

    save_student(options.student, distiller.student, distiller.heads, CONFIG)
    states = load_student(options.student)(clean[0][None]).hidden_states
    print(f"{options.student}: {len(states)} hidden states of shape {tuple(states[-1].shape)}")


if __name__ == "__main__":
    main()
