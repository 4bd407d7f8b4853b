"""Finding the photos below a folder, and their sizes and modification times."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from shlex import quote

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import require_file
from edm_hloc.base.log import warn_once
from edm_hloc.images import decode
from edm_hloc.images.cloud import CloudFolder
from edm_hloc.images.decode import HEIC_REMEDY
from edm_hloc.images.drawn import is_drawn
from edm_hloc.images.roots import ImageRoot

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".jps", ".insp"),  # JPEG
    *(".png", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".tga", ".avif"),
)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")  # read where pillow-heif is installed
_RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".raf", ".orf"),
    *(".rw2", ".rwl", ".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr"),
    *(".mrw", ".mos", ".gpr"),
)
_UNREAD_SUFFIXES = (
    *(".jxl", ".jxr", ".gif", ".apng", ".psd", ".xcf", ".exr", ".hdr", ".pfm", ".svg"),
    *(".ico", ".pcx", ".sgi", ".ras", ".dds", ".fits", ".dpx", ".heics", *_RAW_SUFFIXES),
)
_FLOAT_SUFFIXES = (".exr", ".hdr", ".pfm")  # beside photos: depth maps, or the light of a scene
_FILM_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv"),
    *(".3gp", ".insv", ".360", ".lrv", ".flv", ".ogv"),
)
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2")
# The first bytes of photos, by which those under other names are recognised
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*", b"GIF8", b"\0\0\0\x0cjP  ")
_RECORDS = {  # of the folders that this program has made of photos, and how they begin
    "run.json": b'{ "settings":',
    "export.json": b'{ "made_by": "edm-hloc export-model"',
}
FRAMES_RECORD = "frames.json"
"""In a folder of a film's frames, what `films.extract_frames` chose: `found` once it is all."""
_OF_SYSTEMS = ("@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx")  # in lower case
_PEEKED = 2000  # files of unknown kind of which the first bytes are read


def find_images(root: Path | CloudFolder, leave_out: Sequence[Path] = ()) -> list[str]:
    """Names of all images below a folder.

    Images are recognised by their suffix in any case (`IMAGE_SUFFIXES`; `HEIC_SUFFIXES` too if
    pillow-heif is installed). Hidden files and folders are left out, and so are those of a NAS or
    a computer with thumbnails, deleted files or the like (`@eaDir`, `__MACOSX`), the output folders
    of this program's runs, its undistorted copies of photos, and the pictures of `edm-hloc match`
    and `show` under the names that these give to their files. Symbolic links to folders are
    followed, except to a folder that the link itself lies in. Names that a list of pairs or an H5
    file cannot hold (with tabs or line breaks, or not valid Unicode) are left out with a warning,
    and so are films, photos in formats that cannot be read (unless one of the same name can be),
    and what is no file though its name is that of a photo: pipes, devices, links to nothing or to
    themselves.

    Args:
        root: the folder.
        leave_out: folders and files that are not searched if they lie in `root`: of the output, of
            masks.

    Returns:
        Paths relative to the folder, with "/", sorted.

    Raises:
        EdmHlocError: there is no such folder, it cannot be read, or it holds no images.
    """
    readable = IMAGE_SUFFIXES if decode.heic_reader() is None else IMAGE_SUFFIXES + HEIC_SUFFIXES
    if isinstance(root, CloudFolder):
        found = _walk_cloud(root)
    else:
        root = Path(root)
        found = _files_in(root, leave_out, readable)
    names, others = [], _Others(root)
    for name in found:
        if not _ends_in(name, readable):
            others.add(name)
        elif _can_be_listed(name):
            names.append(name)
        else:
            logger.warning("Image %r in %s is left out: rename it first.", name, root)
    unread = others.description(names)
    if not names:
        raise EdmHlocError(
            f"No images in {root}: there must be files ending in {', '.join(IMAGE_SUFFIXES)} in it "
            f"or in its subfolders. {unread}".rstrip()
        )
    if unread:
        warn_once(f"In {root} {unread}")
    return sorted(names)


