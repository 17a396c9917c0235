"""The renderer against geometry: areas, centroids, and what a pixel may be."""

from __future__ import annotations

import numpy as np
import pytest

from difalign.embedded.render import SHAPE_AREA, coverage, render
from difalign.embedded.scenes import BACKGROUND, COLORS, SHAPES, SIZE, Placed, Thing


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centroid_of_a_large_shape(shape) -> None:
    radius, axis = 40.0, np.arange(200) + 0.5 - 100.3
    dx, dy = np.meshgrid(axis, axis - 0.4)
    alpha = coverage(shape, dx, dy, radius)
    area = alpha.sum()
    assert area / radius**2 == pytest.approx(SHAPE_AREA[shape], rel=0.01)
    assert (alpha * dx).sum() / area == pytest.approx(0.0, abs=0.15)
    assert (alpha * dy).sum() / area == pytest.approx(0.0, abs=0.15)


def test_shapes_have_different_masks() -> None:
    axis = np.arange(40) + 0.5 - 20
    dx, dy = np.meshgrid(axis, axis)
    masks = {shape: coverage(shape, dx, dy, np.sqrt(200.0 / SHAPE_AREA[shape])) for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            iou = np.minimum(masks[a], masks[b]).sum() / np.maximum(masks[a], masks[b]).sum()
            assert iou > 0.99 if a == b else iou < 0.86


def test_centre_has_the_colour_and_corners_the_background() -> None:
    for name, rgb in COLORS.items():
        image = render([(Placed(Thing(name, "circle"), 18.0, 18.0, 4.5),)])[0]
        np.testing.assert_allclose(image[:, 17, 17] * 255, rgb, atol=1e-3)
        np.testing.assert_allclose(image[:, 0, 0] * 255, BACKGROUND, atol=1e-3)


def test_batch_equals_one_by_one_and_later_objects_cover_earlier_ones() -> None:
    below = Placed(Thing("red", "square"), 12.0, 12.0, 4.5)
    above = Placed(Thing("white", "cross"), 12.0, 12.0, 4.5)
    other = Placed(Thing("green", "triangle"), 24.0, 20.0, 4.3)
    scenes = [(below, above), (other,), ()]
    together = render(scenes)
    assert together.shape == (3, 3, SIZE, SIZE)
    for scene, image in zip(scenes, together, strict=True):
        np.testing.assert_array_equal(render([scene])[0], image)
    np.testing.assert_allclose(together[0, :, 12, 12] * 255, COLORS["white"], atol=1e-3)
