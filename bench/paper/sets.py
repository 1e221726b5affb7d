"""The eight data sets of the paper, from MNIST and from their published definitions; seeded and cached.

    python -m bench.paper.sets --data DIR --cache DIR [--sheets DIR] [NAME ...]

DIR of --data holds MNIST's four files. Sizes and definitions: Larochelle et al., "An Empirical Evaluation of Deep
Architectures on Problems with Many Factors of Variation", ICML 2007. Each set is one .npz file in the cache folder.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.paper import shapes
from bench.paper.photographs import patches, photographs
from hashinfer.files import atomic_write

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 28
SEED = 2007
VERSION = 1
"""Part of the cache's file names: raise it when a definition changes."""


@dataclass(frozen=True)
class Size:
    """Numbers of images."""

    train: int
    valid: int
    test: int

    @property
    def seen(self) -> int:
        """What a final net is trained on."""
        return self.train + self.valid


SIZES = {
    "MNIST": Size(50_000, 10_000, 10_000),
    "BASIC": Size(10_000, 2_000, 50_000),
    "ROT": Size(10_000, 2_000, 50_000),
    "BG-RAND": Size(10_000, 2_000, 50_000),
    "BG-IMG": Size(10_000, 2_000, 50_000),
    "BG-IMG-ROT": Size(10_000, 2_000, 50_000),
    "RECT": Size(1_000, 200, 50_000),
    "CONVEX": Size(6_500, 1_500, 50_000),
}
NAMES = tuple(SIZES)
GREY = ("BG-RAND", "BG-IMG", "BG-IMG-ROT")
"""Those whose median pixel is not black: digits on backgrounds."""
FEW = tuple(name for name, size in SIZES.items() if size.seen < 2000)
"""Those that large nets learn by heart."""
FINE = ("CONVEX",)
"""Those where single pixels decide."""


@dataclass(frozen=True)
class DataSet:
    """Images uint8 [N, 28, 28] and labels int64 [N]; the last `valid` of the training images are for validation."""

    name: str
    image: Images
    label: Labels
    test_image: Images
    test_label: Labels
    valid: int

    @property
    def classes(self) -> int:
        """10 digits, or 2 for the geometric sets."""
        return 2 if self.name in ("RECT", "CONVEX") else 10


