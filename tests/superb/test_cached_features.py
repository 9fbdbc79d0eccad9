"""Features that are computed at the first sight of a waveform."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.usefixtures("s3prl_tasks")
def test_remembered_features_are_those_of_the_upstream(student):
    from s3prl_ekd.superb.cached_features import RememberedFeatures
    from s3prl_ekd.upstream import ekd_student

    upstream = ekd_student(str(student)).eval()
    heard = []
    upstream.register_forward_pre_hook(lambda _, inputs: heard.append(len(inputs[0])))
    remembered = RememberedFeatures(upstream, max_bytes=1 << 20).eval()
    wavs = [torch.randn(length) for length in (16000, 9000, 4100)]
    with torch.no_grad():
        expected = upstream(wavs)["hidden_states"]
        first = remembered(wavs[:2])["hidden_states"]
        again = remembered(wavs[::-1])["hidden_states"]
    assert heard == [3, 2, 1]
    assert len(first) == len(again) == len(expected)
    for layer, one, two in zip(expected, first, again, strict=True):
        for index, wav in enumerate(wavs):
            frames = round(len(wav) / 320)
            torch.testing.assert_close(two[2 - index, :frames], layer[index, :frames], atol=1e-5, rtol=0)
        torch.testing.assert_close(one[1, :28], layer[1, :28], atol=1e-5, rtol=0)
    forgetful = RememberedFeatures(upstream, max_bytes=0)
    with torch.no_grad():
        forgetful(wavs[:1])
        forgetful(wavs[:1])
    assert heard == [3, 2, 1, 1, 1]
