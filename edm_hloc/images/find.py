"""Finding the photos below a folder, and their sizes and modification times."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.images import decode
from edm_hloc.images.decode import HEIC_REMEDY

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm")
HEIC_SUFFIXES = (".heic", ".heif")  # read where pillow-heif is installed
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_UNREAD_SUFFIXES = (".avif", ".jxl", ".gif", ".psd", *_RAW_SUFFIXES)


def find_images(root: Path) -> list[str]:
    """Names of all images below a folder.

    Images are recognised by their suffix in any case (`IMAGE_SUFFIXES`; `HEIC_SUFFIXES` too if
    pillow-heif is installed). Hidden files and folders are left out. Symbolic links to folders are
    followed, except to a folder that the link itself lies in. Names that a list of pairs or an H5
    file cannot hold (with tabs or line breaks, or not valid Unicode) are left out with a warning,
    and so are photos in formats that cannot be read.

    Returns:
        Paths relative to the folder, with "/", sorted.

    Raises:
        EdmHlocError: there is no such folder, it cannot be read, or it holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise EdmHlocError(f"No such folder of images: {root}. Check the path.")
    names, others = [], Counter[str]()
    readable = IMAGE_SUFFIXES if decode.heic_reader() is None else IMAGE_SUFFIXES + HEIC_SUFFIXES
    for name in _walk(root, "", frozenset()):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in readable:
            if suffix in _UNREAD_SUFFIXES + HEIC_SUFFIXES:
                others[suffix] += 1
            continue
        try:
            name.encode("utf-8")
            holdable = name.splitlines() == [name] and "\t" not in name
        except UnicodeEncodeError:
            holdable = False
        if holdable:
            names.append(name)
        else:
            logger.warning("Image %r in %s is left out: rename it first.", name, root)
    unread = ""
    if others:
        kinds = ", ".join(sorted(others))
        unread = f"{others.total()} files ({kinds}) are of a kind that is not read: "
        unread += "convert them to JPEG."
        if not others.keys().isdisjoint(HEIC_SUFFIXES):
            unread += f" HEIC: {HEIC_REMEDY}."
    if not names:
        raise EdmHlocError(
            f"No images in {root}: there must be files ending in {', '.join(IMAGE_SUFFIXES)} in it "
            f"or in its subfolders. {unread}".rstrip()
        )
    if unread:
        warn_once(f"In {root} {unread}")
    return sorted(names)


def _walk(root: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of the files below the folder root/prefix, relative to `root`.

    Args:
        root: folder that is searched.
        prefix: of the names, empty or ending in "/".
        above: (device, inode) of the folders that this one lies in, to detect circular links.
    """
    folder = root / prefix
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if not prefix:
            raise EdmHlocError(f"Cannot read the folder {folder}: {error.strerror}.") from error
        logger.warning("The folder %s is left out: %s.", folder, error.strerror)
        return
    for entry in visible:
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(root, f"{name}/", above | {identity})
        else:
            yield name


def image_stamps(root: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(size in bytes, modification time in ns) by image name; missing files are left out."""
    stamps = {}
    for name in names:
        try:
            status = (Path(root) / name).stat()
        except OSError:
            continue
        stamps[name] = (status.st_size, status.st_mtime_ns)
    return stamps
