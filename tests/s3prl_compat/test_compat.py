"""Every patch: what s3prl does fails without it and works with it; the data sets that s3prl's wheel lacks."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from helpers_s3prl import LEXICON, SENTENCES, python, write_corpus

from s3prl_ekd import assets
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_compat.ctc_corpus.libriphone import LibriPhoneDataset
from s3prl_ekd.s3prl_compat.ctc_corpus.librispeech import LibriDataset

# For each patch, in order: do what s3prl does, patch, patch again, do it again.
TRIAL = """
import argparse, importlib, json, multiprocessing, os, sys
from pathlib import Path

class NoDistutils:  # as Python 3.12 without setuptools
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "distutils":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NoDistutils())

folder = Path(sys.argv[1])
os.environ["HF_HUB_CACHE"] = str(folder / "hub")
snapshot = folder / "hub" / "models--somebody--model" / "snapshots" / "0123"
snapshot.mkdir(parents=True)
(snapshot / "expert.py").write_text("")
refs = folder / "hub" / "models--somebody--model" / "refs"
refs.mkdir()
(refs / "main").write_text("0123")

import huggingface_hub, torch, torchaudio
from s3prl_ekd.s3prl_compat import patches

def load(module):
    return lambda: importlib.import_module(module)

def span_mask():
    from s3prl.upstream.wavlm.WavLM import compute_mask_indices
    assert compute_mask_indices((2, 60), None, 0.5, 5, no_overlap=True).any()

def read_audio():
    wave, rate = torchaudio.load(str(folder / "a.flac"))
    assert wave.shape == (1, 1600) and rate == 16000

def resume():
    from s3prl.optimizers import get_AdamW_with_schedule
    optimizer = get_AdamW_with_schedule([torch.nn.Linear(2, 2)])
    torch.save({"Args": argparse.Namespace(seed=1), "Optimizer": optimizer.state_dict()}, folder / "states-1.ckpt")
    # Our own reader needs no patch, and must not undo this one.
    from s3prl_ekd.weights.pickles import load_pickle_safely
    if load_pickle_safely(folder / "states-1.ckpt")["Args"].seed != 1:
        sys.exit("not read")
    states = torch.load(folder / "states-1.ckpt", map_location="cpu")
    optimizer.load_state_dict(states["Optimizer"])
    assert states["Args"].seed == 1

def complex_spectrum():  # s3prl.utility.audio, inside a function
    import numpy
    numpy.abs(numpy.ones(2)).astype(numpy.complex)

def masks_and_spectra():
    span_mask()
    complex_spectrum()

def snapshot_download():
    found = huggingface_hub.snapshot_download("somebody/model", None, use_auth_token=True)
    assert Path(found) == snapshot

def start_process():
    from s3prl.dataio.dataset.load_audio import LoadAudio
    process = multiprocessing.get_context("spawn").Process(target=LoadAudio, args=([],))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError("a new process cannot use s3prl")

ACTIONS = {
    "distutils": load("s3prl.upstream.mockingjay.builder"),
    "numpy_scalar_aliases": masks_and_spectra,
    "torchaudio_set_audio_backend": load("s3prl.dataio.dataset.load_audio"),
    "torchaudio_load": read_audio,
    "torchaudio_sox_effects": load("s3prl.upstream.mos_prediction.expert"),
    "catalyst": load("s3prl.downstream.speech_commands.expert"),
    "huggingface_hub_names": load("s3prl.downstream.runner"),
    "huggingface_hub_login": lambda: huggingface_hub.HfApi().login(username=None, password=None),
    "huggingface_hub_snapshot_download": snapshot_download,
    "torch_safe_globals": resume,
    "ctc_corpus": load("s3prl.downstream.ctc.corpus.libriphone"),
    "new_processes": start_process,
}
result = {}
for name in patches.PATCHES:
    outcome = result[name] = {}
    try:
        ACTIONS[name]()
    except Exception as error:
        outcome["without"] = f"{type(error).__name__}: {error}"
    outcome["applied"], outcome["again"] = patches.apply(name), patches.apply(name)
    ACTIONS[name]()
