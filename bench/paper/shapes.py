"""The geometric sets of Larochelle et al., ICML 2007: tall against wide rectangles, convex against other regions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 28
LEAST_DIFFERENCE = 3
CONVEX_PLANES, CONVEX_PIXELS = 0.195, 19
PART_PLANES, PART_PIXELS = 0.027, 10
"""The published 0.07 leaves non-convex regions a third larger than convex ones here; by the published rule both kinds
have the same mean number of white pixels, and so they have at 0.027. How half-planes lie was not published."""
_AT_ONCE = 4096

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def rectangles(count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    """Outlines of rectangles, label 1 where taller than wide.

    Height and width are uniform; where they differ by less than 3 pixels both are drawn again. The corner is uniform
    among the places where the rectangle fits.
    """
    image = np.zeros((count, SIDE, SIDE), np.uint8)
    label = np.empty(count, np.int64)
    for k in range(count):
        height = width = 0
        while abs(height - width) < LEAST_DIFFERENCE:
            height, width = rng.integers(1, SIDE + 1, 2)
        top, left = rng.integers(SIDE - height + 1), rng.integers(SIDE - width + 1)
        box = image[k, top : top + height, left : left + width]
        box[[0, -1], :] = 255
        box[:, [0, -1]] = 255
        label[k] = height > width
    return image, label


def convex(count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    """White regions, label 1 where convex; as many of each, in random order.

    A convex region is an intersection of half-planes. The others are unions of two to four smaller intersections,
    kept if they are not convex.
    """
    ones = count // 2
    image = np.concatenate([_regions(ones, CONVEX_PLANES, CONVEX_PIXELS, rng), _unions(count - ones, rng)])
    label = (np.arange(count) < ones).astype(np.int64)
    order = rng.permutation(count)
    return np.where(image[order], 255, 0).astype(np.uint8), label[order]


def _unions(count: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    out = np.empty((count, SIDE, SIDE), np.bool_)
    done = 0
    while done < count:
        parts = rng.integers(2, 5, _AT_ONCE)
        part = _regions(int(parts.sum()), PART_PLANES, PART_PIXELS, rng)
        for region in np.logical_or.reduceat(part, np.cumsum(parts) - parts):
            if done < count and not is_convex(region):
                out[done] = region
                done += 1
    return out


def _regions(count: int, planes: float, pixels: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """`count` intersections of half-planes of at least `pixels` pixels.

    Each region has a point, uniform in the picture, and a geometric number of half-planes with parameter `planes`. A
    half-plane's edge goes in a uniform direction through a uniform point of the picture; the region's point is inside.
    """
    y, x = np.mgrid[:SIDE, :SIDE].reshape(2, -1).astype(np.float32)
    found: list[npt.NDArray[np.bool_]] = []
    have = 0
    while have < count:
        inside = np.ones((_AT_ONCE, SIDE * SIDE), np.bool_)
        left = rng.geometric(planes, _AT_ONCE)
        point = _uniform(_AT_ONCE, rng)
        alive = np.arange(_AT_ONCE)
        while len(alive):
            angle = rng.uniform(0, 2 * np.pi, (len(alive), 1)).astype(np.float32)
            normal_x, normal_y = np.cos(angle), np.sin(angle)
            edge_x, edge_y = _uniform(len(alive), rng)
            side = normal_x * (point[0, alive] - edge_x) + normal_y * (point[1, alive] - edge_y)
            inside[alive] &= (normal_x * (x - edge_x) + normal_y * (y - edge_y)) * side >= 0
            left[alive] -= 1
            enough = inside[alive].sum(1) >= pixels
            inside[alive[~enough]] = False
            alive = alive[enough & (left[alive] > 0)]
        kept = inside[inside.any(1)]
        found.append(kept)
        have += len(kept)
    return np.concatenate(found)[:count].reshape(count, SIDE, SIDE)


def _uniform(count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """x and y of points anywhere in the picture, [2, count, 1]."""
    return rng.uniform(-0.5, SIDE - 0.5, (2, count, 1)).astype(np.float32)


def is_convex(region: npt.NDArray[np.bool_]) -> bool:
    """Whether every pixel centre in the convex hull of the region's pixel centres belongs to the region."""
    corner = _hull(region)
    low, high = corner.min(0), corner.max(0)
    other = low + np.argwhere(~region[low[0] : high[0] + 1, low[1] : high[1] + 1])
    if len(corner) < 3:
        # A line of pixels: its hull has no inside, only points between the two ends.
        ahead, aside = corner[-1] - corner[0], other - corner[0]
        return not bool((ahead[0] * aside[:, 1] == ahead[1] * aside[:, 0]).any())
    edge = (np.roll(corner, -1, 0) - corner)[:, :, None]
    aside = other.T[None] - corner[:, :, None]
    # Counter-clockwise hull: a point is inside where it is right of no edge.
    inside = (edge[:, 0] * aside[:, 1] >= edge[:, 1] * aside[:, 0]).all(0)
    return not bool(inside.any())


def _hull(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Corners [n, 2] of the convex hull of the region's pixels, counter-clockwise, by Andrew's monotone chain."""
    points: list[tuple[int, int]] = []
    for row in np.flatnonzero(region.any(1)):
        columns = np.flatnonzero(region[row])
        points += [(int(row), int(columns[0])), (int(row), int(columns[-1]))]
    points = sorted(set(points))

    def chain(walk: list[tuple[int, int]]) -> list[tuple[int, int]]:
        line: list[tuple[int, int]] = []
        for p in walk:
            while len(line) > 1 and (
                (line[-1][0] - line[-2][0]) * (p[1] - line[-2][1]) <= (line[-1][1] - line[-2][1]) * (p[0] - line[-2][0])
            ):
                line.pop()
            line.append(p)
        return line

    return np.array((chain(points)[:-1] + chain(points[::-1])[:-1]) or points)
