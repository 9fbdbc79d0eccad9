"""Units (k-means clusters) and principal components of a teacher's hidden states.

Shapes: N frames of D features; K units; P components.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from s3prl_ekd.config.recipe import UnitsConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.targets import ComponentFit, UnitFit

logger = logging.getLogger(__name__)


class Moments:
    """Mean and covariance of rows that are added part by part, in float64."""

    def __init__(self, width: int) -> None:
        self.frames = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows (N, D)."""
        rows = rows.double()
        self.frames += len(rows)
        self._sum += rows.sum(dim=0)
        self._products.addmm_(rows.T, rows)

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self._sum / self.frames

    @property
    def covariance(self) -> Tensor:
        """(D, D)"""
        return self._products / self.frames - torch.outer(self.mean, self.mean)


def principal_components(moments: Moments, count: int, teacher: str) -> ComponentFit:
    """The directions of most variance, of unit length and at right angles to each other, that of most variance first.

    The same as scikit-learn's ``PCA``, of a covariance that is summed up instead of all frames in memory. A direction
    points to where its largest coordinate is positive.

    Raises:
        UserError: there are too few frames or features.
    """
    width = len(moments.mean)
    if count > width:
        raise UserError(f"teacher {teacher!r}: principal_components is {count}, but its layers have {width} features")
    if count >= moments.frames:
        raise UserError(
            f"teacher {teacher!r}: {count} principal components need more frames than that, and there are"
            f" {moments.frames}; lower principal_components, or give more speech (data.cuts)"
        )
    covariance = moments.covariance
    _require_finite(covariance, teacher)
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -count:].flip(-1)  # (D, P)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return ComponentFit(moments.mean.float(), (directions * largest.sign()).float())


def units(rows: Tensor, settings: UnitsConfig, seed: int, teacher: str) -> UnitFit:
    """Clusters of rows (N, D) by scikit-learn's ``MiniBatchKMeans``.

    Raises:
        UserError: there are fewer frames than clusters, or frames that are all the same or not finite.
    """
    from sklearn.cluster import MiniBatchKMeans  # takes a second, which most runs do not need

    if settings.count > len(rows):
        raise UserError(
            f"teacher {teacher!r}: units.count is {settings.count}, but there are {len(rows)} frames; lower it, or"
            f" raise units.utterances (now {settings.utterances})"
        )
    _require_finite(rows, teacher)
    if (rows == rows[0]).all():
        raise UserError(f"teacher {teacher!r}: layer {settings.layer} is the same for all frames; it has no units")
    logger.info("teacher %s: finding %d units of layer %d", teacher, settings.count, settings.layer)
    found = MiniBatchKMeans(settings.count, batch_size=4096, n_init=3, random_state=seed).fit(rows.numpy())
    centres = torch.from_numpy(found.cluster_centers_).float()
    # The mean over all frames and centres of |x - c|^2.
    products = rows.double().mean(dim=0) @ centres.double().mean(dim=0)
    squares = sum(float(one.double().square().sum(dim=-1).mean()) for one in (rows, centres))
    return UnitFit(centres, squares - 2 * float(products))


def _require_finite(values: Tensor, teacher: str) -> None:
    if not values.isfinite().all():
        raise UserError(f"teacher {teacher!r}: gives values that are not finite")