result["all again"] = patches.apply()
import s3prl.hub
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("trial")
    soundfile.write(folder / "a.flac", np.zeros(1600, "float32"), 16000)
    done: subprocess.CompletedProcess = python("-c", TRIAL, str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT")[2])


# What s3prl's own code ends in without the patch.
WITHOUT = {
    "distutils": "ModuleNotFoundError: No module named 'distutils",
    "numpy_scalar_aliases": "AttributeError: module 'numpy' has no attribute 'int'",
    "torchaudio_set_audio_backend": "AttributeError: module 'torchaudio' has no attribute 'set_audio_backend'",
    "torchaudio_load": "ImportError: TorchCodec is required",
    "torchaudio_sox_effects": "ModuleNotFoundError: No module named 'torchaudio.sox_effects'",
    "catalyst": "ModuleNotFoundError: No module named 'catalyst'",
    "huggingface_hub_names": "ImportError: cannot import name 'HfFolder'",
    "huggingface_hub_login": "AttributeError: 'HfApi' object has no attribute 'login'",
    "huggingface_hub_snapshot_download": "TypeError: snapshot_download()",
    "torch_safe_globals": "UnpicklingError: Weights only load failed",
    "ctc_corpus": "ModuleNotFoundError: No module named 's3prl.downstream.ctc.corpus",
    "new_processes": "RuntimeError: a new process cannot use s3prl",
}


@pytest.mark.parametrize("name", patches.PATCHES)
def test_each_patch_is_needed_works_and_is_applied_once(trial, name):
    assert trial[name].get("without", "nothing").startswith(WITHOUT[name])
    assert trial[name]["applied"] == [name]
    assert trial[name]["again"] == []
    assert trial["all again"] == []


def test_what_is_there_is_left_alone(monkeypatch):
    def own(*args):
        return None

    monkeypatch.setattr(torchaudio, "set_audio_backend", own, raising=False)
    monkeypatch.setattr(torchaudio, "load", own)
    monkeypatch.setattr(patches, "_torchcodec_works", lambda: True)
    assert patches.apply("torchaudio_set_audio_backend", "torchaudio_load") == []
    assert torchaudio.set_audio_backend is own
    assert torchaudio.load is own


def test_only_the_missing_espnet_is_not_mentioned(caplog):
    expert = importlib.import_module("s3prl.upstream.espnet_hubert.expert")
    caplog.clear()
    with patches.quiet():
        importlib.reload(expert)
        expert.logger.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]
    importlib.reload(expert)
    assert "ESPnet is not installed" in caplog.text


def test_strtobool_is_that_of_distutils():
    assert [patches._strtobool(word) for word in ("y", "True", "ON", "1", "n", "off", "FALSE", "0")] == [1] * 4 + [
        0
    ] * 4
    with pytest.raises(ValueError, match="maybe"):
        patches._strtobool("maybe")


# --- torchaudio.load --------------------------------------------------------------------------------------------------


@pytest.fixture
def stereo(tmp_path) -> tuple[Path, np.ndarray]:
    """Two channels of 16-bit integers: (S, C)."""
    samples = np.random.default_rng(0).integers(-30000, 30000, (1000, 2)).astype("int16")
    soundfile.write(tmp_path / "a.wav", samples, 8000, "PCM_16")
    return tmp_path / "a.wav", samples


def test_load_audio_gives_floats_channels_first(stereo):
    path, samples = stereo
    wave, rate = patches.load_audio(path)
    assert rate == 8000
    assert wave.dtype == torch.float32
    assert torch.equal(wave, torch.from_numpy(samples.T / 32768.0).float())
    assert torch.equal(patches.load_audio(str(path), channels_first=False)[0], wave.T)
    assert torch.equal(patches.load_audio(io.BytesIO(path.read_bytes()))[0], wave)


def test_load_audio_reads_a_part(stereo):
    path, samples = stereo
    part, _ = patches.load_audio(path, frame_offset=100, num_frames=50, normalize=False)
    assert np.array_equal(part.numpy(), samples[100:150].T)
    assert patches.load_audio(path, frame_offset=990, num_frames=50)[0].shape == (2, 10)
    assert patches.load_audio(path, frame_offset=5000)[0].shape == (2, 0)
    for wrong in ({"num_frames": 0}, {"num_frames": -2}, {"frame_offset": -1}):
        with pytest.raises(ValueError, match="expected"):
            patches.load_audio(path, **wrong)


@pytest.mark.parametrize(
    ("subtype", "dtype", "expected"),
    [
        ("PCM_U8", torch.uint8, [0, 128, 192]),
        ("PCM_16", torch.int16, [-(2**15), 0, 2**14]),
        ("PCM_24", torch.int32, [-(2**31), 0, 2**30]),
        ("PCM_32", torch.int32, [-(2**31), 0, 2**30]),
        ("FLOAT", torch.float32, [-1.0, 0.0, 0.5]),
        ("DOUBLE", torch.float64, [-1.0, 0.0, 0.5]),
    ],
)
def test_load_audio_keeps_the_integers_of_a_wav_if_asked(tmp_path, subtype, dtype, expected):
    soundfile.write(tmp_path / "a.wav", np.array([-1.0, 0.0, 0.5]), 16000, subtype)
    wave, _ = patches.load_audio(tmp_path / "a.wav", normalize=False)
    assert wave.dtype == dtype
    assert wave[0].tolist() == expected


