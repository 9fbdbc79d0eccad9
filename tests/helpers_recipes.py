"""Shipped recipes made small: packaged teachers in place of those that would be fetched."""

from __future__ import annotations

from typing import Any

TINY_TEACHERS = {"hubert": "hubert", "robust_hubert": "robust_hubert", "robust": "robust_hubert", "wavlm": "wavlm"}
"""A teacher's name in a recipe, and the packaged one in its place; it has four layers instead of twelve."""


def with_tiny_teachers(recipe: dict[str, Any]) -> dict[str, Any]:
    """Change ``recipe`` in place, which may have none, and return it."""
    for teacher in recipe.get("teachers", ()):
        if "s3prl" in teacher:
            del teacher["s3prl"]
            teacher["mini"] = TINY_TEACHERS[teacher["name"]]
            if isinstance(teacher["layers"], list):
                teacher["layers"] = [_of_four(slot) for slot in teacher["layers"]]
    if (budget := recipe.get("pruning", {}).get("budget", {})).get("parameters", 0) > 2e6:
        budget["parameters"] = 1.2e6  # the packaged teachers have 2.3 million
    return recipe


def _of_four(slot: int | list[int]) -> int | list[int]:
    if isinstance(slot, int):
        return slot // 3
    return sorted({-(-layer // 3) for layer in slot})
