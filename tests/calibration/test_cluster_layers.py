"""`s3prl-ekd cluster-layers`: what it prints and writes."""

from __future__ import annotations

import json

import yaml

from s3prl_ekd.cli import main


def test_the_command_prints_lines_for_the_recipe(recipe, tmp_path, capsys):
    config = recipe({"clusters": 3, "utterances": 3}, [1, 3, 5])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.to_mapping()))
    assert main(["cluster-layers", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out")]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "# teacher0: 3 groups of 6 hidden states"
    assert yaml.safe_load(second) == {"layers": [0, [1, 2], [3, 4, 5]]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layers-teacher0.json", "layers-teacher0.png"]
    stored = json.loads((tmp_path / "out" / "layers-teacher0.json").read_text())
    assert stored["groups"] == [0, [1, 2], [3, 4, 5]]
    assert len(stored["similarity"]) == 6
    assert not (tmp_path / "run").exists()


def test_the_command_says_where_nothing_is_to_be_found(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe([1, 3]).to_mapping()))
    assert main(["cluster-layers", str(tmp_path / "recipe.yaml")]) == 2
    assert "no teacher asks for groups of layers" in capsys.readouterr().err
