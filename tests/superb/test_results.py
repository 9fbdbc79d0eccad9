"""What is made of results: summaries on disk, the seeds put together, tables, and pictures (looked at as objects)."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers_results import old_row, row, settings
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from s3prl_ekd import cli, pictures
from s3prl_ekd.errors import UserError
from s3prl_ekd.superb import picture, run_experiment
from s3prl_ekd.superb.evaluation import Evaluation
from s3prl_ekd.superb.outcomes import write_outcomes
from s3prl_ekd.superb.summary import Row, read_summary, write_summary
from s3prl_ekd.superb.tables import tables
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.corpora import Corpora, Split


def shown(*rows: Row) -> list[list[str]]:
    """The lines of the only table, without chance, as text."""
    (table,) = tables(rows)
    return table.rows()[2:]


def lr(value: float) -> dict:
    return settings(optimizer={"lr": value})


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_folds_are_averaged():
    entries = [
        {"value": value, "value_error": 4.0, "chance": 25.0, "chance_error": 3.0, "utterances": 10, "steps": 5,
         "seconds": 2.0, "checkpoint": "dev-best.ckpt"}
        for value in (50.0, 70.0)
    ]  # fmt: skip
    common = {
        key: getattr(row(), key)
        for key in ("task", "split", "test_set", "metric", "upstream", "ckpt", "label", "seed", "corpus")
    }
    combined = Row.from_folds(entries, **common)
    assert (combined.value, combined.folds, combined.utterances, combined.seconds) == (60, (50, 70), 20, 4)
    assert combined.chance_error == pytest.approx(3 / 2**0.5)
    assert combined.value_error == pytest.approx(4 / 2**0.5)
    del entries[1]["value_error"]  # a result of before it was stored
    assert Row.from_folds(entries, **common).value_error is None


def test_what_is_written_is_read(tmp_path):
    rows = [row(), row(seed=2, folds=(1.0, 2.5)), row(task="sid", ckpt="/some/student", weights="a" * 64)]
    write_summary(tmp_path / "summary.json", rows)
    assert read_summary(tmp_path) == rows
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["format"] == 2
    assert stored["rows"][0]["settings"]["downstream"]["optimizer"] == {"lr": 0.001}


def test_outcomes_may_be_moved_with_the_summary(tmp_path):
    judged = row(outcomes=(str(tmp_path / "before/er/outcomes.csv"), str(tmp_path / "other.csv")), dev=70.0)
    write_summary(tmp_path / "before/summary.json", [judged])
    stored = json.loads((tmp_path / "before/summary.json").read_text())
    assert stored["rows"][0]["outcomes"] == ["er/outcomes.csv", "../other.csv"]
    assert read_summary(tmp_path / "before") == [judged]
    (tmp_path / "before").rename(tmp_path / "after")
    assert read_summary(tmp_path / "after")[0].outcomes[0] == str(tmp_path / "after/er/outcomes.csv")


def test_a_rerun_replaces_its_own_row_and_no_other(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, [row(), row(split="hidden", test_set="hidden", value=40.0)])
    others = [row(seed=2), row(settings=lr(0.1)), row(steps=9), row(weights="b" * 64), row(label="mine")]
    write_summary(path, others)
    rows = write_summary(path, [row(value=62.0)])
    assert rows == read_summary(path)
    assert [r.value for r in rows if r.key == row().key] == [62.0]
    assert len(rows) == 2 + len(others)


def test_a_summary_of_format_1_is_read_and_completed(tmp_path):
    path = tmp_path / "summary.json"
    new = ("value_error", "weights", "settings", "parameters", "multiply_adds")
    old = [{k: v for k, v in asdict(r).items() if k not in new} for r in (old_row(), old_row(seed=2, value=70.0))]
    path.write_text(json.dumps({"format": 1, "rows": old}))
    assert read_summary(path) == [old_row(), old_row(seed=2, value=70.0)]
    # The same run, its settings known now, takes the old row's place; one with another score does not.
    rows = write_summary(path, [row(), row(seed=2, value=71.0)])
    assert rows == [old_row(seed=2, value=70.0), row(), row(seed=2, value=71.0)]


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate on ER with made-up scores in place of s3prl's runner; the folder with the summary."""

    def evaluated(out: str, *, score: float, corpus: str = "corpus", **asked) -> Path:
        (tmp_path / corpus / "labels").mkdir(parents=True, exist_ok=True)
        places = {"iemocap": tmp_path / corpus, "iemocap_labels": tmp_path / corpus / "labels"}
        corpora = Corpora(recipes="mini", given=places)
        given = {"upstream": "fbank", "tasks": ("er",), "label": "mine", **asked}
        evaluation = Evaluation(corpora=corpora, out=tmp_path / out, **given)
        assert len(evaluation.jobs()) == 1
        folder = tmp_path / out / "er"
        run_experiment.check_weights(folder, evaluation.ckpt)
        (folder / run_experiment.TRAINED).write_text('{"checkpoint": "dev-best.ckpt", "seconds": 1}')
        result = {"value": score, "value_error": 5.0, "chance": 25.0, "chance_error": 4.0, "utterances": 96}
        (folder / run_experiment.TESTS / "test").mkdir(parents=True)
        (folder / run_experiment.TESTS / "test" / run_experiment.RESULT).write_text(
            json.dumps({**result, "changes": {}, "seconds": 1})
        )
        write_summary(tmp_path / out / "summary.json", evaluation.rows())
        return tmp_path / out

    return evaluated