def _ends_in(name: str, suffixes: tuple[str, ...]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes


def _can_be_listed(name: str) -> bool:
    """Whether a list of pairs and an H5 file can hold a name."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return name.splitlines() == [name] and "\t" not in name


def files_below(root: Path, leave_out: Sequence[Path] = ()) -> Iterator[str]:
    """Names of the files below a folder, with "/", but for those that `find_images` leaves out.

    These are hidden ones, those of systems, and the output folders of this program's runs.

    Args:
        root: the folder.
        leave_out: further folders below it that are not searched.
    """
    closed = frozenset(filter(None, map(_identity, leave_out))) - {_identity(root)}
    yield from _walk(root, "", closed)


def _files_in(root: Path, leave_out: Sequence[Path], readable: tuple[str, ...]) -> Iterator[str]:
    """Names of the files of any kind below a folder, but for photos that are to be left out."""
    if not root.is_dir():
        raise EdmHlocError(no_folder(root))
    one_file = any(Path(path).is_file() for path in leave_out)
    closed = frozenset(filter(None, map(_identity, leave_out)))
    for name in files_below(root, leave_out):
        if _ends_in(name, readable):
            if one_file and _identity(root / name) in closed:
                continue
            if not (root / name).is_file():
                logger.warning("%s is left out: %s.", root / name, _no_file(root / name))
                continue
        yield name


def _walk_cloud(root: CloudFolder) -> Iterator[str]:
    """Names of the objects below a folder in object storage that `_walk` would give of a disk."""
    names = root.names()
    inside = [name for name in names if "/" in name]
    outputs = tuple(n.removesuffix(PurePosixPath(n).name) for n in inside if _is_record(root, n))
    for name in names:
        hidden = any(p.startswith(".") or _is_of_system(p) for p in name.split("/"))
        if not name.startswith(outputs) and not hidden:
            yield name


def _is_of_system(folder: str) -> bool:
    """Whether systems keep thumbnails, deleted files or the like in folders of this name."""
    return folder.lower() in _OF_SYSTEMS


class _Others:
    """Files that look like photos or films, but are not read as photos."""

    def __init__(self, root: Path | CloudFolder) -> None:
        self._root = root
        self._unread: list[str] = []
        self._films: list[str] = []
        self._unfinished: list[str] = []
        self._misnamed: list[str] = []
        self._peeked = 0

    def add(self, name: str) -> None:
        """Counts a file if it looks like a photo or a film."""
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _FILM_SUFFIXES:
            self._films.append(name)
        elif suffix in _UNREAD_SUFFIXES + HEIC_SUFFIXES:
            self._unread.append(name)
        elif isinstance(self._root, Path) and PurePosixPath(name).name == FRAMES_RECORD:
            if film := _unfinished_film(self._root / name):
                self._unfinished.append(
                    f"{(self._root / name).parent} has only a part of the frames of {film}, as "
                    "edm-hloc frames was interrupted: the same command writes the rest."
                )
        elif isinstance(self._root, Path) and self._peeked < _PEEKED:
            self._peeked += 1
            if _begins_like_a_photo(self._root / name):
                self._misnamed.append(name)

    def description(self, photos: Sequence[str]) -> str:
        """Sentences on what is there and what to do with it; empty if there is nothing.

        Args:
            photos: those that are read; a raw file of the same name beside one is the same photo.
        """
        sentences = []
        read = {PurePosixPath(name).with_suffix("") for name in photos}
        kinds = Counter(
            PurePosixPath(name).suffix.lower()
            for name in self._unread
            if PurePosixPath(name).with_suffix("") not in read
            and not (photos and _ends_in(name, _FLOAT_SUFFIXES))
        )
        if kinds:
            text = f"{kinds.total()} files ({', '.join(sorted(kinds))}) are of a kind that is not "
            sentences.append(text + "read: convert them to JPEG.")
            if not kinds.keys().isdisjoint(HEIC_SUFFIXES):
                sentences.append(f"HEIC: {HEIC_REMEDY}.")
        if self._misnamed:
            few = ", ".join(sorted(self._misnamed)[:3])
            sentences.append(
                f"{len(self._misnamed)} files look like photos but are not named so ({few}"
                f"{', …' if len(self._misnamed) > 3 else ''}): give them the ending of their kind, "
                "such as .jpg."
            )
        if self._films:
            film = min(self._films)
            sentences.append(
                f"{len(self._films)} films such as {film} are not read. "
                + _how_to_make_frames(f"{self._root}/{film}")
            )
        return " ".join(sentences + self._unfinished)


def _unfinished_film(record: Path) -> str | None:
    """The film of which a folder has only a part of the frames, by their record."""
    try:
        content = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and {"film", "stamp", "step"} <= content.keys()
    return str(content["film"]) if ours and "found" not in content else None


def _begins_like_a_photo(path: Path) -> bool:
    """Whether the first bytes of a file are those of a photo."""
    try:
        require_file(path)
        with path.open("rb") as file:
            return file.read(12).startswith(_SIGNATURES)
    except OSError:
        return False


def _how_to_make_frames(film: Path | str) -> str:
    """How to turn a film into a folder of photos."""
    return (
        f"Make photos of the film first: edm-hloc frames {quote(str(film))} frames. Then give the "
        "folder frames, with --pairs sequential."
    )


def no_folder(root: Path) -> str:
    """Why this is no folder of photos, and what to give instead."""
    suffix = root.suffix.lower()
    if root.is_file() and suffix in _FILM_SUFFIXES:
        return f"{root} is a film, not a folder of photos. {_how_to_make_frames(root)}"
    if root.is_file() and suffix in _ARCHIVE_SUFFIXES:
        return f"{root} is an archive, not a folder of photos: unpack it, and give the folder."
    if root.is_file() and suffix in IMAGE_SUFFIXES + HEIC_SUFFIXES + _UNREAD_SUFFIXES:
        return f"{root} is one photo, not a folder of photos: give the folder it lies in."
    return f"No such folder of images: {root}. Check the path."


def _no_file(path: Path) -> str:
    """Why there is no file at a path that a folder lists."""
    try:
        require_file(path)
        return "it is not a file"
    except OSError as error:
        if path.is_symlink() and error.errno == errno.ENOENT:
            return "it is a link to something that is not there"
        if error.errno == errno.ELOOP:
            return "it is a link to itself"
        return error.strerror or str(error)


def _identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of a folder or file, whatever links lead to it; None if there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_record(root: Path | CloudFolder, name: str) -> bool:
    """Whether a file has one of the names of `_RECORDS`, and begins like it."""
    beginning = _RECORDS.get(PurePosixPath(name).name)
    if beginning is None:
        return False
    try:
        path = root / name
        require_file(path)
        with path.open("rb") as record:
            return b" ".join(record.read(64).split()).startswith(beginning)
    except OSError:
        return False


def _walk(root: Path, prefix: str, closed: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of the files below the folder root/prefix, relative to `root`.

    Args:
        root: folder that is searched.
        prefix: of the names, empty or ending in "/".
        closed: (device, inode) of the folders that are not searched, among them those that this
            one lies in, to detect circular links.
    """
    folder = root / prefix
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in closed:
            return
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if not prefix:
            raise EdmHlocError(f"Cannot read the folder {folder}: {error.strerror}.") from error
        logger.warning("The folder %s is left out: %s.", folder, error.strerror)
        return
    if prefix and any(_is_record(folder, entry.name) for entry in visible):
        if any(_ends_in(entry.name, IMAGE_SUFFIXES) for entry in visible):
            warn_once(
                f"The photos in {folder} are left out, as it is the output folder of a run, too: "
                "give that folder itself, or move them into another."
            )
        logger.info("The folder %s is not searched: it is the output of this program.", folder)
        return
    names = {entry.name for entry in visible}
    for entry in visible:
        name = f"{prefix}{entry.name}"
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if is_folder and _is_of_system(entry.name):
            logger.info("The folder %s is not searched: a system has made it.", folder / entry.name)
        elif is_folder:
            yield from _walk(root, f"{name}/", closed | {identity})
        elif _is_ours(folder / entry.name, names):
            warn_once(f"In {folder} the pictures that edm-hloc has drawn are no photos: left out.")
        else:
            yield name


def _is_ours(path: Path, beside: Collection[str]) -> bool:
    """Whether a file is a picture of `match`, which has an H5 file beside it, or one of `show`.

    Only where the names allow it the file is opened, since many photos may be on a slow disk.
    """
    return not {f"{path.stem}.h5", "overview.png"}.isdisjoint(beside) and is_drawn(path)


def image_stamps(root: ImageRoot, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(size in bytes, modification time in ns) by image name; missing files are left out."""
    if isinstance(root, CloudFolder):
        return root.stamps(names)
    stamps = {}
    for name in names:
        try:
            status = (root / name).stat()
        except OSError:
            continue
        stamps[name] = (status.st_size, status.st_mtime_ns)
    return stamps
