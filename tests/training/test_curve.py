"""s3prl-ekd curve: what it reads of either road's log, and what its picture shows (looked at as objects)."""

from __future__ import annotations

from pathlib import Path

import helpers_train as h
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboardX import SummaryWriter

from s3prl_ekd import cli, pictures
from s3prl_ekd.files import write_yaml
from s3prl_ekd.training.curve import draw, joined, logs_of_stages, read_log


def log_of_distill(run: Path, step: int, text: str) -> Path:
    path = run / f"logs/csv/from-step-{step:08d}/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def targets(*names: str, magnitudes: bool = True) -> dict[str, list[tuple[int, float]]]:
    kinds = ("cosine", "magnitude") if magnitudes else ("cosine",)
    return {f"train/{kind}/{name}": [(1, 0.1), (2, 0.5)] for name in names for kind in kinds}


def cosines(series: dict) -> Axes:
    return draw(series).get_axes()[1]


def legend(axes: Axes) -> dict[str, tuple[str, str]]:
    """Text -> colour and dashes."""
    found = axes.get_legend()
    lines = [(line.get_color(), line.get_linestyle()) for line in found.get_lines()]
    return dict(zip([text.get_text() for text in found.get_texts()], lines, strict=True))


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_resumed_part_replaces_the_steps_it_repeats(tmp_path):
    log_of_distill(tmp_path, 0, "step,train/loss,dev/loss\n10,3.0,\n20,2.0,\n20,,9.0\n30,1.5,\n")
    log_of_distill(tmp_path, 20, "step,train/loss\n30,1.0\n40,0.5\n")
    assert read_log(tmp_path) == {
        "train/loss": [(10, 3.0), (20, 2.0), (30, 1.0), (40, 0.5)], "dev/loss": [(20, 9.0)],
    }  # fmt: skip


def test_a_line_that_is_still_being_written_does_not_count(tmp_path):
    log_of_distill(tmp_path, 0, "step,train/loss\n10,3.0\n20,2.")
    assert read_log(tmp_path) == {"train/loss": [(10, 3.0)]}


