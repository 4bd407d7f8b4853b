"""Writing COLMAP models: whole or not at all, with coloured points, separate parts beside them."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.binary_models import ModelArrays, check_binary_model
from edm_hloc.base.colmap import ModelStatistics, posed_images
from edm_hloc.base.errors import EdmHlocError, ImageError, NoRoomError
from edm_hloc.base.files import force_to_disk, remove_leftover
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.progress import track
from edm_hloc.images.load import colours_at, stored_pixels

logger = logging.getLogger(__name__)

EXPORTED = ".edm_hloc_export.json"
"""In an exported model: size and time of its files, by which the next export knows them."""

_PARTS = "_parts"  # what the name of the folder of the other models ends with

_MODEL_FILES = {
    f"{part}{end}"
    for part in ("cameras", "images", "points3D", "rigs", "frames")
    for end in (".bin", ".txt")
} | {EXPORTED}


@dataclass(frozen=True)
class MappingSummary:
    """The model that was written, and the images it lacks.

    Attributes:
        statistics: registered images, points, track length, reprojection error.
        images: images in the database.
        unregistered: names of those that are not in the model, sorted. Where poses are known: of
            those that see no point.
        components: number of registered images of each separate model, of the written one first.
        elsewhere: names of the images that are in another separate model only, sorted; they are
            among `unregistered`.
        seconds: wall-clock time.
        undistorted: in the written model lens distortion was left at zero, as no believable one was
            found with it: most often the photos do not determine it.
        undistorted_photos: names of the photos of which this holds, in all separate models, sorted.
        one_camera_photos: names of the photos that share a camera in their model although each has
            its own in the database, sorted.
        shared_cameras: the number of cameras that these share, all models together.
        own_camera_photos: names of the photos that have a camera each in their model although they
            share some in the database, as by equal EXIF data, sorted.
        look_alikes: names of the photos of verified pairs that were left out: they look alike but
            probably do not show the same place, and with them the model had folded.
        misplaced, fitting, contested: photos whose verified matches contradict their model, or did
            so before they were left out, the share of all that fit, and photos whose connection
            with the others is outvoted, see `contradictions.Contradictions`; none, 1 and none where
            that was not looked for.
        turned: names of the photos that were taken from one place and match no others, so that no
            model can be made of them, sorted.
    """

    statistics: ModelStatistics
    images: int
    unregistered: tuple[str, ...]
    components: tuple[int, ...]
    seconds: float
    elsewhere: tuple[str, ...] = ()
    undistorted: bool = False
    undistorted_photos: tuple[str, ...] = ()
    one_camera_photos: tuple[str, ...] = ()
    shared_cameras: int = 0
    own_camera_photos: tuple[str, ...] = ()
    look_alikes: tuple[tuple[str, str], ...] = ()
    misplaced: tuple[str, ...] = ()
    fitting: float = 1.0
    contested: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the photos of `look_alikes` that are in no model without those pairs, sorted."""
        of_pairs = {name for pair in self.look_alikes for name in pair}
        return tuple(sorted((of_pairs & set(self.unregistered)) - set(self.elsewhere)))


def number_of_cameras(model: pycolmap.Reconstruction, names: Collection[str]) -> int:
    """Number of cameras that some images have in a model."""
    posed = posed_images(model)
    return len({posed[name].camera_id for name in posed.keys() & set(names)})


