"""Processes that s3prl's data loaders start, by whatever method: they read as the one that started them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import soundfile
import yaml
from helpers_corpora import iemocap, lexicon, librispeech, voxceleb1
from helpers_models import speech_like
from helpers_s3prl import python
from torch.utils.data import ConcatDataset, DataLoader

from s3prl_ekd import assets
from s3prl_ekd.audio.text import write_lengths
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat import task_patches
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.tasks.iemocap import write_folds

METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> list:
    """A training set of each task as s3prl makes it; SID's first recording has two channels at 8 kHz."""
    root = tmp_path_factory.mktemp("corpora")
    hub.register()
    task_patches.apply()
    from s3prl.downstream.asr.dictionary import Dictionary
    from s3prl.downstream.asr.expert import SequenceDataset
    from s3prl.downstream.ctc.corpus.libriphone import LibriPhoneDataset
    from s3prl.downstream.ctc.text import load_text_encoder
    from s3prl.downstream.emotion.dataset import IEMOCAPDataset
    from s3prl.downstream.voxceleb1.dataset import SpeakerClassifiDataset

    libri = librispeech(root / "LibriSpeech", {"dev-clean": 1})
    tokenizer = load_text_encoder("word", str(assets.folder("vocab/phoneme.txt")))
    phones = LibriPhoneDataset(["dev-clean"], tokenizer, 4, str(libri), lexicon=[str(lexicon(root / "lexicon.txt"))])
    for file in libri.rglob("*.trans.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    write_lengths(libri, "dev-clean", root / "dev-clean.csv")
    characters = Dictionary.load(str(assets.folder("vocab/char.dict")))
    words = SequenceDataset("dev-clean", 4, characters, str(libri), str(root), **{"dev-clean": ["dev-clean"]})

    speakers = SpeakerClassifiDataset("train", *_voxceleb1(root / "VoxCeleb1"))
    folds = write_folds(iemocap(root / "IEMOCAP", turns=1), root / "folds")
    emotions = IEMOCAPDataset(str(root / "IEMOCAP"), str(folds / "Session1/test_meta_data.json"), pre_load=False)
    return [speakers, phones, words, emotions]


def _voxceleb1(root: Path) -> tuple[Path, str]:
    voxceleb1(root, speakers=2)
    odd = min((root / "dev/wav").glob("*/*/*.wav"))
    soundfile.write(odd, speech_like(16000).reshape(-1, 2).numpy(), 8000)
    return root, str(root / "iden_split.txt")


@pytest.mark.parametrize("method", METHODS)
def test_workers_read_as_the_process_itself(datasets, method):
    from s3prl_ekd.s3prl_compat.speech_files import read_as_speech

    everything = ConcatDataset(datasets)
    with read_as_speech():
        expected = [_plain(everything[index]) for index in range(len(everything))]
        loader = DataLoader(everything, None, num_workers=1, multiprocessing_context=method, collate_fn=_as_it_is)
        found = [_plain(item) for item in loader]
    assert found == expected
    assert len(found) > 10
    assert len(found[0][0]) == 16000  # a second, whatever its rate and channels are


def test_transcripts_of_any_editor_are_read_whole(datasets):
    words = datasets[2].Y
    assert sorted(words) == [f"19-100-{index:04d}" for index in range(4)]
    spoken = ("A CAT DOG", "HOUSE RIVER THE CAT", "SUN CAT READ", "CAT DOG HOUSE READ")
    assert [len(words[name]) for name in sorted(words)] == [len(text) + 2 for text in spoken]  # a word's end, a line's


def _as_it_is(item):
    return item


def _plain(item):
    """Arrays and tensors as lists of numbers, however deeply nested."""
    if hasattr(item, "tolist"):
        return item.tolist()
    return [_plain(one) for one in item] if isinstance(item, list | tuple) else item


# Where the method is chosen only, as Python does on macOS: all else is s3prl's.
MAIN = """
import multiprocessing, sys
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(downstream_runner.main(sys.argv[1:]))
"""


def test_run_downstream_trains_with_spawned_workers(tmp_path):
    config = read_yaml(assets.recipe("downstream/real/sid.yaml"))
    config["runner"] |= {
        "total_steps": 1,
        "log_step": 1,
        "eval_step": 9,
        "save_step": 1,
        "gradient_accumulate_steps": 1,
    }
    root, split = _voxceleb1(tmp_path / "VoxCeleb1")
    config["downstream_expert"]["datarc"] |= {"file_path": str(root), "meta_data": split, "num_workers": 1}
    (tmp_path / "sid.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "main.py").write_text(MAIN)
    options = ["-m", "train", "-d", "voxceleb1", "-u", "ekd_student_mini", "-c", str(tmp_path / "sid.yaml")]
    done = python(str(tmp_path / "main.py"), *options, "-p", str(tmp_path / "run"), "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/states-1.ckpt").is_file()


def test_the_preparation_of_a_process_is_extended_once():
    hub.register()
    before = multiprocessing.spawn.get_preparation_data
    hub.register()
    assert multiprocessing.spawn.get_preparation_data is before
