"""Several upstreams, learning rates and seeds in one call: each unit once, best on dev, the same from YAML."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from helpers_grid import silent_corpus, write_results

from s3prl_ekd import cli, cost, load_student
from s3prl_ekd.superb.jobs import JobError
from s3prl_ekd.superb.summary import read_summary

GRID = """
upstream: [fbank, {upstream: mfcc, label: cepstra}]
tasks: [sid, er]
lr: {sid: [1e-3, 0.1], er: 1e-2}
seeds: [1, 2]
"""
WORDS = ["--upstream", "fbank", "--upstream", "mfcc", "--label", "cepstra", "--tasks", "sid,er",
         "--lr", "sid=1e-3,0.1", "er=1e-2", "--seeds", "1,2"]  # fmt: skip


def made(upstream: str, rate: float, seed: int) -> tuple[float, int]:
    """FBANK learns best at 0.1 and mfcc at 0.001; the test set says the opposite, and must not be asked."""
    good = (upstream == "fbank") == (rate == 0.1)
    return (90.0 + seed if good else 50.0), (24 if good else 4) - (10 if upstream == "mfcc" and good else 0) + seed


class Runs:
    """In place of the processes: notes their names and makes results up; can fail."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.broken: str = ""
        self.killed_after: int | None = None

    def __call__(self, jobs, **_) -> None:
        failed = []
        for job in jobs:
            if self.killed_after is not None and len(self.names) >= self.killed_after:
                raise KeyboardInterrupt
            if self.broken and self.broken in job.name:
                failed.append(job.name)
                continue
            self.names.append(job.name)
            write_results(Path(job.arguments[-1]), made)
        if failed:
            raise JobError(f"{failed[0]} ended with status 1")


@pytest.fixture
def runs(monkeypatch) -> Runs:
    stub = Runs()
    monkeypatch.setattr("s3prl_ekd.superb.jobs.run_jobs", stub)
    return stub


@pytest.fixture
def superb(tmp_path, monkeypatch):
    silent_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(["superb", "--corpus", "mini", "--data", "corpus", "--out", "out", *words])


UNITS = [
    f"{label}/lr-{rate}/seed-{seed}/{task}"
    for task, rates in (("sid", (0.001, 0.1)), ("er", (0.01,)))
    for label in ("fbank", "cepstra")
    for seed in (1, 2)
    for rate in rates
]


def test_a_grid_is_judged_once_and_shown_with_the_rate_that_is_best_on_dev(runs, superb, capsys):
    assert superb(*WORDS, "--baseline", "fbank") == 0
    assert runs.names == UNITS
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1].split() == ["learning", "rate", "SID", "accuracy", "↑", "ER", "accuracy", "↑"]
    fbank, cepstra = (next(line for line in lines if line.startswith(label)) for label in ("fbank", "cepstra"))
    assert fbank.startswith("fbank SID 0.1, ER 0.01 36.2 [")
    assert cepstra.startswith("cepstra SID 0.001, ER 0.01 61.2 [")
    assert cepstra.count("▲") == 1
    assert "seeds of the downstream training: 1, 2 (n=2)" in lines
    rows = read_summary(Path("out"))
    assert len(rows) == len(UNITS)
    assert all(row.searched and Path(row.outcomes[0]).is_file() for row in rows)
    runs.names.clear()
    assert superb(*WORDS) == 0
    assert runs.names == []
    more = ["--upstream", "fbank", "--tasks", "sid", "--lr", "0.001,0.1,1", "--seeds", "1,2,3"]
    assert superb(*more) == 0
    assert runs.names == [
        "fbank/lr-1.0/seed-1/sid", "fbank/lr-1.0/seed-2/sid",
        "fbank/lr-0.001/seed-3/sid", "fbank/lr-0.1/seed-3/sid", "fbank/lr-1.0/seed-3/sid",
    ]  # fmt: skip


def test_the_same_from_yaml_and_from_the_command_line(runs, superb):
    Path("grid.yaml").write_text(GRID)
    assert superb("--grid", "grid.yaml") == 0
    assert runs.names == UNITS
    runs.names.clear()
    assert superb(*WORDS) == 0  # the same folders with the same settings
    assert superb("--seeds", "1", "--grid=grid.yaml", "--upstream", "mfcc", "--seed", "2", "--tasks", "sid") == 2
    assert superb("--upstream", "mfcc", "--tasks", "sid", "--lr", "0.1", "--seeds", "1", "--grid=grid.yaml") == 0
    assert runs.names == ["mfcc/lr-0.1/seed-1337/sid"]  # what is said replaces what is in the file


