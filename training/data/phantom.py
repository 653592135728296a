"""Procedural mammogram-like phantoms: a breast against the left edge, parenchyma, and one mass with its mask.

Everything is drawn in the unit square (x from the chest wall, y downwards), so one seed is the same anatomy at every
size; a larger picture only adds finer octaves of texture.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import torch
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from torch.utils.data import Dataset

from training.data.classes import LESION

Array = NDArray[np.float32]

SMALLEST_SIZE = 32
ANGLES = np.linspace(-np.pi, np.pi, 361, dtype=np.float32)
COARSE_CYCLES = 15
CYCLES_PER_PIXEL = 0.25


@dataclass(frozen=True)
class Breast:
    """Outline as a radius per angle around `(0, middle)`; `depth` is how far the nipple is from the chest wall."""

    middle: float
    depth: float
    height: float
    radius: Array


@dataclass(frozen=True)
class Mass:
    """Margin as a radius per angle around `(x, y)`, and the strength of the spicules that leave it, per angle."""

    x: float
    y: float
    radius: Array
    spicules: Array
    softness: float
    brightness: float


def phantom_pair(seed: int, size: int) -> tuple[Array, NDArray[np.uint8]]:
    """Draw one phantom.

    Args:
        seed: 0 or more; the anatomy depends on it alone.
        size: height and width in pixels, 32 or more.

    Returns:
        image float32 [1, size, size] in [-1, 1], and mask uint8 [1, size, size], 1 on the mass.

    Raises:
        ValueError: `seed` or `size` is too small.
    """
    at_least(0, seed=seed)
    at_least(SMALLEST_SIZE, size=size)
    anatomy, *octaves = (default_rng(child) for child in SeedSequence(seed).spawn(8))
    breast = _draw_breast(anatomy)
    mass = _draw_mass(anatomy, breast)
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = pixels[None, :], pixels[:, None]
    texture, lobules, ligaments = _noise_fields(octaves, size)

    depth_below_skin = _depth_below_skin(breast, x, y)
    tissue = _tissue(anatomy, breast, x, y, depth_below_skin, texture, lobules, ligaments)
    image, mask = _add_mass(mass, x, y, tissue, texture)
    image = image * _compressed_thickness(depth_below_skin, size)
    return np.clip(2 * image - 1, -1, 1)[None].astype(np.float32), mask[None].astype(np.uint8)


class Phantoms(Dataset[dict[str, torch.Tensor]]):
    """`count` phantoms; item i is {"image": float32 [1, H, W] in [-1, 1], "mask": uint8 [1, H, W], 1 on the mass}.

    Item i depends on (seed, i, size) alone, so a longer dataset begins with the shorter one.
    ValueError if `count` is below 1, `size` below 32 or `seed` below 0; IndexError for an item outside 0..count-1.
    """

    pair = staticmethod(phantom_pair)
    labels: tuple[str, ...] = LESION

    def __init__(self, count: int, size: int, seed: int = 0) -> None:
        at_least(1, count=count)
        at_least(SMALLEST_SIZE, size=size)
        at_least(0, seed=seed)
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count} phantoms does not exist")
        item_seed = SeedSequence(self.seed, spawn_key=(index,)).generate_state(1, np.uint64)[0]
        image, mask = self.pair(int(item_seed), self.size)
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)}


def at_least(smallest: int, **named: int) -> None:
    for name, value in named.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}, but must be {smallest} or more")


def _draw_breast(rng: Generator) -> Breast:
    depth, squareness = rng.uniform(0.55, 0.84), rng.uniform(2.0, 2.5)
    above, below = rng.uniform(0.36, 0.47, 2)
    middle = 0.5 + (above - below) / 2 + rng.uniform(-0.02, 0.02)
    height = np.where(ANGLES < 0, above, below)
    toward_nipple, along_wall = np.abs(np.cos(ANGLES)) / depth, np.abs(np.sin(ANGLES)) / height
    radius = (toward_nipple**squareness + along_wall**squareness) ** (-1 / squareness)
    nipple = 0.02 * np.exp(-((ANGLES / 0.05) ** 2))
    radius = radius * (1 + _ripples(rng, orders=range(2, 5), amplitude=0.012)) + nipple
    return Breast(middle, depth, (above + below) / 2, radius.astype(np.float32))


def _draw_mass(rng: Generator, breast: Breast) -> Mass:
    base = rng.uniform(0.07, 0.13)
    lobulated = base * (1 + _ripples(rng, orders=range(2, 7), amplitude=0.1))
    spicules = np.zeros_like(ANGLES)
    for angle in rng.uniform(-np.pi, np.pi, rng.integers(0, 13)):
        away = np.angle(np.exp(1j * (ANGLES - angle)))
        spicules = np.maximum(spicules, rng.uniform(0.5, 1.0) * np.exp(-((away / 0.11) ** 2)))
    radius = lobulated * (1 + 0.16 * spicules)
    x, y = _place_inside(rng, breast, float(radius.max()) + 0.03)
    return Mass(
        x, y, radius.astype(np.float32), spicules.astype(np.float32), rng.uniform(0.008, 0.014), rng.uniform(0.82, 0.95)
    )


def _place_inside(rng: Generator, breast: Breast, clearance: float) -> tuple[float, float]:
    """The first of a few random points with `clearance` all round, else the one with the most room."""
    front = np.abs(ANGLES) <= np.pi / 2
    outline = breast.radius[front] * np.exp(1j * ANGLES[front])
    points = rng.uniform(0, 1, 64) * breast.depth + 1j * rng.uniform(-1, 1, 64) * breast.height
    points[-1] = 0.45 * breast.depth
    inside = np.abs(points) < np.interp(np.angle(points), ANGLES, breast.radius)
    room = np.minimum(np.abs(points[:, None] - outline).min(1), points.real) * inside
    chosen = points[np.argmax(room >= clearance) if (room >= clearance).any() else np.argmax(room)]
    return float(chosen.real), float(chosen.imag) + breast.middle


def _ripples(rng: Generator, orders: range, amplitude: float) -> NDArray[np.float64]:
    """Relative bumps per angle, weaker the more there are of them around the circle, at most 2.5 `amplitude`."""
    phases, strengths = rng.uniform(0, 2 * np.pi, len(orders)), rng.normal(0, amplitude, len(orders))
    order = np.asarray(orders)
    waves = strengths / order * 2 * np.cos(order * ANGLES[:, None] + phases)
    return np.clip(waves.sum(axis=1), -2.5 * amplitude, 2.5 * amplitude)


def _noise_fields(octaves: list[Generator], size: int) -> Array:
    """Three periodic fields [3, size, size] of about unit variance: power-law texture, lobules, and ligament noise.

    Each octave of frequencies has a generator of its own, so more pixels add octaves and change none.
    """
    spectrum = np.zeros((3, size, size // 2 + 1), np.complex64)
    for level, octave in enumerate(octaves):
        weights = _octave_weights(level)
        reach = weights.shape[2] - 1
        if level > 0 and reach > CYCLES_PER_PIXEL * size:
            break
        waves = octave.standard_normal((*weights.shape, 2), np.float32).view(np.complex64)[..., 0]
        spectrum[: len(weights), np.arange(-reach, reach + 1) % size, : reach + 1] += weights * waves
    return np.asarray(scipy.fft.irfft2(spectrum, s=(size, size), norm="forward"))


@lru_cache
def _octave_weights(level: int) -> Array:
    """Amplitudes [fields, rows, columns]: all three fields in the coarsest octave, only texture in finer ones."""
    coarse = _amplitudes(0, COARSE_CYCLES)
    deviations = 2 * np.sqrt((coarse**2).sum(axis=(1, 2), keepdims=True))
    if level == 0:
        return coarse / deviations
    reach = COARSE_CYCLES << level
    return _amplitudes(reach // 2, reach)[:1] / deviations[:1]


def _amplitudes(above: int, reach: int) -> Array:
    """Amplitudes [3, rows, columns] of frequencies in (above, reach], in cycles per picture."""
    frequency = np.hypot(np.arange(-reach, reach + 1)[:, None], np.arange(reach + 1)[None, :])
    texture = np.maximum(frequency, 1.5) ** -1.6
    lobules = np.exp(-((frequency / 4.5) ** 2))
    ligaments = np.exp(-(((frequency - 5) / 2.5) ** 2))
    band = (frequency > above) & (frequency <= reach)
    return (np.stack([texture, lobules, ligaments]) * band).astype(np.float32)


def _depth_below_skin(breast: Breast, x: Array, y: Array) -> Array:
    """First-order distance to the outline, positive inside: the radial gap over the length of its gradient."""
    distance, angle = np.hypot(x, y - breast.middle), np.arctan2(y - breast.middle, x)
    radius, slope = _at(angle, breast.radius), _at(angle, np.gradient(breast.radius, ANGLES))
    return (radius - distance) / np.hypot(1, slope / radius)


def _tissue(
    rng: Generator,
    breast: Breast,
    x: Array,
    y: Array,
    depth_below_skin: Array,
    texture: Array,
    lobules: Array,
    ligaments: Array,
) -> Array:
    """Brightness in [0, 1] of fat, glandular tissue behind the nipple, ligaments, and ducts that meet at the nipple."""
    density, extent = rng.uniform(0.14, 0.32), rng.uniform(0.55, 0.8)
    gland_x, gland_y = breast.depth * rng.uniform(0.48, 0.58), breast.middle + rng.uniform(-0.04, 0.04)
    from_centre = np.hypot((x - gland_x) / (extent * 0.62 * breast.depth), (y - gland_y) / (extent * breast.height))
    gland = _sigmoid((1 - from_centre + 0.16 * lobules) / 0.16) * _sigmoid((depth_below_skin - 0.06) / 0.015)

    behind_nipple, across = breast.depth - x, y - breast.middle
    bearing = np.arctan2(across, np.maximum(behind_nipple, 1e-3) + 0.03)
    duct_waves = np.cos(rng.integers(9, 14) * bearing + 0.6 * lobules + rng.uniform(0, 2 * np.pi))
    ducts = np.maximum(duct_waves, 0) ** 4 * gland
    web = _sigmoid(2 * texture) * (1 - 0.5 * gland) / (1 + (ligaments / 0.22) ** 2)

    fat = rng.uniform(0.24, 0.32) + 0.022 * texture
    return fat + gland * density * (1 + 0.3 * texture) + 0.05 * ducts + 0.06 * web


def _add_mass(mass: Mass, x: Array, y: Array, tissue: Array, texture: Array) -> tuple[Array, NDArray[np.bool_]]:
    distance, angle = np.hypot(x - mass.x, y - mass.y), np.arctan2(y - mass.y, x - mass.x)
    radius = _at(angle, mass.radius)
    outside = distance - radius
    softness = max(mass.softness, 0.35 / len(y))
    body = _sigmoid(-outside / softness) * (0.95 - 0.2 * (distance / radius) ** 2)
    strands = 0.4 * _at(angle, mass.spicules) * np.exp(-np.maximum(outside, 0) / (0.45 * radius))
    haze = 0.12 * np.exp(-np.maximum(outside, 0) / 0.03)
    opacity = np.maximum(body, strands + haze)
    return tissue + opacity * (mass.brightness + 0.05 * texture - tissue), outside <= 0


def _compressed_thickness(depth_below_skin: Array, size: int) -> Array:
    """Share of the full brightness: the breast thins towards the skin, which itself is a faint bright line."""
    pixel = 1 / size
    covered = np.clip(depth_below_skin / pixel + 0.5, 0, 1)
    thickness = 1 - 0.55 * np.exp(-np.maximum(depth_below_skin, 0) / 0.035)
    skin_width = max(0.006, 0.6 * pixel)
    skin = 0.25 * np.exp(-(((depth_below_skin - skin_width) / skin_width) ** 2))
    return covered * (thickness + skin)


def _at(angle: Array, table: Array) -> Array:
    return np.interp(angle, ANGLES, table).astype(np.float32)


def _sigmoid(value: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * value))
