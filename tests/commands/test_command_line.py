"""``s3prl-ekd`` on the command line: words in any order, mistakes in one line, help that helps, recipes by name."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
import yaml

from s3prl_ekd import assets, cli, recipe_files
from s3prl_ekd.commands import cache_targets as cache_command
from s3prl_ekd.cuts import manifests
from s3prl_ekd.errors import UserError


def parsed(line: str):
    words = shlex.split(line)
    return cli.build_parser(words[0]).parse_args(words)


def said(line: str, capsys) -> str:
    """The one line with which a command refuses something."""
    capsys.readouterr()
    assert cli.main(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (message,) = captured.err.splitlines()
    return message.removeprefix("s3prl-ekd: error: ")


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "distill R --resume a.b=1 c=2",
        "distill --resume R a.b=1 c=2",
        "distill R a.b=1 --resume c=2",
        "distill R a.b=1 c=2 --resume",
    ],
)
def test_settings_stand_before_and_after_options(line):
    args = parsed(line)
    assert (args.recipe, args.overrides, args.resume) == ("R", ["a.b=1", "c=2"], True)


def test_settings_stand_anywhere_in_cache_targets():
    args = parsed("cache-targets R --estimate OUT --part 1/8 key=v")
    assert (args.recipe, args.out, args.overrides, args.part, args.estimate) == ("R", "OUT", ["key=v"], "1/8", True)
    assert parsed("distill R").overrides == parsed("cache-targets R OUT").overrides == []


@pytest.mark.parametrize(
    "line",
    [
        "data librispeech --parts train dev CORPUS OUT",
        "data librispeech CORPUS --parts train dev OUT",
        "data librispeech CORPUS OUT --parts train dev",
    ],
)
def test_parts_leave_the_folders_alone(line, monkeypatch):
    calls = []
    monkeypatch.setattr(manifests, "write_corpus", lambda corpus, *rest: calls.append(rest) or [])
    assert cli.main(line.split()) == 0
    assert calls == [("CORPUS", "OUT", ["train", "dev"])]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("distil mini/ekd.yaml", "no command 'distil'; did you mean 'distill'? valid: cache-targets, "),
        ("distil data", "no command 'distil'; did you mean 'distill'?"),
        ("distill", "the following arguments are required: recipe; s3prl-ekd distill --help shows how"),
        ("distill mini/ekd.yaml --resmue", "no option --resmue; did you mean '--resume'?"),
        ("cache-targets mini/ekd.yaml OUT --verfiy=1", "no option --verfiy; did you mean '--verify'?"),
        ("recipes mini a b", "'b' is one word too many"),
        ("data librispech a b", "KIND: unknown value 'librispech'; did you mean 'librispeech'?"),
        ("data shar a b --audio flack", "--audio: unknown value 'flack'; did you mean 'flac'?"),
        ("data librispeech --parts train dev", "data librispeech: CORPUS and OUT are both needed"),
        ("data librispeech CORPUS", "data librispeech: CORPUS and OUT are both needed"),
        ("data tsv a b --rate fast", "argument --rate: fast: expected a whole number from 1 to "),
        ("data shar a b --shard-size 0", "argument --shard-size: 0: expected a whole number from 1 to "),
        (
            "init-student mini/config_model.yaml out --seed -1",
            "argument --seed: -1: expected a whole number from 0 to ",
        ),
        ("mini-corpus out --seed 4294967296", "argument --seed: 4294967296: expected a whole number from 0 to "),
        ("mini-corpus out --jobs 0", "argument --jobs: 0: expected a whole number from 1 to "),
        ("distill mini/edk.yaml", "mini/edk.yaml: no such file (working folder: "),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line(line, message, capsys):
    assert said(line, capsys).startswith(message)


def test_an_unknown_recipe_gets_the_nearest(capsys):
    for command in ("distill mini/edk.yaml", "cache-targets mini/edk.yaml OUT"):
        assert said(command, capsys).endswith("and none of s3prl-ekd's recipes; did you mean 'mini/ekd.yaml'?")
    assert "did you mean 'mini/config_model.yaml'?" in said("init-student mini/confg_model.yaml OUT", capsys)
    assert said("distill qqq", capsys).endswith("s3prl-ekd recipes lists them")


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_examples_that_are_understood(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert cli.COMMANDS[command].examples
    for example in cli.COMMANDS[command].examples:
        assert f"s3prl-ekd {example}\n" in shown
        assert parsed(example).command == command


@pytest.mark.parametrize("kind", ["librispeech", "musan", "rirs", "folder", "tsv", "shar"])
def test_help_of_a_kind_of_data_has_an_example(kind, capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", kind, "--help"])
    (example,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  s3prl-ekd data"))
    assert parsed(example.strip().removeprefix("s3prl-ekd ")).kind == kind


def test_help_shows_defaults(capsys):
    for line, default in (
        ("cache-targets --help", "0/1"),
        ("mini-corpus --help", "0"),
        ("data tsv --help", "16000"),
        ("data shar --help", "flac"),
    ):
        with pytest.raises(SystemExit):
            cli.main(line.split())
        assert f"(default: {default})" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli.main(["recipes", "--help"])
    assert "(default: print the list)" in " ".join(capsys.readouterr().out.split())


# --- recipes by name --------------------------------------------------------------------------------------------------


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        for name in ("mini/ekd.yaml", "recipes/mini/ekd.yaml"):
            assert cli.main(["distill", name, "--print-config", "output=here"]) == 0
            assert yaml.safe_load(capsys.readouterr().out)["output"] == "here"
            assert f"{name}: not here, so the one that comes with s3prl-ekd: {assets.recipe('mini/ekd.yaml')}" in (
                caplog.messages
            )
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_users_wins(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    recipe = yaml.safe_load(assets.recipe("mini/ekd.yaml").read_text()) | {"output": "mine"}
    Path("mini/ekd.yaml").write_text(yaml.safe_dump(recipe))
    with caplog.at_level(logging.INFO):
        assert cli.main(["distill", "mini/ekd.yaml", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["output"] == "mine"
    assert "comes with s3prl-ekd" not in caplog.text


def test_every_packaged_yaml_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = assets.recipe()
    for folder in recipe_files.folders().values():
        for file in folder.glob("*.yaml"):
            assert recipe_files.find(str(file.relative_to(root))) == str(file)
    with pytest.raises(UserError, match=r"^-c slurm/distill.sbatch: no such file"):
        recipe_files.find("slurm/distill.sbatch", "-c")


def test_the_commands_share_one_way_to_a_recipe(tmp_path, monkeypatch, capsys):
    """Also cache-targets, and init-student to its end."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--part: expected K/N"):  # the recipe was read before
        cache_command.run(parsed("cache-targets mini/ekd.yaml OUT --part x"))
    assert cli.main(["init-student", "mini/config_model.yaml", "student"]) == 0
    assert Path("student/model.safetensors").is_file()
