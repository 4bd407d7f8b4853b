"""Which raw matches count as those of one scene."""

from __future__ import annotations

import numpy as np
import pytest

from edm_hloc.base.matches import Matches
from edm_hloc.matching.connections import agreeing_matches


def two_views(number: int, wrong: int, scale: float = 1.0) -> Matches:
    """Matches of random points seen by two cameras a step apart, the last ones at random."""
    rng = np.random.default_rng(0)
    world = rng.uniform([-3, -2, 4], [3, 2, 9], (number, 3))
    views = []
    for x in (0.0, 1.0):
        seen = world - [x, 0.1 * x, 0.2 * x]
        views.append(800 * seen[:, :2] / seen[:, 2:] + [512, 384] + rng.normal(0, 0.3, (number, 2)))
    views[1][number - wrong :] = rng.uniform(0, [1024, 768], (wrong, 2))
    first, second = (np.float32(scale * v) for v in views)
    return Matches(first, second, np.linspace(1, 0.5, number, dtype=np.float32))


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.25])
def test_matches_of_one_scene_agree_at_any_size(scale: float) -> None:
    assert agreeing_matches(two_views(400, 100, scale)) == pytest.approx(302, abs=6)


def test_random_matches_do_not() -> None:
    assert agreeing_matches(two_views(400, 400)) < 50
    assert agreeing_matches(two_views(7, 0)) == 0
    assert agreeing_matches(two_views(0, 0)) == 0
    one_place = np.zeros((30, 2), np.float32)
    assert agreeing_matches(Matches(one_place, one_place, np.ones(30, np.float32))) == 0


def test_the_best_thousand_count() -> None:
    assert agreeing_matches(two_views(3000, 1500)) == pytest.approx(1000, abs=10)