def load(name: str, data: Path, cache: Path) -> DataSet:
    """The set `name`, from the cache folder or made and put there.

    Raises KeyError for another name, FileNotFoundError where MNIST's files are missing.
    """
    size = SIZES[name]
    path = cache / f"{name.lower()}-v{VERSION}-seed{SEED}.npz"
    if not path.exists():
        image, label = _make(name, data)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez_compressed(file, image=image, label=label)
    try:
        with np.load(path) as arrays:
            image, label = arrays["image"], arrays["label"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a cached data set ({error}); delete it") from None
    seen = size.seen
    if image.shape != (seen + size.test, SIDE, SIDE) or label.shape != (seen + size.test,):
        raise ValueError(f"{path} holds {image.shape}; expected {seen + size.test} images; delete it")
    return DataSet(name, image[:seen], label[:seen], image[seen:], label[seen:], size.valid)


def spare(name: str, data: Path) -> tuple[Images, Labels]:
    """Images of the set's kind that are in none of its parts, for choosing a recipe.

    Of sets of digits they are varied from those that the set leaves over, of RECT and CONVEX they are as many as those
    have test images; of MNIST there are none.
    """
    size = SIZES[name]
    rng = np.random.default_rng([SEED, NAMES.index(name), 1])
    if name in ("RECT", "CONVEX"):
        return _shapes(name, size.test, rng)
    image, label = digits(data)
    if name == "MNIST":
        return image[:0], label[:0]
    left = _order(size, np.random.default_rng([SEED, NAMES.index(name)]))[size.seen + size.test :]
    return _VARIATIONS[name](image[left], rng), label[left]


def _make(name: str, data: Path) -> tuple[Images, Labels]:
    """All images of a set, training, validation and test in this order."""
    size = SIZES[name]
    # One stream for each set: a set is the same whether the others are made or not.
    rng = np.random.default_rng([SEED, NAMES.index(name)])
    if name in ("RECT", "CONVEX"):
        return _shapes(name, size.seen + size.test, rng)
    image, label = digits(data)
    if name == "MNIST":
        return image, label
    order = _order(size, rng)[: size.seen + size.test]
    return _VARIATIONS[name](image[order], rng), label[order]


def _shapes(name: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    return (shapes.rectangles if name == "RECT" else shapes.convex)(count, rng)


def _order(size: Size, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All of MNIST's digits: a set's training, validation and test digits, then those left over.

    Its training digits are MNIST's own training digits, as many test digits as there are come from its test set.
    """
    order = np.concatenate([rng.permutation(60_000), 60_000 + rng.permutation(10_000)])
    return np.concatenate([order[: size.seen], rng.permutation(order[size.seen :])])


def _basic(image: Images, rng: np.random.Generator) -> Images:
    return image


def _rotated(image: Images, rng: np.random.Generator) -> Images:
    return rotate(image, rng.uniform(0, 2 * math.pi, len(image)))


def _on_noise(image: Images, rng: np.random.Generator) -> Images:
    return np.maximum(image, rng.integers(0, 256, image.shape, np.uint8))


def _on_photographs(image: Images, rng: np.random.Generator) -> Images:
    return np.maximum(image, patches(photographs(), len(image), SIDE, rng))


def _rotated_on_photographs(image: Images, rng: np.random.Generator) -> Images:
    return _on_photographs(_rotated(image, rng), rng)


_VARIATIONS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "BASIC": _basic,
    "ROT": _rotated,
    "BG-RAND": _on_noise,
    "BG-IMG": _on_photographs,
    "BG-IMG-ROT": _rotated_on_photographs,
}


def rotate(image: Images, angle: npt.NDArray[np.float64]) -> Images:
    """Images [N, side, side], each turned by its angle (radians, counter-clockwise) about its centre, cubic."""
    from scipy import ndimage

    side = image.shape[-1]
    middle = (side - 1) / 2
    out = np.empty_like(image)
    for k, (picture, a) in enumerate(zip(image, angle, strict=True)):
        turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        offset = middle - turn @ np.full(2, middle)
        turned = ndimage.affine_transform(picture.astype(np.float32), turn, offset, order=3)
        out[k] = np.clip(np.rint(turned), 0, 255)
    return out


def digits(folder: Path) -> tuple[Images, Labels]:
    """MNIST: 60 000 training digits, then 10 000 test digits."""
    parts = [
        (read_idx(folder, f"{part}-images-idx3-ubyte"), read_idx(folder, f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]).astype(np.int64)


def read_idx(folder: Path, name: str) -> Images:
    """One of MNIST's files, plain or gzipped. Raises FileNotFoundError, or ValueError for other contents."""
    plain = folder / name
    raw = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
    zero, kind, rank = struct.unpack(">HBB", raw[:4])
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    if zero or kind != 8 or len(raw) != 4 + 4 * rank + math.prod(shape):
        raise ValueError(f"{name} is not an IDX file of bytes")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def sheet(data: DataSet, path: Path, columns: int = 20, rows: int = 8) -> None:
    """A contact sheet: the first training images, row by row for each class, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.image

    per_class = rows // data.classes if data.classes <= rows else 1
    lines = []
    for c in range(data.classes):
        of_class = data.image[data.label == c][: per_class * columns]
        padded = np.pad(of_class, ((0, 0), (1, 1), (1, 1)), constant_values=96)
        lines += [np.concatenate(list(padded[k * columns : (k + 1) * columns]), 1) for k in range(per_class)]
    grey = np.concatenate(lines, 0)
    with atomic_write(path) as file:
        matplotlib.image.imsave(file, grey, cmap="gray", vmin=0, vmax=255, format="png")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--cache", type=Path, required=True, help="where the made sets are kept")
    parser.add_argument("--sheets", type=Path, default=Path(__file__).parent / "sheets")
    options = parser.parse_args()
    for name in options.names:
        if name not in SIZES:
            parser.error(f"no data set {name!r}; expected some of {', '.join(NAMES)}")
    options.sheets.mkdir(parents=True, exist_ok=True)
    for name in options.names or NAMES:
        data = load(name, options.data, options.cache)
        sheet(data, options.sheets / f"{name.lower()}.png")
        share = np.bincount(data.label, minlength=data.classes) / len(data.label)
        print(
            f"{name}: {len(data.image) - data.valid} + {data.valid} / {len(data.test_image)} images, "
            f"mean grey {data.image.mean():.1f}, classes from {100 * share.min():.1f} to {100 * share.max():.1f} %"
        )


if __name__ == "__main__":
    main()
