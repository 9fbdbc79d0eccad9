"""The benchmarks run, compare outputs, and write what the report reads. Models are tiny: no figure counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_models import ROOT

BENCHMARKS = ROOT / "benchmarks"
# One process for all: importing s3prl is most of the time.
ALL = """
import bf16, distill_step, inference, profile_step
assert bf16.main(["--quick", "--repeats", "1", "--json", "bf16_cpu.json"]) == 0
assert profile_step.main(["--quick", "--repeats", "1", "--json", "profile_step_cpu.json"]) == 0
assert distill_step.main(["--quick", "--repeats", "1", "--json", "distill_step_cpu.json"]) == 0
assert inference.main(["--quick", "--repeats", "1", "--json", "inference_cpu.json"]) == 0
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{ALL}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_step(results):
    result = read(results, "distill_step_cpu")
    steps = {"s3prl_k1", "s3prl_k1_as_shipped", "ours_k1", "s3prl_k3", "ours_k3", "ours_cached_k3"}
    assert result["timings"].keys() == steps
    assert all(len(timing["all_s"]) == 1 and timing["median_s"] > 0 for timing in result["timings"].values())
    assert result["ratios"].keys() == {"step_k1", "step_k1_as_shipped", "step_k3", "cached_over_online_k3"}
    expected = result["timings"]["s3prl_k3"]["median_s"] / result["timings"]["ours_k3"]["median_s"]
    assert result["ratios"]["step_k3"] == pytest.approx(expected, rel=1e-2)


def test_inference(results):
    result = read(results, "inference_cpu")
    for name in ("b1", "mixed8"):
        assert result["timings"][name].keys() == {"ours", "s3prl", "s3prl_shipped", "transformers"}
        assert all(used > 0 for used in result["extra_memory_mb"][name].values())
    assert {"infer_b1", "infer_mixed8", "memory_b1", "memory_mixed8"} <= result["ratios"].keys()


def test_profile(results):
    """Most of the time has a name, and the arithmetic is counted on both sides."""
    result = read(results, "profile_step_cpu")
    for side in ("s3prl", "ours"):
        seconds = result["self_seconds"][side]
        assert 0 < seconds["other"] < sum(seconds.values())
        assert result["gflop"][side] > 0
        assert result["floor_s"][side] == pytest.approx(result["gflop"][side] / result["peak_gflops"], rel=1e-2)


