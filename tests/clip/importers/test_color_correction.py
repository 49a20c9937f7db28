"""Colour correction against the formulas written out for single colours, in float64."""

import numpy as np
import pytest

from spatialavatar.clip.importers.color_correction import PRODUCTS, color_matrix, corrected
from spatialavatar.errors import SpatialAvatarError


def to_linear(level: float) -> float:
    value = level / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def to_level(light: float) -> int:
    light = min(max(light, 0), 1)
    return round(255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))


def terms(r: float, g: float, b: float) -> dict[int, list[float]]:
    """Westland and Ripamonti 2004, table 8.2, some of its rows."""
    return {
        3: [r, g, b],
        4: [r, g, b, 1],
        5: [r, g, b, r * g * b, 1],
        8: [r, g, b, r * g, r * b, g * b, r * g * b, 1],
        11: [r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, r * g * b, 1],
        14: [r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, r * g * b, r**3, g**3, b**3, 1],
        20: [
            *[r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, r * g * b],
            *[r * r * g, g * g * b, b * b * r, r * r * b, g * g * r, b * b * g, r**3, g**3, b**3, 1],
        ],
    }


@pytest.mark.parametrize("count", terms(0, 0, 0))
def test_polynomials(count: int) -> None:
    rng = np.random.default_rng(count)
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    matrix = rng.normal(0, 0.05, (3, count))
    matrix[:, :3] += np.eye(3)
    result = corrected(image, color_matrix(matrix.tolist(), "test"))
    for row in range(5):
        for column in range(7):
            r, g, b = (to_linear(level) for level in image[row, column])
            expected = [to_level(light) for light in matrix @ terms(r, g, b)[count]]
            assert np.abs(result[row, column].astype(int) - expected).max() <= 1  # float32 may round the other way
            if count == 3:
                assert (result[row, column] == expected).mean() >= 2 / 3


def test_every_expansion_has_its_count() -> None:
    assert list(PRODUCTS) == [3, 4, 5, 7, 8, 10, 11, 14, 16, 17, 19, 20, 22, 35]
    for count, products in PRODUCTS.items():
        assert len({"".join(sorted(p)) for p in products}) == count  # each product once
        assert ("1" in products) == (count not in (3, 16, 19, 22))
    assert {len(p) for p in PRODUCTS[35]} == {1, 2, 3, 4}


def test_identity_changes_nothing_and_light_is_clipped() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert (corrected(image, np.eye(3)) == image).all()
    assert (corrected(image, -np.eye(3)) == 0).all()
    assert (corrected(image[1:], 1e4 * np.eye(3)) == 255).all()


@pytest.mark.parametrize(
    "value", [None, 1, [[1, 2, 3]], np.eye(4).tolist(), np.ones((3, 6)).tolist(), [["a"] * 3] * 3, [[1e999, 0, 0]] * 3]
)
def test_refused_matrices(value: object) -> None:
    with pytest.raises(SpatialAvatarError, match=r"color_calibration\.json: camera 7 holds "):
        color_matrix(value, "color_calibration.json: camera 7")
