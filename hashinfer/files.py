"""Writing files: whole or not at all, and arrays in parts."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well; otherwise whatever `path` was stays.

    The bytes go to a temporary file in the same folder, which is then renamed. A link is followed; a device or a pipe
    is written as it is. Raises OSError as open() would, naming `path`.
    """
    target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


class NpyWriter:
    """One .npy array written chunk by chunk: the header says how many rows there will be in all."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.started = False

    def write(self, chunk: npt.NDArray[Any], rows: int, split: bool) -> None:
        """Append a chunk. rows: of the whole array, where it is split at all."""
        if not self.started:
            shape = (rows, *chunk.shape[1:]) if split else chunk.shape
            header = {"descr": np.lib.format.dtype_to_descr(chunk.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.started = True
        self.file.write(np.ascontiguousarray(chunk).tobytes())
