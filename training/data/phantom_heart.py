"""Procedural short-axis cardiac MRI: phantoms of a left ventricle, its myocardium, a right ventricle, what is around.

Everything is drawn in millimetres around the middle of the picture, and nothing random hangs on the number of pixels,
so one seed is the same anatomy at every size.

Ranges written as "5-95 %: a to b" were measured on 385 slices of ACDC's patients 1 to 20, prepared as ``fit`` prepares
them (grey levels as 0 to 1, radii as those of discs of the same area, angles and depths along rays from the centroid of
LV and MYO).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from training.data.classes import FIELD_OF_VIEW, HEART
from training.data.phantom import SMALLEST_SIZE, Array, Phantoms, at_least

LV, MYO, RV = (HEART.index(name) for name in ("LV", "MYO", "RV"))
RAYS = 720
ANGLES = np.arange(RAYS, dtype=np.float32) * np.float32(2 * np.pi / RAYS)
ACQUIRED = 102  # pixels of 1.5625 mm, ACDC's, that noise is drawn in
RING = 1.5  # pixels that myocardium is thick at least, else the ring is not closed


@dataclass(frozen=True)
class Heart:
    """Millimetres from the LV's axis (``x`` to the right and ``y`` down from the picture's middle) for every ray."""

    x: float
    y: float
    level: float  # 0 at the base, 1 at the apex
    endocardium: Array
    epicardium: Array
    free_wall: Array  # of the RV; as the epicardium where there is none


def heart_pair(seed: int, size: int) -> tuple[Array, NDArray[np.uint8]]:
    """Draw one phantom.

    Args:
        seed: 0 or more; the anatomy depends on it alone.
        size: height and width in pixels, 32 or more; together they are 160 mm.

    Returns:
        image float32 [1, size, size] in [-1, 1], and mask uint8 [1, size, size]: 0 background, 1 LV, 2 MYO, 3 RV.

    Raises:
        ValueError: `seed` or `size` is too small.
    """
    at_least(0, seed=seed)
    at_least(SMALLEST_SIZE, size=size)
    rng = default_rng(seed)
    heart = _draw_heart(rng)
    pixel = FIELD_OF_VIEW / size
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(pixel) - np.float32(FIELD_OF_VIEW / 2)
    x, y = axis[None, :] - np.float32(heart.x), axis[:, None] - np.float32(heart.y)
    r = np.sqrt(x * x + y * y)
    ray = (np.arctan2(y, x) * np.float32(RAYS / 2 / np.pi)).astype(np.intp)  # negative ones count from the end
    mask = _mask(heart, r, ray, pixel)
    image = _picture(rng, heart, x, y, r, ray, size)
    return image[None], mask[None]


class HeartPhantoms(Phantoms):
    """``count`` phantom hearts; item i is {"image": float32 [1, H, W] in [-1, 1], "mask": uint8 [1, H, W]}."""

    pair = staticmethod(heart_pair)
    labels = HEART


def _draw_heart(rng: Generator) -> Heart:
    level = rng.uniform(0, 0.96)
    size = np.clip(rng.normal(44.5, 4.5), 33, 52)
    radius = max(size * np.sqrt(1 - level**3.2), 13)  # 5-95 %: 19 to 49 mm
    thickness = np.clip(8.2 * np.exp(rng.normal(0, 0.24)), 4.8, 0.6 * radius)  # 5-95 %: 5.6 to 12.4 mm
    axes_ratio, tilt = abs(rng.normal(0, 0.04)), rng.uniform(0, np.pi)  # 5-95 %: long over short 1.02 to 1.18
    oval = 1 + axes_ratio * np.cos(2 * (ANGLES - tilt))
    epicardium = radius * oval * (1 + _ripples(rng, range(3, 7), 0.013))
    # 5-95 %: the thinnest place (5 %) 2.8 to 9.1 mm, the thickest 7.5 to 16.1
    wall = np.maximum(thickness * (1 + _ripples(rng, range(1, 6), 0.17)), 3.9)
    endocardium = np.maximum(epicardium - wall, 0.3 * epicardium)

    free_wall = epicardium.copy()
    end = rng.uniform(0.72, 0.96)  # 15 % of the slices have no RV, nearly all at the apex
    widest = rng.triangular(18, 44, 50)
    if level < end:
        depth = max(widest * (1 - (level / end) ** 2.5) ** 0.7, 7)  # 5-95 %: 8.5 to 41.5 mm
        # 5-95 %: 40 to 123 degrees, fewer where it is shallow
        extent = np.radians(np.clip(115 * (1 - np.exp(-depth / 10)) + rng.normal(0, 8), 25, 132))
        bearing = np.pi + np.radians(np.clip(rng.normal(-9, 32), -62, 62))  # 5-95 %: 56 below to 54 above the left
        peak, fullness = rng.uniform(0.18, 0.52), rng.uniform(0.9, 1.5)  # 5-95 %: 0.17 to 0.56 of the way up
        along = ((ANGLES - bearing + np.pi) % (2 * np.pi) - np.pi) / extent + 0.5
        inside = np.clip(along, 0, 1)
        crescent = (inside / peak) ** (fullness * peak) * ((1 - inside) / (1 - peak)) ** (fullness * (1 - peak))
        bumps = np.clip(1 + _ripples(rng, range(3, 9), 0.06), 0.7, 1.15)
        free_wall += _rounded(depth * np.minimum(crescent * bumps, 1))

    across, down = free_wall * np.cos(ANGLES), free_wall * np.sin(ANGLES)
    middle = [-(axis.min() + axis.max()) / 2 for axis in (across, down)]
    tables = (table.astype(np.float32) for table in (endocardium, epicardium, free_wall))
    return Heart(float(middle[0]), float(middle[1]), level, *tables)


def _rounded(table: Array) -> Array:
    """The mean over 12 degrees, weighed by a Hann window."""
    window = np.hanning(25)
    around = np.concatenate([table[-12:], table, table[:12]])
    return np.convolve(around, window / window.sum(), "valid")


def _mask(heart: Heart, r: Array, ray: NDArray[np.intp], pixel: float) -> NDArray[np.uint8]:
    """Classes at the middle of each pixel; an RV narrower than a pixel is left out."""
    cavity = np.minimum(heart.endocardium, heart.epicardium - np.float32(RING * pixel))
    deep = heart.free_wall - heart.epicardium >= max(2.0, pixel)
    right = np.where(deep, heart.free_wall, 0)
    mask = (r < right[ray]).view(np.uint8) * np.uint8(RV)
    mask[r < heart.epicardium[ray]] = MYO
    mask[r < cavity[ray]] = LV
    return mask


def _picture(rng: Generator, heart: Heart, x: Array, y: Array, r: Array, ray: NDArray[np.intp], size: int) -> Array:
    """Grey levels [size, size] in [-1, 1]: the 1st to 99th percentile, as of real slices."""
    blur = float(np.hypot(rng.uniform(0.8, 1.8), 0.3 * FIELD_OF_VIEW / size))  # 5-95 %: 1.1 to 1.9 mm at 128
    organs, lobes, grain = (_field(rng, cells, size) for cells in (8, 20, 34))
    # 5-95 % of a slice's median: LV 0.39 to 0.87 (phantoms: 0.49 to 0.92), MYO 0.16 to 0.42 (0.19 to 0.42)
    blood, muscle = rng.uniform(0.85, 1.0), rng.uniform(0.18, 0.4)
    tissue = _surroundings(rng, heart, x, y, organs, lobes, grain)
    blur *= 1 + 0.8 * heart.level**4  # near the apex a slice of 10 mm cuts walls at a slant

    epicardium, free_wall = heart.epicardium[ray], heart.free_wall[ray]
    slope = np.gradient(heart.free_wall, ANGLES) / heart.free_wall
    outside = (r - free_wall) / np.hypot(1, slope.clip(-2, 2)).astype(np.float32)[ray]
    fat = rng.uniform(0.5, 1.15) * _step(organs + 0.7 * lobes + 0.4 * grain - rng.uniform(-1, 1), 0.5)
    reach = rng.uniform(4, 14)
    tissue = _over(tissue, fat, np.exp(-np.maximum(outside - 3, 0) / np.float32(reach)))
    wall = rng.uniform(1.5, 3) + rng.uniform(0.2, 0.8) * lobes
    tissue = _over(tissue, muscle * rng.uniform(0.6, 1.1), _step(wall - outside, blur))

    right = rng.uniform(0.75, 1.1) * blood  # 5-95 %: RV over LV 0.47 to 1.04, with what is in it
    clutter = _step(0.7 * grain + lobes - rng.uniform(-0.4, 1.2), 0.7) * np.exp(outside / rng.uniform(5, 30))
    trabecular = rng.uniform(0.3, 1) * np.minimum(clutter, 1)
    tissue = _over(tissue, right - (right - muscle) * trabecular, _step(-outside, blur))

    tissue = _over(tissue, muscle * (1 + 0.1 * grain + 0.12 * organs), _step(epicardium - r, blur))
    tissue = _over(tissue, blood * (1 + 0.03 * grain), _cavity(rng, heart, x, y, r, ray, lobes, grain, blur))

    # 5-95 %: a plane through MYO's grey levels rises by 0.21 to 2.1 of its middle over 160 mm (phantoms: 0.14 to 1.6)
    shading = np.exp(rng.uniform(0.05, 0.25) * _field(rng, 3, size))
    # 5-95 %: in the LV at 128 pixels, by a difference of Laplacians, 0.0036 to 0.0103 (phantoms: 0.0025 to 0.0071)
    tissue = tissue * shading + rng.uniform(0.015, 0.045) * _noise(rng, size)
    darkest, brightest = np.percentile(tissue, (1, 99))
    return np.clip(2 * (tissue - darkest) / (brightest - darkest) - 1, -1, 1).astype(np.float32)


def _cavity(
    rng: Generator,
    heart: Heart,
    x: Array,
    y: Array,
    r: Array,
    ray: NDArray[np.intp],
    lobes: Array,
    grain: Array,
    blur: float,
) -> Array:
    """Share of blood in the LV: without trabeculae along its wall, and up to three papillary muscles.

    5-95 %: they are 0.1 to 0.42 of the mask, with the blurred margin.
    """
    endocardium = heart.endocardium[ray]
    roughness = (rng.uniform(0.01, 0.16) + 0.06 * heart.level) * endocardium
    blood = _step(endocardium - r - roughness * np.maximum(grain + lobes, 0), 1.3 * blur)
    bearings = np.radians([-50, 75, rng.uniform(0, 360)]) + rng.normal(0, 0.4, 3)
    for bearing in bearings[: rng.choice((0, 1, 2, 2, 3, 3))]:
        wall = heart.endocardium[int(bearing / (2 * np.pi) * RAYS) % RAYS]
        width, distance = wall * rng.uniform(0.1, 0.24), wall * rng.uniform(0.6, 0.95)
        along = x * np.float32(np.cos(bearing)) + y * np.float32(np.sin(bearing)) - np.float32(distance)
        across = y * np.float32(np.cos(bearing)) - x * np.float32(np.sin(bearing))
        muscle = _step(
            width * (1 + 0.2 * lobes) - np.sqrt((along * np.float32(rng.uniform(0.5, 1))) ** 2 + across**2), blur
        )
        blood = blood * (1 - np.float32(rng.uniform(0.6, 1)) * muscle)
    return blood


def _surroundings(rng: Generator, heart: Heart, x: Array, y: Array, organs: Array, lobes: Array, grain: Array) -> Array:
    """Lung with its vessels, the chest wall in front, the diaphragm below with what is under it, and the aorta."""
    lung = rng.uniform(0.02, 0.16)
    vessels = rng.uniform(0.2, 1.0) * _step(lobes + grain - rng.uniform(2.2, 3.6), 0.6)
    tissue = lung * (1 + 0.5 * organs + 0.15 * grain) + vessels
    for bearing, gap, share in ((-130, 16, 0.95), (90, 8, 0.95), (180, 20, 0.5), (rng.uniform(-60, 40), 30, 0.6)):
        if rng.random() > share:
            continue
        towards = np.radians(bearing + rng.normal(0, 18))
        surface = (heart.free_wall * np.cos(ANGLES - towards)).max() + rng.exponential(gap) - 2
        across = y * np.float32(np.cos(towards)) - x * np.float32(np.sin(towards))
        depth = x * np.float32(np.cos(towards)) + y * np.float32(np.sin(towards)) - np.float32(surface)
        depth = depth + np.float32(rng.normal(0, 0.005)) * across**2
        depth = depth + rng.uniform(2, 7) * organs + rng.uniform(0.5, 2.5) * lobes
        layers = _layers(rng)
        inside = layers[np.clip(depth, 0, len(layers) - 1).astype(np.intp)]
        inside = inside * (1 + rng.uniform(0.03, 0.2) * lobes + rng.uniform(0.02, 0.1) * grain)
        tissue = _over(tissue, inside, _step(depth, 1.2))
    if rng.random() < 0.35:
        radius, bearing = rng.uniform(8, 14), np.radians(rng.uniform(10, 65))
        distance = heart.epicardium[int(bearing / (2 * np.pi) * RAYS)] + radius + rng.uniform(3, 20)
        away = np.hypot(x - np.float32(distance * np.cos(bearing)), y - np.float32(distance * np.sin(bearing)))
        tissue = _over(tissue, rng.uniform(0.6, 1.1), _step(radius - away, 1.3))
    return tissue.astype(np.float32)


def _layers(rng: Generator) -> Array:
    """Grey levels for every millimetre into a wall: a dark sheet, then fat or an organ, three times."""
    thickness = np.stack([rng.uniform(1, 12, 3), rng.uniform(4, 60, 3)], axis=1)
    dark, bright = rng.uniform(0.03, 0.3, 3), rng.choice((0.25, 0.4, 0.85, 1.1), 3) * rng.uniform(0.75, 1.15, 3)
    levels = np.repeat(np.stack([dark, bright], axis=1).ravel(), thickness.ravel().astype(int))
    return np.convolve(levels, (0.2, 0.2, 0.2, 0.2, 0.2), "same").astype(np.float32)


def _ripples(rng: Generator, orders: range, amplitude: float) -> Array:
    """Waves along the rays, of this standard deviation, the weaker the more of them there are around the circle."""
    order = np.asarray(orders)
    strengths = rng.normal(0, 1, (2, len(order))) / np.sqrt(order)
    strengths *= amplitude / np.sqrt((1 / order).sum())
    waves: Array = (strengths.reshape(-1) @ _waves(orders)).astype(np.float32)
    return waves


@lru_cache
def _waves(orders: range) -> Array:
    phase = np.asarray(orders)[:, None] * ANGLES
    return np.concatenate([np.cos(phase), np.sin(phase)])


def _field(rng: Generator, cells: int, size: int) -> Array:
    """A smooth field [size, size] of unit variance that changes over 160 mm / ``cells``."""
    weights = _splines(cells, size)
    return weights @ rng.standard_normal((weights.shape[1],) * 2, np.float32) @ weights.T


def _noise(rng: Generator, size: int) -> Array:
    """Noise that was acquired in pixels of ACDC's size, with unit variance there, and then resampled."""
    weights = _areas(size)
    return weights @ rng.standard_normal((ACQUIRED, ACQUIRED), np.float32) @ weights.T


@lru_cache
def _splines(cells: int, size: int) -> Array:
    """Cubic B-splines [size, cells + 3] at the middle of each pixel; the sum of squares is 1 on average."""
    middle = (np.arange(size) + 0.5) * (cells / size)
    weights = BSpline.design_matrix(middle, np.arange(-3, cells + 4), 3).toarray()
    return (weights / np.sqrt((weights**2).sum(axis=1).mean())).astype(np.float32)


@lru_cache
def _areas(size: int) -> Array:
    """Weights [size, ACQUIRED] of linear interpolation, averaged over each pixel."""
    fine = (np.arange(8 * size) + 0.5) * (ACQUIRED / (8 * size)) - 0.5
    hats = np.maximum(1 - np.abs(fine[:, None].clip(0, ACQUIRED - 1) - np.arange(ACQUIRED)), 0)
    return hats.reshape(size, 8, ACQUIRED).mean(axis=1).astype(np.float32)


def _over(below: Array, layer: Array | float, share: Array) -> Array:
    return below + share * (layer - below)


def _step(value: Array, width: float) -> Array:
    """From 0 to 1 around 0, close to a Gaussian blur of this standard deviation."""
    return 0.5 + 0.5 * np.tanh(value * np.float32(0.8 / width))