def test_all_options_may_stand_in_the_file(runs, superb):
    Path("all.yaml").write_text(
        "{upstream: fbank, label: mine, tasks: er, split: public, seed: 7, seeds: 2, lr: [1e-4, 1.0e-3],"
        " steps: {er: 5}, set: {'er:optimizer.torch_optim_name': SGD}, fine-tune: false, remember-features: false,"
        " device: cpu, jobs: 2, threads: 1, ckpt: null}"
    )
    assert superb("--grid", "all.yaml") == 0
    assert runs.names == [f"mine/lr-{rate}/seed-{seed}/er" for seed in (7, 8) for rate in (0.0001, 0.001)]
    (settings,) = {json.dumps(row.settings["downstream"]["optimizer"]) for row in read_summary(Path("out"))[:1]}
    assert json.loads(settings)["torch_optim_name"] == "SGD"
    assert read_summary(Path("out"))[0].settings["remember_features"] is False


def test_every_option_has_its_key_and_every_key_its_option(tmp_path):
    """With a value of its kind, each is the same from the file and from the command line."""
    commands = cli.build_parser("superb")._subparsers._group_actions[0].choices
    actions = [action for action in commands["superb"]._actions if action.dest not in ("help", "grid")]
    assert len(actions) > 35
    seen = set()
    for action in actions:
        (option,) = [word for word in action.option_strings if not word.startswith("--no-")]
        key = option.removeprefix("--")
        values = [*(action.choices or ()), "er=1", "2", "public"]
        value = True if action.nargs == 0 else next(value for value in values if accepts(action, value))
        words = [option] if value is True else [option, value]
        (tmp_path / "one.yaml").write_text(json.dumps({key: value}))
        common = ["superb"] if key in ("corpus", "out") else ["superb", "--corpus", "mini", "--out", "out"]
        common += {"corpus": ["--out", "out"], "out": ["--corpus", "mini"]}.get(key, [])
        told, read = (
            vars(cli.build_parser("superb").parse_args([*common, *more]))
            for more in (words, ["--grid", str(tmp_path / "one.yaml")])
        )
        assert read | {"grid": None} == told, key
        default = cli.build_parser("superb").parse_args([*common, *({"corpus": words, "out": words}.get(key, []))])
        assert key in ("corpus", "out", "split") or vars(default) != told, key
        seen.add(key)
    assert {"upstream", "ckpt", "label", "lr", "seeds", "steps", "set", "librispeech", "slurm", "fine-tune"} <= seen


def accepts(action, value: str) -> bool:
    try:
        return action.type is None or action.type(value) is not None
    except (ValueError, argparse.ArgumentTypeError):
        return False


def test_killed_or_failed_the_same_command_goes_on(runs, superb, capsys):
    runs.killed_after = 3
    assert superb(*WORDS) == 130
    runs.killed_after, runs.broken = None, "cepstra/lr-0.1/seed-2/sid"
    assert superb(*WORDS) == 1
    captured = capsys.readouterr()
    assert "cepstra/lr-0.1/seed-2/sid ended with status 1" in captured.err
    assert "fbank" in captured.out  # what is finished is shown
    assert len(read_summary(Path("out"))) == len(UNITS) - 1
    runs.broken = ""
    assert superb(*WORDS) == 0
    assert sorted(runs.names) == sorted(UNITS)


def test_results_of_an_earlier_version_stay_and_are_left_out_of_intervals(runs, superb, capsys, caplog):
    assert superb("--upstream", "fbank", "--tasks", "er") == 0
    Path("out/er/tests/test/outcomes.csv").unlink()
    trained = json.loads(Path("out/er/trained.json").read_text())
    Path("out/er/trained.json").write_text(json.dumps({key: trained[key] for key in ("checkpoint", "seconds")}))
    assert superb("--upstream", "fbank", "--tasks", "er") == 0
    assert runs.names == ["er"]
    assert (read_summary(Path("out"))[0].outcomes, read_summary(Path("out"))[0].dev) == ((), None)
    assert superb("--upstream", "fbank", "--tasks", "er", "--seeds", "1,2") == 0
    assert "1 earlier results have no outcomes per utterance" in caplog.text
    assert len(read_summary(Path("out"))) == 3
    capsys.readouterr()
    assert cli.main(["report", "out", "--intervals"]) == 2
    assert "made by an earlier version, which kept no outcomes per utterance" in capsys.readouterr().err


def test_without_the_options_nothing_is_elsewhere_than_before(runs, superb, capsys):
    assert superb("--upstream", "fbank", "--tasks", "er") == 0
    assert runs.names == ["er"]
    assert {path.name for path in Path("out").iterdir()} == {"er", "summary.json"}
    assert "[" not in capsys.readouterr().out
    assert not read_summary(Path("out"))[0].searched


