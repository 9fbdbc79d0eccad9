"""Groups of layers by hierarchical clustering; how they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from s3prl_ekd.calibration import groups, picture
from s3prl_ekd.calibration.groups import FoundGroups
from s3prl_ekd.config.recipe import LayerClusters

LINKAGES = ("average", "complete", "single", "ward")


def similarity(*members, inside=0.9, between=0.2):
    """Of layers in groups."""
    count = sum(map(len, members))
    matrix = torch.full((count, count), between, dtype=torch.float64)
    for group in members:
        for layer in group:
            matrix[layer, list(group)] = inside
    return matrix.fill_diagonal_(1.0)


def group(matrix, clusters, method):
    return groups.group(matrix, LayerClusters(clusters=clusters, linkage=method))


def members(slots):
    return [slot if isinstance(slot, tuple) else (slot,) for slot in slots]


@pytest.mark.parametrize("method", LINKAGES)
def test_groups_are_found_ordered_by_their_first_layers(method):
    assert group(similarity((4, 5), (0, 2), (1, 3, 6)), 3, method) == ((0, 2), (1, 3, 6), (4, 5))


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("clusters", range(1, 6))
def test_there_are_as_many_as_asked_for_also_where_all_are_equally_alike(method, clusters):
    slots = group(similarity(*((layer,) for layer in range(5))), clusters, method)
    assert len(slots) == clusters
    assert sorted(layer for group in members(slots) for layer in group) == [*range(5)]


@pytest.mark.parametrize("method", LINKAGES)
def test_linkages_are_those_of_points_on_a_sphere(method):
    """Ward's, of unit vectors themselves; the others, of 1 - cosine."""
    points = np.random.default_rng(0).normal(size=(9, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    expected = linkage(points, "ward") if method == "ward" else linkage(points, method, metric="cosine")
    np.testing.assert_allclose(groups.join(torch.tensor(points @ points.T), method)[:, 2], expected[:, 2], atol=1e-7)
    labels = fcluster(expected, 3, "maxclust")
    slots = group(torch.tensor(points @ points.T), 3, method)
    assert all(len({labels[layer] for layer in group}) == 1 for group in members(slots))


@pytest.mark.parametrize(("measure", "linkage"), [("cka", "average"), ("cosine", "ward")])
def test_the_picture_shows_every_layer_in_the_colour_of_its_group(measure, linkage, tmp_path):
    asked = LayerClusters(clusters=3, similarity=measure, linkage=linkage)
    matrix = similarity((0, 1, 5), (2, 3), (4,))
    one = FoundGroups("$wavlm$", asked, groups.group(matrix, asked), matrix)
    figure = picture.draw(one)
    heat, tree = figure.axes[:2]
    colours = {label.get_text(): label.get_color() for label in heat.get_xticklabels()}
    assert colours == {label.get_text(): label.get_color() for label in tree.get_xticklabels()}
    assert list(colours) == ["0", "1", "2", "3", "4", "5"]
    assert [len({colours[layer] for layer in group}) for group in ("015", "23", "4")] == [1, 1, 1]
    assert len(set(colours.values())) == 3
    assert heat.images[0].get_array().tolist() == matrix.tolist()
    picture.plot(one, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 10_000