def test_load_audio_says_in_one_line_what_cannot_be_read(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    for name in ("text.wav", "missing.wav"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as audio") as caught:
            patches.load_audio(tmp_path / name)
        assert isinstance(caught.value, RuntimeError)  # what torchaudio's own callers catch
        assert "\n" not in str(caught.value)


def test_calls_of_sox_effects_say_what_to_do():
    with pytest.raises(UserError, match=r"below 2\.9"):
        patches._no_sox_effects()
    with pytest.raises(UserError, match="hf upload"):
        patches._no_repository("folder")


# --- s3prl.downstream.ctc.corpus --------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def tokenizer():
    from s3prl.downstream.ctc.text import load_text_encoder

    return load_text_encoder("word", str(assets.folder("vocab/phoneme.txt")))


def phone_dataset(corpus: Path, tokenizer, bucket_size: int = 1, **options) -> LibriPhoneDataset:
    options = {"lexicon": [str(corpus / "lexicon.txt")]} | options
    return LibriPhoneDataset(["train"], tokenizer, bucket_size, path=str(corpus), name="libriphone", **options)


def test_phones_are_the_first_pronunciation_longest_first(corpus, tokenizer):
    dataset = phone_dataset(corpus, tokenizer)
    texts = [tokenizer.decode(labels) for _, labels in (dataset[i] for i in range(len(dataset)))]
    assert texts == ["D AO1 G S AH1 N K AE1 T", "K AE1 T D AO1 G", "S AH1 N S AH1 N", "S AH1 N"]
    assert dataset[0][0] == corpus / "train/1/2/1-2-0002.flac"
    assert isinstance(dataset[0], tuple)  # how s3prl's loader tells an item from a bucket
    assert phone_dataset(corpus, tokenizer, ascending=True)[0] == dataset[3]


def test_buckets_are_whole_up_to_the_end(corpus, tokenizer):
    single, buckets = phone_dataset(corpus, tokenizer), phone_dataset(corpus, tokenizer, bucket_size=3)
    assert buckets[0] == [single[0], single[1], single[2]]
    assert buckets[3] == [single[1], single[2], single[3]]
    assert len(phone_dataset(corpus, tokenizer, bucket_size=9)[2]) == 4


def test_the_phoneme_vocabulary_has_the_ids_that_s3prl_has(tokenizer):
    assert tokenizer.vocab_size == 74  # with <pad>, <eos>, <unk>
    assert [tokenizer.vocab_to_idx(phone) for phone in ("SIL", "SPN", "AA0", "B", "ZH")] == [3, 4, 5, 23, 73]


def test_words_and_phones_that_are_missing_are_named(corpus, tokenizer):
    (corpus / "lexicon.txt").write_text(LEXICON.replace("DOG", "FOG"))
    with pytest.raises(UserError, match="no pronunciation of 'DOG'"):
        phone_dataset(corpus, tokenizer)
    (corpus / "lexicon.txt").write_text(LEXICON.replace("AO1", "QQ"))
    with pytest.raises(UserError, match="'QQ' is not in the phoneme vocabulary"):
        phone_dataset(corpus, tokenizer)
    with pytest.raises(UserError, match=r"none\.txt: No such file.*a lexicon is"):
        phone_dataset(corpus, tokenizer, lexicon="none.txt")
    with pytest.raises(UserError, match=r"nothing: no \*\.flac"):
        LibriDataset(["nothing"], tokenizer, 1, path=str(corpus))


def test_characters_come_from_the_transcript(corpus):
    from s3prl.downstream.ctc.text import load_text_encoder

    characters = load_text_encoder("character", str(assets.folder("vocab/character.txt")))
    dataset = LibriDataset(["train", "dev"], characters, 1, path=str(corpus))
    assert len(dataset) == 2 * len(SENTENCES)
    assert characters.decode(dataset[0][1]) == "DOG SUN CAT"
    listing = corpus / "dev/1/2/1-2.trans.txt"
    listing.write_text(listing.read_text().replace("1-2-0001", "1-2-0009"))
    with pytest.raises(UserError, match="no line for 1-2-0001"):
        LibriDataset(["dev"], characters, 1, path=str(corpus))


def test_the_character_dictionary_is_read_by_s3prl():
    from s3prl.downstream.asr.dictionary import Dictionary

    dictionary = Dictionary.load(str(assets.folder("vocab/char.dict")))
    assert len(dictionary) == 4 + 28  # fairseq's special symbols first
    line = dictionary.encode_line("C A T |", line_tokenizer=str.split, append_eos=False)
    assert dictionary.unk() not in line.tolist()