def test_report_shows_a_grid(runs, superb, capsys):
    assert superb(*WORDS) == 0
    capsys.readouterr()
    assert cli.main(["report", "out"]) == 0
    assert "36.2 ± 1.8 (n=2)" in capsys.readouterr().out
    assert cli.main(["report", "out", "--every-rate"]) == 0
    assert "optimizer.lr=0.1 " in capsys.readouterr().out
    assert cli.main(["report", "out", "--json", "--baseline", "fbank", "--plot", "bars.png"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [column["name"] for column in table["columns"]] == ["SID", "ER"]
    fbank, cepstra = table["lines"]
    assert fbank["rates"] == {"sid": "0.1", "er": "0.01"}
    difference = cepstra["cells"][0]["difference"]
    assert difference["value"] == pytest.approx(cepstra["cells"][0]["mean"] - fbank["cells"][0]["mean"])
    assert (difference["verdict"], difference["baseline"]) == ("better", "fbank")
    assert difference["low"] > 0
    assert cli.main(["report", "out", "--markdown", "--intervals"]) == 0
    assert "| fbank | SID 0.1, ER 0.01 | 36.2 [" in capsys.readouterr().out
    Path("moved").mkdir()
    Path("out/summary.json").rename("moved/summary.json")
    assert cli.main(["report", "moved", "--intervals"]) == 2
    assert "outcomes.csv: No such file or directory; intervals need" in capsys.readouterr().err


def test_what_a_student_costs_stands_beside_its_scores(runs, superb, student, capsys):
    words = ["--upstream", "fbank", "--upstream", "ekd_student", "--ckpt", str(student), "--label", "tiny"]
    assert superb(*words, "--tasks", "er") == 0
    config = load_student(student).config
    found = cost.costs_of(config)
    assert found["parameters"] == config.parameters
    assert {row.label: row.costs for row in read_summary(Path("out"))} == {"fbank": {}, "tiny": found}
    capsys.readouterr()
    assert cli.main(["report", "out", "--markdown"]) == 0
    heading, _, _, fbank, tiny = capsys.readouterr().out.splitlines()[2:7]
    assert heading.startswith("|  | parameters | multiply-adds a second | ER accuracy")
    assert fbank.startswith("| fbank | - | - | ")
    assert tiny.startswith(f"| tiny | {' | '.join(map(cost.short, found.values()))} | ")
    assert cli.main(["report", "out", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [line["costs"] for line in table["lines"]] == [{}, found]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "sidd=1e-3"], "--lr: unknown task 'sidd'; did you mean 'sid'?"),
        (["--lr", "pr=1e-3"], "--lr pr=1e-3: pr is not among --tasks er"),
        (["--lr", "1e-3,fast"], "--lr: 'fast' is no learning rate; expected a number above 0, such as 1e-3"),
        (["--lr", "0"], "--lr: '0' is no learning rate"),
        (["--lr", "nan"], "--lr: 'nan' is no learning rate"),
        (["--lr", "er=[1e-3, [2]]"], "--lr: '[2]' is no learning rate"),
        (["--seeds", "0"], "--seeds: 0: expected a whole number from 1"),
        (["--seeds", "1,x"], "--seeds: x: expected a whole number from 0"),
        (["--split", "publik"], "--split: unknown value 'publik'; did you mean 'public'?"),
        (["--label", "a", "--label", "b"], "--label is there twice for one upstream"),
        (["--upstream", "mfcc", "--label", "fbank"], "'fbank' and 'fbank' would share a folder"),
        (["--seeds", "2", "--baseline", "fbnk"], "--baseline fbnk: no upstream has this label; did you mean 'fbank'?"),
        (["--seeds", "2", "--prepare"], "--prepare writes one configuration per task"),
        (["--partition", "gpu"], "--partition is for jobs of a cluster: give --cluster slurm or local too"),
        (["--cluster", "pbs"], "--cluster: unknown value 'pbs'; valid: local, slurm"),
        (["--cluster", "slurm"], "--cluster needs submitit: pip install submitit"),
        (["--cluster", "local", "--slurm", "=me"], "--slurm =me: expected an option of sbatch"),
        (["--cluster", "local", "--hours", "0"], "--hours: 0: expected a number above 0"),
        (["--baseline", "fbank"], "--baseline compares upstreams of one call; for those of several: s3prl-ekd report"),
        (["--lr", "1e-3", "--set", "er:optimizer.lr=0.1"], "--set optimizer.lr and --lr: leave one of the two out"),
        (["--grid", "none.yaml"], "none.yaml: No such file"),
        (["--grid", "unknown.yaml"], "unknown.yaml: unknown key 'sedes'; did you mean 'seeds'?"),
        (["--grid", "switch.yaml"], "switch.yaml: fine-tune: expected true or false, found 'maybe'"),
        (["--grid", "twice.yaml"], "twice.yaml: not valid YAML"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(runs, superb, capsys, monkeypatch, words, message):
    monkeypatch.setitem(sys.modules, "submitit", None)
    Path("unknown.yaml").write_text("sedes: 3")
    Path("switch.yaml").write_text("fine-tune: maybe")
    Path("twice.yaml").write_text("seeds: 3\nseeds: 4")
    assert superb("--upstream", "fbank", "--tasks", "er", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert not Path("out").exists()
