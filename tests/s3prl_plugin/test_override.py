"""s3prl's ``-o``, which may be written as in YAML."""

from __future__ import annotations

import pytest

from s3prl_ekd.s3prl_plugin.runners import override


@pytest.mark.parametrize(
    ("text", "python_text"),
    [
        ("config.a=null", "config.a=None"),
        ("config.a=NULL,,args.b=~", "config.a=None,,args.b=None"),
        ("config.a=true,,config.b=False,,config.c=false", "config.a=True,,config.b=False,,config.c=False"),
        ("config.a=[dev, null]", "config.a=['dev', None]"),
        ("config.a={name: Adam, on: true}", "config.a={'name': 'Adam', True: True}"),
        ("config.a=1e-3,,config.b=float('inf')", "config.a=1e-3,,config.b=float('inf')"),  # as s3prl reads them
        ("config.a=['x', 'y']", "config.a=['x', 'y']"),
        ("config.a=[unclosed", "config.a=[unclosed"),
        ("config.a=nullable,,config.b=", "config.a=nullable,,config.b="),
        ("total_steps", "total_steps"),
    ],
)
def test_overrides_may_be_written_as_in_yaml(text, python_text):
    assert override.in_python(text) == python_text


def test_overrides_reach_s3prl_as_values():
    text = override.in_python("config.a=null,,config.b=true,,config.c=1e-3,,config.d=[dev, test],,config.e=hubert")
    assert override.applied(text, {}) == {"a": None, "b": True, "c": 1e-3, "d": ["dev", "test"], "e": "hubert"}
    assert override.arguments("args.a=None,,args.b=x,,config.c=1,,args.d=1e3") == {"a": None, "b": "x", "d": 1000.0}
