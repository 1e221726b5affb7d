"""Input arrays as the command line names them: .npy, .npz, name=file, or - for standard input."""

import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashinfer.errors import InputError
from hashinfer.session.face import Array


def load_inputs(arguments: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
    """name -> array for the inputs `names` of a model. An .npy file is mapped, not read.

    An argument without a name goes to the next input that has none yet; an .npz file gives its arrays by their names.
    Raises InputError for what is no array file, for unknown names and for names given twice.
    """
    given: dict[str, Array] = {}
    for argument in arguments:
        name, path = _split(argument, names)
        loaded = _load(path)
        if isinstance(loaded, dict):
            if name is None and not len(loaded) == len(names) == 1:
                for key, array in loaded.items():
                    _add(given, key, array, names)
                continue
            loaded = _only(loaded, path)
        if name is None:
            free = [n for n in names if n not in given]
            if not free:
                raise InputError(f"{path} is one input too many; the model has {', '.join(map(repr, names))}")
            name = free[0]
        _add(given, name, loaded, names)
    return given


def _split(argument: str, names: Sequence[str]) -> tuple[str | None, str]:
    name, sign, path = argument.partition("=")
    if sign and (name in names or not Path(argument).exists()):
        return name, path
    return None, argument


def _add(given: dict[str, Array], name: str, array: Array, names: Sequence[str]) -> None:
    if name not in names:
        raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, names))}")
    if name in given:
        raise InputError(f"input {name!r} is given twice")
    given[name] = array


def _only(arrays: dict[str, Array], path: str) -> Array:
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} arrays; expected one")
    return next(iter(arrays.values()))


def _load(path: str) -> Array | dict[str, Array]:
    try:
        if path == "-":
            return _unpacked(np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False))
        if Path(path).is_dir():
            raise InputError(f"{path} is a folder; expected an .npy or .npz file")
        return _unpacked(np.load(path, mmap_mode=None if zipfile.is_zipfile(path) else "r", allow_pickle=False))
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        shown = "standard input" if path == "-" else path
        objects = "allow_pickle" in str(error) or "Python objects" in str(error)
        reason = "object arrays are not read" if objects else str(error)
        raise InputError(f"{shown} is no .npy or .npz file of plain numbers: {reason}") from None


def _unpacked(loaded: Any) -> Array | dict[str, Array]:
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def load_labels(path: str) -> Array:
    """Class numbers, int64 [N]. Raises InputError for anything else."""
    labels = _load(path)
    if isinstance(labels, dict):
        labels = _only(labels, path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path} holds {labels.dtype}{list(labels.shape)}; expected whole numbers of shape [N]")
    return labels.astype(np.int64)