def holds_only_models(folder: Path) -> bool:
    """Whether a folder holds the files of a COLMAP model, or models in `2`, `3`, …, and no others.

    Such a folder may be replaced by a new model, as nothing else is lost.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        numbered = inside[0].isdecimal()
        if numbered and len(inside) == 1 and path.is_dir() and not path.is_symlink():
            continue
        if len(inside) - numbered != 1 or path.name not in _MODEL_FILES or path.is_dir():
            return False
    return True


def check_replaceable(folder: Path) -> None:
    """Raises EdmHlocError if a folder is not replaced by a new model: it holds other files than
    models, or is given as "." or "..", in which some shell may be."""
    if folder.name in ("", ".."):
        raise EdmHlocError(
            f"A model cannot be put in place of the folder {folder}: choose another folder, or "
            "give this one by its name from elsewhere."
        )
    if (folder.exists() or folder.is_symlink()) and not holds_only_models(folder):
        raise EdmHlocError(
            f"{folder} holds other things than a COLMAP model: choose another folder."
        )


@contextlib.contextmanager
def new_model_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success; a model that was there is replaced.

    Its files are on the disk before it has its name.

    Raises:
        EdmHlocError: `out` holds other files than a COLMAP model's; as a `NoRoomError`: it cannot
            be written, or what was written is not whole.
    """
    check_replaceable(out)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover(temporary)
        temporary.mkdir()
    except OSError as error:
        raise NoRoomError(
            f"Cannot write {out}: {error.strerror or error}. Choose another output folder."
        ) from error
    try:
        yield temporary
        try:
            for folder in {path.parent for path in temporary.rglob("cameras.bin")}:
                check_binary_model(folder)  # COLMAP does not look whether the disk was full
        except EdmHlocError as error:
            raise NoRoomError(
                f"Cannot write {out}: COLMAP could not write all of it, as on a full disk. Free "
                "disk space, then run again: what is already stored is kept."
            ) from error
        try:
            for path in sorted(temporary.rglob("*")):
                force_to_disk(path)
            force_to_disk(temporary)
            _put_in_place(temporary, out)
            force_to_disk(out.parent)
        except OSError as error:
            raise NoRoomError(
                f"Cannot write {out}: {error.strerror or error}. Free disk space, then run again: "
                "what is already stored is kept."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(folder: Path, out: Path) -> None:
    """Gives a folder the name `out`. One that is there goes last: interrupted, one of them stays.

    Raises:
        OSError: a folder cannot be renamed or removed.
    """
    earlier = out.with_name(f".{out.name}.old")
    try:
        if out.exists():
            remove_leftover(earlier)
            out.rename(earlier)
        folder.replace(out)
    except BaseException:
        if earlier.exists() and not out.exists():
            earlier.rename(out)
        raise
    remove_leftover(earlier)


def write_model(
    model: pycolmap.Reconstruction, image_root: Path, folder: Path, *, recolour: bool = True
) -> None:
    """Writes the model as the folder's only content.

    Args:
        model: its repeated observations are dropped, see `drop_repeats`.
        image_root: folder of the photos.
        folder: is there already.
        recolour: colour the points from the photos, which are read for that.
    """
    drop_repeats(model)
    if recolour:
        _colour_points(model, image_root)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    model.write_binary(folder)


def drop_repeats(model: pycolmap.Reconstruction) -> None:
    """Leaves each photo of a point one observation of it, that of the smallest reprojection error.

    COLMAP's tracks may hold several keypoints of a photo, as these can lie within the error that is
    allowed. A photo tells no more of a point by them, and would count more than once. Points that
    one photo alone observes are dropped.

    Args:
        model: changed in place.
    """
    seen = ModelArrays.of(model)
    order = np.lexsort([seen.image, seen.point])
    image, point = seen.image[order], seen.point[order]
    again = (np.diff(image) == 0) & (np.diff(point) == 0)
    if not again.any():
        return
    its = order[np.append(again, False) | np.append(False, again)]
    image, point = seen.image[its], seen.point[its]
    errors = np.full(len(its), np.inf)
    for image_id in np.unique(image).tolist():
        of_image, own = image == image_id, model.images[image_id]
        xyz = seen.xyz[np.searchsorted(seen.ids, point[of_image])]
        pose = own.cam_from_world().matrix()
        places = model.cameras[own.camera_id].img_from_cam(xyz @ pose[:, :3].T + pose[:, 3])
        errors[of_image] = np.linalg.norm(places - seen.xy[its[of_image]], axis=1)
    order = np.lexsort([np.nan_to_num(errors, nan=np.inf), image, point])  # NaN behind the camera
    image, point, its = image[order], point[order], its[order]
    for n in its[1:][(np.diff(image) == 0) & (np.diff(point) == 0)].tolist():
        image_id, index = int(seen.image[n]), int(seen.index[n])
        if model.images[image_id].points2D[index].has_point3D():  # its point may be gone by now
            model.delete_observation(image_id, index)
    model.update_point_3d_errors()


def is_coloured(model: pycolmap.Reconstruction) -> bool:
    """Whether the points of a model have colours: without any all are black."""
    return any(point.color.any() for point in model.points3D.values())


def only_elsewhere(
    main: pycolmap.Reconstruction, others: Iterable[pycolmap.Reconstruction]
) -> tuple[str, ...]:
    """Names of the images that are posed in another separate model only, sorted."""
    return tuple(sorted({n for m in others for n in posed_images(m)} - posed_images(main).keys()))


def parts_folder(model: Path) -> Path:
    """Folder of the other models where the photos do not connect: `2`, `3`, … by falling size.

    It does not exist where there is one model only.
    """
    return model.with_name(f"{model.name}{_PARTS}")


def run_folder(model: Path) -> tuple[Path, bool]:
    """The folder of the run that wrote a model, and whether the model is one of its parts.

    Args:
        model: ``OUT/model``, or that of a part, ``OUT/model_parts/2``.
    """
    model = Path(model).absolute()
    of_parts = model.parent.name
    is_part = (
        of_parts.endswith(_PARTS)
        and model.name.isdecimal()
        and model.parent.with_name(of_parts.removesuffix(_PARTS)).is_dir()
    )
    return model.parents[1] if is_part else model.parent, is_part


def part_folders(model: Path) -> dict[str, Path]:
    """Folders of the other models of a run by their numbers, by falling size."""
    found = {p.name: p for p in parts_folder(model).glob("*") if p.name.isdecimal() and p.is_dir()}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def write_parts(models: Sequence[pycolmap.Reconstruction], image_root: Path, folder: Path) -> None:
    """Writes models into folders `2`, `3`, …; those of an earlier mapping are removed.

    Raises:
        EdmHlocError: `folder` holds other files than models.
    """
    check_replaceable(folder)
    if folder.exists():
        shutil.rmtree(folder)
    for number, model in enumerate(models, start=2):
        part = folder / str(number)
        part.mkdir(parents=True)
        write_model(model, image_root, part)


def _colour_points(model: pycolmap.Reconstruction, image_root: Path) -> None:
    """Gives each point the mean colour of the pixels that it is seen at.

    COLMAP's own function says nothing for minutes, lets no other thread say anything, and reads
    neither WebP nor HEIC.
    """
    seen = ModelArrays.of(model)
    number = len(seen.ids)
    sums, numbers = np.zeros((number, 3)), np.zeros(number)
    for name, image in track(posed_images(model).items(), "Colouring points", "photo"):
        its = seen.image == image.image_id
        if not its.any():
            continue
        try:
            pixels = stored_pixels(image_root / name)
        except ImageError as error:
            logger.warning("The colours of its points are of other photos, or none: %s", error)
            continue
        rows = np.searchsorted(seen.ids, seen.point[its])
        colours = colours_at(pixels, from_colmap(seen.xy[its]))
        sums[rows] += colours  # no point twice, see `drop_repeats`
        numbers[rows] += 1
    means = np.rint(sums / np.maximum(numbers, 1)[:, None]).astype(np.uint8)
    for i, mean in zip(seen.ids.tolist(), means, strict=True):
        model.points3D[i].color = mean