def test_runs_are_put_together_by_all_that_they_depend_on(evaluate, tmp_path, capsys):
    """Two learning rates are two lines and not a spread; other seeds, in other folders, are one."""
    slow, fast = (None, "optimizer.lr", 1e-4), (None, "optimizer.lr", 1e-2)
    runs = [
        evaluate("a", score=58.5, options=[slow], seed=1),
        evaluate("b", score=46.2, options=[fast], seed=2),
        evaluate("c", score=60.5, options=[slow], seed=3),
    ]
    assert cli.main(["report", *map(str, [*runs, runs[0]])]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[3:] == [
        "mine optimizer.lr=0.0001 1, 3 (n=2) 59.5 ± 1.4 (n=2)",
        "mine optimizer.lr=0.01 2 (n=1) 46.2",
        "steps of the downstream training: 400",
        "±: standard deviation over n seeds",
    ]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"steps": {"er": 7}}, "7"),
        ({"fine_tune": True}, "fine_tune=true"),
        ({"remember_features": True}, "remember_features=true"),
        ({"device": "cpu"}, "device=cpu"),
        ({"upstream": "mfcc"}, "upstream=mfcc"),
        ({"ckpt": "some/hub_id"}, "ckpt=some/hub_id"),
        ({"corpus": "other"}, "data.iemocap="),
        ({"options": [("er", "downstream_expert.datarc.valid_ratio", 0.1)]}, "valid_ratio=0.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_setting_is_another_line(evaluate, asked, told):
    runs = [*read_summary(evaluate("a", score=50.0)), *read_summary(evaluate("b", score=60.0, seed=2, **asked))]
    first, second = shown(*runs)
    assert (first[-1], second[-1]) == ("50.0", "60.0")
    assert told in " ".join(second)


def test_weights_are_known_by_what_is_in_them(evaluate, tmp_path):
    for name, content in (("one.pt", "same"), ("copy.pt", "same"), ("other.pt", "else")):
        (tmp_path / name).write_text(content)
    rows = [
        row
        for seed, name in enumerate(("one.pt", "copy.pt", "other.pt"))
        for row in read_summary(evaluate(name[:-3], score=50.0 + seed, seed=seed, ckpt=str(tmp_path / name)))
    ]
    first, second = shown(*rows)
    assert first[-2:] == ["0, 1 (n=2)", "50.5 ± 0.7 (n=2)"]
    assert f"other.pt ({rows[2].weights[:8]})" in second[1]


def test_what_tells_data_from_other_data(tmp_path):
    lexicon, split_file = tmp_path / "lexicon.txt", tmp_path / "iden_split.txt"
    lexicon.write_text("A\tAH\n")
    split_file.write_text("1 a\n")
    given = {"librispeech": tmp_path, "lexicons": (lexicon,), "voxceleb1": tmp_path, "iden_split": split_file}
    corpora = Corpora(recipes="real", given={**given, "hidden": tmp_path / "hidden"})
    public = TASKS["pr"].data_identity(corpora, Split.PUBLIC)
    assert public["librispeech"] == str(tmp_path)
    assert public["lexicon_fallback"] is False
    assert "hidden" not in public
    assert TASKS["pr"].data_identity(corpora, Split.HIDDEN)["hidden"] == str(tmp_path / "hidden")
    voices = TASKS["sid"].data_identity(corpora, Split.PUBLIC)
    lexicon.write_text("A\tEY\n")
    assert TASKS["pr"].data_identity(corpora, Split.PUBLIC)["lexicons"] != public["lexicons"]
    assert TASKS["sid"].data_identity(corpora, Split.PUBLIC) == voices


# --- tables -----------------------------------------------------------------------------------------------------------


def test_other_learning_rates_are_no_seeds():
    lines = shown(row(value=58.5, settings=lr(1e-4)), row(value=46.2, seed=2, settings=lr(1e-2)))
    assert lines == [
        ["fbank", "optimizer.lr=0.0001", "1 (n=1)", "58.5"],
        ["fbank", "optimizer.lr=0.01", "2 (n=1)", "46.2"],
    ]


def test_a_spread_is_over_distinct_seeds():
    assert shown(row(value=58.5), row(value=46.2, seed=2)) == [["fbank", "52.4 ± 8.7 (n=2)"]]
    assert shown(row(), row()) == [["fbank", "60.0"]]  # the same run twice
    assert shown(row(seconds=1.0), row(seconds=2.0)) == [["fbank", "60.0"]]  # and run again
    assert shown(row(), row(seed=2), row()) == [["fbank", "60.0 ± 0.0 (n=2)"]]


def test_the_same_seed_with_another_score_is_no_seed():
    """Something that is not recorded differs; which of the two a third run belongs to is not known either."""
    (table,) = tables([row(value=58.5), row(value=46.2), row(value=50.0, seed=2)])
    assert [(line.settings, cell.text) for line, cell in zip(table.lines, table.columns[0].cells, strict=True)] == [
        ("run 1", "58.5"), ("run 2", "46.2"), ("run 3", "50.0"),
    ]  # fmt: skip
    assert any(note.startswith("run 1, 2, ...: ") for note in table.notes)


def test_unknown_settings_are_shown_and_stand_apart():
    assert shown(old_row(value=58.5), old_row(value=46.2)) == [
        ["fbank", "settings unknown; run 1", "58.5"], ["fbank", "settings unknown; run 2", "46.2"],
    ]  # fmt: skip
    assert shown(old_row(value=58.5), row(value=46.2, seed=2)) == [
        ["fbank", "settings unknown", "1 (n=1)", "58.5"], ["fbank", "", "2 (n=1)", "46.2"],
    ]  # fmt: skip
    (table,) = tables([old_row(value=58.5), old_row(value=46.2, seed=2)])  # all that is known is equal
    assert table.columns[0].cells[0].text == "52.4 ± 8.7 (n=2)"
    assert any(note.startswith("settings unknown: ") for note in table.notes)
    assert len(shown(old_row(), old_row(seed=2, steps=4))) == 2
    assert shown(old_row(), row()) == [["fbank", "60.0"]]  # the same run in an old and a new summary


def test_a_line_holds_what_its_tasks_were_run_with():
    """A setting of one task is told with its name, one of all of them without; tasks run apart share a line."""
    both = [{"label": "mine", "task": task} for task in ("er", "sid")]
    assert shown(*(row(**task) for task in both), row(**both[1], value=70.0, settings=lr(0.1))) == [
        ["mine", "SID optimizer.lr=0.001", "60.0", "60.0"], ["mine", "optimizer.lr=0.1", "70.0", "-"],
    ]  # fmt: skip
    frozen, tuned = settings(), {**settings(), "fine_tune": True}
    rows = [row(**both[0], settings=tuned), *(row(**task, settings=frozen) for task in both)]
    assert shown(*rows, row(**both[1], settings=tuned, value=80.0)) == [
        ["mine", "fine_tune=false", "60.0", "60.0"], ["mine", "fine_tune=true", "80.0", "60.0"],
    ]  # fmt: skip


def test_steps_and_seeds_are_told_once_or_by_line():
    rows = [row(), row(task="sid", steps=9), row(label="mine")]
    (table,) = tables(rows)
    assert table.notes == [
        "steps of the downstream training: SID 9, ER 3", "seeds of the downstream training: 1 (n=1)",
    ]  # fmt: skip
    (table,) = tables([*rows, row(label="long", steps=30)])
    assert table.rows()[0][:2] == ["", "steps"]
    assert [line[1] for line in table.rows()[2:]] == ["SID 9, ER 3", "3", "30"]
    assert table.names == ["fbank (SID 9, ER 3 steps)", "mine (3 steps)", "long (30 steps)"]


def test_other_utterances_are_another_column_with_their_own_chance():
    (table,) = tables([row(), row(label="mine", utterances=20, chance=30.0)])
    assert [column.name for column in table.columns] == [
        "ER (10 utterances, chance 25)", "ER (20 utterances, chance 30)",
    ]  # fmt: skip
    assert table.rows()[1:] == [["chance", "25.0", "30.0"], ["fbank", "60.0", "-"], ["mine", "-", "60.0"]]


def test_a_table_leaves_out_what_is_not_there():
    assert shown(row(), row(label="mine", task="sid")) == [["fbank", "-", "60.0"], ["mine", "60.0", "-"]]


def test_text_is_aligned_and_markdown_is_whole():
    (table,) = tables([row(label="学生 a|b\nc"), row(label="x", value=5.0, seed=2), row(label="x", value=7.0, seed=3)])
    assert table.text().splitlines()[1:5] == [
        "            seeds         ER accuracy ↑",
        "chance                             25.0",
        "学生 a|b c  1 (n=1)                60.0",
        "x           2, 3 (n=2)  6.0 ± 1.4 (n=2)",
    ]  # fmt: skip
    lines = table.markdown().splitlines()
    assert lines[2:4] == ["|  | seeds | ER accuracy ↑ |", "| --- | --- | ---: |"]
    assert lines[5] == r"| 学生 a\|b c | 1 (n=1) | 60.0 |"
    assert lines[-3:] == ["", "- steps of the downstream training: 3", "- ±: standard deviation over n seeds"]


def test_the_table_of_equal_lines_has_scores_only():
    """As in README.md."""
    (table,) = tables([row(), row(label="mine"), row(label="mine", task="sid", value=50.0)])
    assert table.markdown().splitlines()[:7] == [
        "**mini corpus, public test sets (percent)**",
        "",
        "|  | SID accuracy ↑ | ER accuracy ↑ |",
        "| --- | ---: | ---: |",
        "| chance | 25.0 | 25.0 |",
        "| fbank | - | 60.0 |",
        "| mine | 50.0 | 60.0 |",
    ]


# --- the command ------------------------------------------------------------------------------------------------------


def test_corpora_and_splits_have_tables_of_their_own(tmp_path, capsys, caplog):
    rows = [row(), row(split="hidden", test_set="hidden", value=40.0), row(corpus="real", value=50.0)]
    write_summary(tmp_path / "summary.json", rows)
    assert cli.main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "corpus" in line] == [
        "mini corpus, public test sets (percent)",
        "mini corpus, hidden test sets (percent)",
        "real corpus, public test sets (percent)",
    ]
    assert [record.message for record in caplog.records] == [
        "results on the mini and real corpora: a table each, not to be compared"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rows": [{"task": "pr"}]}', "is not a summary.json"),
        ("[]", "is not a summary.json"),
        ("{", "is not a summary.json"),
        ("[" * 100_000, "is not a summary.json"),
        ("\xff", "is not a summary.json"),
        ('{"format": 2, "rows": []}', "a summary without results"),
        ('{"format": 3, "rows": []}', "is of format 3, this version reads up to 2: install a newer s3prl-ekd"),
        ('{"format": "2", "rows": []}', "is not a summary.json"),
        ({"value": float("nan")}, "value is nan"),
        ({"value": "60"}, "value is '60'"),
        ({"value": 10**400}, "is not a summary.json"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"label": None}, "label is None"),
        ({"folds": 3}, "folds is 3"),
        ({"settings": []}, "settings is []"),
        ({"task": "prr"}, "unknown task 'prr'"),
        ({"dev": "50"}, "dev is '50'"),
        ({"outcomes": [1]}, "outcomes is [1]"),
        ({"searched": 1}, "searched is 1"),
        ({"searched": True, "settings": None}, "searched, but without a learning rate"),
    ],
)
def test_what_is_no_summary_is_said_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "summary.json"
    if isinstance(content, dict):
        content = json.dumps({"format": 2, "rows": [{**asdict(row()), **content}]})
    path.write_bytes(content.encode("latin-1"))
    assert cli.main(["report", str(path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith(f"s3prl-ekd: error: {path}")
    assert (captured.err.count("\n"), captured.out) == (1, "")
    if message != "a summary without results":
        with pytest.raises(UserError):
            write_summary(path, [row()])  # and nothing is put in its place
    assert path.read_bytes() == content.encode("latin-1")


def test_a_summary_that_is_not_there(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err


# --- the picture ------------------------------------------------------------------------------------------------------


def panels(*rows: Row) -> dict[str, Axes]:
    """Panels with something in them, by title."""
    figure = picture.draw(tables(rows))
    return {axes.get_title(): axes for axes in figure.get_axes() if axes.axison}


def lengths(axes: Axes) -> list[float]:
    """Lengths of the bars, from the top."""
    return [bar.get_width() for bar in axes.patches]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def intervals(axes: Axes) -> list[tuple[float, float]]:
    """Both ends of each interval."""
    return [tuple(path.vertices[:, 0]) for bars in axes.collections for path in bars.get_paths()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_missing_result_is_a_gap_and_no_perfect_error_rate():
    axes = panels(row(task="pr", value=20.0), row(label="mine", task="sid"))["PR"]
    assert lengths(axes) == [20.0]
    assert texts(axes) == ["20.0", "no result"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["fbank", "mine"]
    assert axes.texts[1].get_position()[1] == 1  # in the line of "mine"


def test_a_bar_that_is_too_long_is_marked_and_has_its_true_value():
    rows = [row(task="asr", value=294.7, chance=90.4), row(task="asr", value=118.5, chance=90.4, label="mine")]
    axes = panels(*rows)["ASR"]
    assert lengths(axes) == [picture.HIGHEST, 118.5]
    assert texts(axes) == ["294.7 ▶", "118.5"]
    assert [bar.get_hatch() for bar in axes.patches] == ["///", None]
    assert intervals(axes) == [(113.5, 123.5)]  # none at the end of a bar that is cut
    assert "▶ longer than the 125 % shown" in legend(picture.draw(tables(rows)))
    assert "▶ longer than the 125 % shown" not in legend(picture.draw(tables(rows[1:])))


def test_intervals_are_those_of_the_seeds_or_else_of_the_utterances():
    alone = [row(task="sid", value=50.0, value_error=4.0), row(task="sid", label="old", value_error=None)]
    several = [row(value=60.0), row(value=64.0, seed=2)]
    found = panels(*alone, *several)
    assert intervals(found["SID"]) == [(46.0, 54.0)]
    assert intervals(found["ER"]) == [pytest.approx((62 - 8**0.5, 62 + 8**0.5))]
    assert texts(found["ER"])[0] == "62.0 (n=2)"
    of_seeds, of_utterances = "standard deviation over n seeds", "standard error over the test utterances, one seed"
    assert legend(picture.draw(tables([*alone, *several])))[1:] == [of_seeds, of_utterances]
    assert legend(picture.draw(tables(alone)))[1:] == [of_utterances]
    assert legend(picture.draw(tables(several)))[1:] == [of_seeds]


def test_intervals_that_were_asked_for_are_drawn_with_what_they_say(tmp_path):
    def judged(label: str, wrong: int) -> Row:
        path = tmp_path / f"{label}.csv"
        write_outcomes(path, map(str, range(60)), [int(number < wrong) for number in range(60)], [1] * 60)
        return row(task="pr", label=label, value=100 * wrong / 60, outcomes=(str(path),))

    made = tables([judged("fbank", 40), judged("mine", 10)], baseline="fbank")
    figure = picture.draw(made)
    (axes,) = figure.get_axes()
    assert intervals(axes) == [pytest.approx(cell.interval) for cell in made[0].columns[0].cells]
    assert texts(axes) == ["66.7", "16.7 ▲"]
    assert legend(figure)[1:] == [
        "95 % interval over utterances and seeds",
        "▲ better, ▼ worse than fbank",
    ]


def test_chance_and_where_better_is_are_marked_in_every_panel():
    found = panels(row(chance=25.0), row(task="pr", chance=82.5, value=30.0))
    assert {name: axes.get_xlabel() for name, axes in found.items()} == {
        "PR": "PER (%)   ← lower is better",
        "ER": "accuracy (%)   → higher is better",
    }
    assert {name: set(axes.lines[-1].get_xdata()) for name, axes in found.items()} == {"PR": {82.5}, "ER": {25.0}}


def test_lines_keep_their_colours_and_neighbours_differ():
    rows = [row(label=f"number {n}", task=task) for n in range(9) for task in ("er", "sid")]
    found = [[to_hex(bar.get_facecolor()).upper() for bar in axes.patches] for axes in panels(*rows).values()]
    assert found[0] == found[1]
    assert len(set(found[0])) == 7
    assert all(one != next_one for one, next_one in itertools.pairwise(found[0]))
    assert set(found[0]) == set(pictures.COLOURS)


def test_nothing_sticks_out_or_overlaps(tmp_path):
    """Long names, a formula's dollar signs, many lines, two splits: everything inside, names above one another."""
    names = [f"student {n} of a rather long name, with ${n}$ and\nlr=0.1/{'x' * 60}" for n in range(8)]
    rows = [
        row(label=name, task=task, split=split, test_set=test_set, value=90.0)
        for name in names
        for split in ("public", "hidden")
        for task, test_set in (("pr", "test-clean"), ("pr", "test-noisy"), ("sid", "test"), ("asr", "test-clean"))
    ]
    figure = picture.draw(tables(rows))
    FigureCanvasAgg(figure).draw()
    whole = figure.bbox
    assert len(figure.subfigs) == 2
    for axes in figure.get_axes():
        boxes = [
            text.get_window_extent() for text in (*axes.get_yticklabels(), *axes.texts, axes.title, axes.xaxis.label)
        ]
        assert all(
            whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes
        )
        ticks = [text.get_window_extent() for text in axes.get_yticklabels() if text.get_text()]
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(ticks))
    assert r"with \$0\$ and" in figure.get_axes()[0].get_yticklabels()[0].get_text().replace("\n", " ")


def test_report_draws(tmp_path, capsys):
    write_summary(tmp_path / "summary.json", [row()])
    assert cli.main(["report", str(tmp_path), "--plot", str(tmp_path / "bars.png")]) == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["report", str(tmp_path), "--plot", str(tmp_path / "bars.docx")]) == 2
    assert "bars.docx: cannot be written (" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "bars.png"}


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch, capsys):
    write_summary(tmp_path / "summary.json", [row()])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", str(tmp_path), "--plot", str(tmp_path / "bars.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err == "s3prl-ekd: error: pictures need matplotlib: pip install matplotlib\n"
    assert "fbank" in captured.out


def test_colours_are_as_many_as_asked_for():
    for count in (1, 7, 8, 40):
        assert len(set(pictures.colours(count))) == count
    assert pictures.colours(3) == ["#0072B2", "#D55E00", "#009E73"]  # Okabe and Ito's blue, vermilion, bluish green