def test_a_run_of_run_pretrain_is_read_too(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:  # as s3prl's runner and our expert do
        for step in (10, 20):
            writer.add_scalar("ekd_student/train-loss", 7.0, global_step=step)
            writer.add_scalar("ekd_student/train-lr", 1e-3, global_step=step)
            writer.add_scalar("ekd_student/train-mean_loss", 30 / step, global_step=step)
            writer.add_scalar("ekd_student/train-cosine/hubert/4", step / 40, global_step=step)
    expected = {"train/loss": [(10, 3.0), (20, 1.5)], "train/cosine/hubert/4": [(10, 0.25), (20, 0.5)]}
    assert read_log(tmp_path) == expected
    (path,) = tmp_path.glob("events*")
    path.write_bytes(path.read_bytes()[:-5])  # while it is written
    assert read_log(tmp_path) == {**expected, "train/cosine/hubert/4": [(10, 0.25)]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("logs/csv/from-step-00000000/metrics.csv", b"step,train/loss\n10,much\n", "is damaged (could not convert"),
        ("logs/csv/from-step-00000000/metrics.csv", b"train/loss\n1.0\n", "is damaged (no entry 'step')"),
        ("events.out.tfevents.1", (9).to_bytes(8, "little") + b"\xff" * 17, "is damaged (Error parsing message"),
        ("events.out.tfevents.1", b"\xff" * 40, "no log there"),
        ("logs/csv/from-step-00000000/metrics.csv", b"", "no log there"),
        ("something", b"", "name the output folder of a run of s3prl-ekd distill or run_pretrain"),
    ],
)
def test_what_is_no_log_is_said_in_one_line(tmp_path, capsys, name, content, message):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert cli.main(["curve", str(tmp_path / "run"), str(tmp_path / "curve.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "curve.png").exists()


def test_a_format_that_is_none(tmp_path, capsys):
    log_of_distill(tmp_path / "run", 0, "step,train/loss\n10,3.0\n")
    assert cli.main(["curve", str(tmp_path / "run"), str(tmp_path / "curve.jpeg2")]) == 2
    assert "curve.jpeg2: cannot be written (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- the picture ------------------------------------------------------------------------------------------------------


def test_colours_tell_teachers_and_dashes_layers():
    axes = cosines(targets("hubert/4", "hubert/12", "wavlm/12", "wavlm/4"))
    blue, vermilion = pictures.COLOURS[:2]
    drawn = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert drawn == [(blue, "-"), (blue, "--"), (vermilion, "--"), (vermilion, "-")]
    assert legend(axes) == {
        "hubert": (blue, "-"), "wavlm": (vermilion, "-"), "layer 4": ("dimgray", "-"), "layer 12": ("dimgray", "--"),
    }  # fmt: skip


def test_what_is_aggregated_is_named_and_black():
    series = {**targets("average/4", magnitudes=False), **targets("hubert/4")}
    assert list(legend(cosines(series)).items())[:2] == [
        ("mean of the teachers", ("black", "-")), ("hubert", (pictures.COLOURS[0], "-")),
    ]  # fmt: skip
    assert "teachers side by side" in legend(cosines(targets("concatenation/4+8", magnitudes=False)))
    assert "average" in legend(cosines(targets("average/4"))), "a teacher of that name"


def test_many_layers_and_teachers_all_differ():
    axes = cosines(targets(*(f"teacher{n}/{layer}" for n in range(9) for layer in range(13))))
    styles = {
        (line.get_color(), line.get_linestyle(), str(line._dash_pattern), line.get_marker()) for line in axes.lines
    }
    assert len(styles) == 9 * 13


def test_names_are_shown_as_they_are():
    axes = cosines(targets("_mine/1", "a$b$/1"))
    assert [*legend(axes)][:2] == [" _mine", r"a\$b\$"]


def test_axes_have_units_and_losses_names():
    losses, agreement = draw({"train/loss": [(1, 2.0), (2, 1.0)], "dev/loss": [(2, 1.5)], **targets("a/1")}).get_axes()
    assert [*legend(losses)] == ["training", "development set"]
    assert [axes.get_xlabel() for axes in (losses, agreement)] == ["optimizer step"] * 2
    assert losses.get_ylabel() == "loss, mean over frames (no unit)"
    assert agreement.get_ylabel() == "cosine similarity, mean over frames"


def test_learnt_weights_are_drawn_where_there_are_any():
    """In the teachers' colours of the agreement beside them."""
    weights = {f"train/weight/{name}": [(1, 0.5), (2, 0.5 + 0.1 * i)] for i, name in enumerate(("a/1-3", "b/1-3"))}
    _, agreement, learnt = draw({"train/loss": [(1, 2.0)], **targets("a/1-3", "b/1-3"), **weights}).get_axes()
    assert learnt.get_title() == "Learnt weights of the teachers"
    assert learnt.get_ylim() == (0, 1)
    assert [list(line.get_ydata()) for line in learnt.lines] == [[0.5, 0.5], [0.5, 0.6]]
    assert legend(learnt) == legend(agreement)
    assert len(draw(targets("a/1-3")).get_axes()) == 2


def test_one_point_is_seen_and_none_is_said():
    losses, agreement = draw({"train/loss": [(5, 2.0)]}).get_axes()
    assert losses.lines[0].get_marker() == "."
    assert [text.get_text() for text in agreement.texts] == ["none logged"]


def test_the_legend_stays_inside():
    figure = draw(targets(*(f"a_teacher_of_some_name_{n}/{layer}" for n in range(9) for layer in range(13))))
    FigureCanvasAgg(figure).draw()
    box = figure.get_axes()[1].get_legend().get_window_extent()
    assert figure.bbox.y0 <= box.y0
    assert box.y1 <= figure.bbox.y1
    assert box.x1 <= figure.bbox.x1


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stages_are_drawn_as_one(tmp_path):
    """Steps are counted on, a dotted line says where a stage begins, and the size of a pruned student is shown."""
    for name, text in (
        (
            "prune",
            "step,train/loss,pruning/expected_parameters,pruning/target_parameters\n10,3.0,90,95\n20,2.0,50,50\n",
        ),
        ("recover", "step,train/loss\n10,1.0\n"),
    ):
        log_of_distill(tmp_path / name, 0, text)
    stages = [
        {"name": "prune", "max_steps": 20},
        {"name": "recover", "max_steps": 10},
        {"name": "later", "max_steps": 9},
    ]
    write_yaml(tmp_path / "recipe.yaml", h.recipe(tmp_path, more={"stages": stages}).to_mapping())
    names, logs = zip(*logs_of_stages(tmp_path), strict=True)
    assert names == ("prune", "recover"), "the third has not begun"
    series, begins = joined(logs)
    assert series["train/loss"] == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert begins == [0, 20]
    losses, sizes, _ = draw(series, dict(zip(begins, ("prune", "recover"), strict=True))).get_axes()
    assert [text.get_text() for text in losses.texts] == ["prune", "recover"]
    assert [list(line.get_ydata()) for line in sizes.get_lines()[:2]] == [[90, 50], [95, 50]]
    assert sizes.get_ylabel() == "parameters"
    for runs in ([tmp_path], [tmp_path / "prune", tmp_path / "recover"]):
        assert cli.main(["curve", *map(str, runs), str(tmp_path / "curve.png")]) == 0
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "log", ["", "step,train/loss\n", "step,train/loss\n10,1."], ids=["empty", "heading", "half a line"]
)
def test_a_stage_that_has_not_logged_a_step_is_left_out(log, tmp_path, capsys):
    log_of_distill(tmp_path / "recover", 0, log)
    stages = [{"name": "prune", "max_steps": 20}, {"name": "recover", "max_steps": 10}]
    write_yaml(tmp_path / "recipe.yaml", h.recipe(tmp_path, more={"stages": stages}).to_mapping())
    assert cli.main(["curve", str(tmp_path), str(tmp_path / "curve.png")]) == 2
    assert "no log there" in capsys.readouterr().err
    log_of_distill(tmp_path / "prune", 0, "step,train/loss\n10,3.0\n")
    assert logs_of_stages(tmp_path) == [("prune", {"train/loss": [(10, 3.0)]})]
    assert cli.main(["curve", str(tmp_path), str(tmp_path / "curve.png")]) == 0
