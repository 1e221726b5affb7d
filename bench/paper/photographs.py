"""Photographs for backgrounds: the ones inside the wheels of scikit-image and scikit-learn, and patches of them."""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

FILES = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "moon.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

LEAST_DEVIATION = 10.0
"""Patches whose grey levels have a smaller standard deviation are drawn again."""


def photographs() -> list[npt.NDArray[np.uint8]]:
    """The photographs of FILES in grey, uint8 [height, width].

    Raises ModuleNotFoundError where one of the two packages is missing.
    """
    from PIL import Image

    grey = []
    for package, names in FILES.items():
        folder = resources.files(package).joinpath(_FOLDERS[package])
        for name in names:
            with folder.joinpath(name).open("rb") as file:
                grey.append(np.asarray(Image.open(file).convert("L")))
    return grey


def patches(
    pictures: list[npt.NDArray[np.uint8]], count: int, side: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """`count` patches [side, side] from random places of random pictures; nearly flat ones are drawn again."""
    out = np.empty((count, side, side), np.uint8)
    for k in range(count):
        while True:
            picture = pictures[rng.integers(len(pictures))]
            top = rng.integers(picture.shape[0] - side + 1)
            left = rng.integers(picture.shape[1] - side + 1)
            patch = picture[top : top + side, left : left + side]
            if patch.std() >= LEAST_DEVIATION:
                break
        out[k] = patch
    return out