@pytest.mark.parametrize("groups", [1, 4])
def test_arithmetic_of_a_grouped_convolution(groups, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import profile_step
    import torch

    conv = torch.nn.Conv1d(8, 16, 5, groups=groups)
    x = torch.randn(3, 8, 20, requires_grad=True)
    forward = 2 * 3 * 16 * 16 * (8 // groups) * 5  # twice B, T', C', C / groups, K
    assert profile_step.gflop(lambda: conv(x)) * 1e9 == pytest.approx(forward)
    assert profile_step.gflop(lambda: conv(x).sum().backward()) * 1e9 == pytest.approx(3 * forward)


@pytest.mark.parametrize("name", ["distill_step_cpu", "inference_cpu", "bf16_cpu"])
def test_outputs_were_compared(results, name):
    result = read(results, name)
    assert result["max_differences"].keys() == result["limits"].keys()
    for what, limit in result["limits"].items():
        assert 0 < result["max_differences"][what] < limit, (
            what
        )  # exactly 0 would mean that it was compared with itself
    assert {"date", "machine", "threads", "repeats", "load_average"} <= result.keys()
    assert {"python", "torch", "s3prl", "transformers"} <= result["versions"].keys()


def test_unequal_outputs_are_an_error(results, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    args = common.parser("").parse_args(["--quick"])
    values = {"max_differences": {"loss": 0.5}, "limits": {"loss": 0.1}}
    assert common.finish(args, "x", values) == 1
    assert "loss is 0.5" in capsys.readouterr().err
    assert common.finish(args, "x", values | {"max_differences": {"loss": float("nan")}}) == 1
    assert common.finish(args, "x", values | {"max_differences": {"loss": 0.05}}) == 0


@pytest.mark.slow
def test_a_checkout_against_itself(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "against.py"), "--other", str(ROOT), "--quick", "--repeats", "2"]
    done = subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = read(tmp_path, "out")
    assert set(result["max_differences"].values()) == {0}
    candidates = {"step_k3", "step_cached_k3", "infer_b1", "infer_mixed8"}
    assert result["ratios"].keys() == result["ratio_ranges"].keys() == candidates
    assert all(len(timing["all_s"]) == 2 for both in result["timings"].values() for timing in both.values())


def test_outputs_of_another_checkout_that_differ_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import against
    import torch

    this = {"hidden_states": {"b1 0": torch.zeros(2)}, "loss": 1.0, "loss_with_dropout": 2.0}
    other = {"hidden_states": {"b1 0": torch.tensor([0.0, 0.5])}, "loss": 1.25, "loss_with_dropout": 2.0}
    gradients = {"gradient": {"weight": torch.tensor([3.0, 4.0])}}, {"gradient": {"weight": torch.tensor([0.0, 4.0])}}
    found = against.differences(this | gradients[0], other | gradients[1])
    assert found == {"hidden_states": 0.5, "loss": 0.25, "loss_with_dropout": 0, "gradient_relative": 0.75}
    with pytest.raises(AssertionError, match="other names"):
        against.differences(this | gradients[0], other | {"gradient": {"bias": torch.zeros(2)}})


def test_memory_is_what_a_call_needs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common
    import torch

    def use(megabytes):
        torch.ones(megabytes * 250_000).sum()

    measured = common.extra_memory_mb(lambda: use(100), lambda: use(1), torch.device("cpu"))
    assert 95 < measured < 110


def test_report_fills_the_page(results, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    monkeypatch.setattr(report, "IMAGES", tmp_path / "images")
    page = tmp_path / "performance.md"
    names = ("distill_step", "inference", "profile_step", "bf16", "growth")
    measured = "between\n".join(f"<!-- measured: {name}_cpu -->\nold\n<!-- end -->\n" for name in names)
    page.write_text(f"before\n{measured}after\n")
    assert report.main(["--results", str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    ratio = read(results, "distill_step_cpu")["ratios"]["step_k3"]
    in_round = report.number(read(results, "distill_step_cpu")["ratio_ranges"]["step_k3"][0])
    row = f"| step, 3 teachers | {report.number(ratio)} | {in_round} to {in_round} | at least 1.7 |"
    assert row in text
    assert "**Not measured.** `python benchmarks/growth.py`" in text
    assert (tmp_path / "images/step_cpu.png").is_file()
    report.main(["--results", str(results), "--page", str(page)])
    assert page.read_text() == text


def test_pictures_have_names_for_readers_and_units(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plots

    timing = {"median_s": 2.0, "min_s": 1.5, "max_s": 4.0}
    (panel,) = plots.bars({"s3prl_k3": timing, "ours_cached_k3": {**timing, "median_s": 3.0}}).get_axes()
    named = {text.get_text(): text.get_position()[1] for text in panel.get_yticklabels()}
    assert named == {"s3prl, 3 teachers": 0, "ours, cached targets of 3 teachers": 1}
    assert [bar.get_width() for bar in panel.patches] == [2.0, 3.0]
    assert panel.get_xlabel() == "time of a step (s), less is better; whiskers: fastest and slowest round"
    points = [
        {"series": "batch", "curve": curve, "x": x, "seconds": x / 10, "extra_memory_mb": 100 * x}
        for curve in ("ours", "s3prl", "transformers")
        for x in (5, 40)
    ]
    figure = plots.growth({"points": points}, "batch")
    time, memory = figure.get_axes()
    assert (time.get_ylabel(), memory.get_ylabel()) == ("time (s), less is better", "extra memory (MB), less is better")
    assert time.get_xlabel() == "seconds in the batch"
    assert [list(line.get_ydata()) for line in memory.lines] == [[500, 4000]] * 3
    looks = {(line.get_color(), line.get_marker()) for line in time.lines}
    assert looks == {(style["color"], style["marker"]) for style in plots.STYLES.values()}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "s3prl", "transformers"]
    figure.canvas.draw()
    assert "1000" in [text.get_text() for text in memory.get_yticklabels()]
