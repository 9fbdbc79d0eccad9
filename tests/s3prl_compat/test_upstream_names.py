"""Which of s3prl's upstreams load a file that the user names, and what is said where it is missing."""

from __future__ import annotations

import pytest

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat.upstream_names import check_file, names, takes_file, with_file


def test_upstreams_that_load_a_file(tmp_path):
    every = names()
    assert {"hubert_local", "hubert_custom", "hubert_url", "baseline_local"} <= {
        name for name in every if takes_file(name)
    }
    assert {"hubert", "fbank", "wavlm_base_plus"} <= {name for name in every if not takes_file(name)}
    assert with_file("hubert_base_robust_mgr", sorted(every)) == "hubert_local"
    assert with_file("fbank", sorted(every)) is None


@pytest.mark.parametrize(
    ("name", "ckpt"),
    [
        ("hubert_local", __file__),
        ("hubert_url", "https://example.org/a.pt"),
        ("hubert_custom", "https://example.org/a.pt"),
        ("hubert_gdriveid", "1a2b"),
        ("hf_hubert_custom", "facebook/hubert-base-ls960"),
        ("hubert_base", None),
        ("hubert_base", "nowhere.pt"),  # not its to judge
    ],
)
def test_weights_that_can_be_there(name, ckpt):
    check_file(name, ckpt, options=("-u", "-k"))


def test_weights_that_cannot():
    with pytest.raises(UserError, match="-u hubert_local needs -k: its weights"):
        check_file("hubert_local", None, options=("-u", "-k"))
    with pytest.raises(UserError, match=r"--ckpt nowhere.pt: no such file or folder \(working folder: "):
        check_file("hubert_custom", "nowhere.pt", options=("--upstream", "--ckpt"))
