"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def expect_place(place: Path) -> None:
    """Raise an OSError for a place that no file can have, or that has a device or pipe."""
    if place.is_dir():
        raise IsADirectoryError(f"Expected path to be a file to write; got {place}, a folder")
    if place.exists() and not place.is_file():  # a file that took its place would end it
        raise FileExistsError(f"Expected path to be a file to write; got {place}, a device or pipe")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of path to exist; got {place.parent}")


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """Give an empty file beside a place, which takes that place once it is complete on the disk.

    Whatever interrupts the block, the place holds what it held before, or all that was written: of
    a process that is killed, at most hidden files are left beside it, whose names begin with a dot.

    Raises:
        FileNotFoundError: when the folder does not exist.
        IsADirectoryError, FileExistsError: when the place is a folder, a device or a pipe.
        OSError: for what cannot be written.
    """
    expect_place(place)
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()  # with the mode that new files get here, which other libraries' may lack
        mode = stat.S_IMODE((place if place.exists() else temporary).stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # complete on the disk, before it takes the other's place
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
