"""What of a run's record is believed, and whether files are as it says."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import is_model, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import remove_leftover
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_json_object
from edm_hloc.images.masks import find_masks
from edm_hloc.mapping.output import holds_only_models, run_folder

logger = logging.getLogger(__name__)


def _are_names(names: Any) -> bool:
    """Whether something is a list of names of entries of a folder, and of nothing outside it."""
    return isinstance(names, list) and all(
        isinstance(name, str) and name not in ("", "..") and name == Path(name).name
        for name in names
    )


def is_written(entry: Any) -> bool:
    """Whether something has the form of the values of `Run.wrote`."""
    return (
        isinstance(entry, dict)
        and _are_names(entry.get("files"))
        and isinstance(entry.get("results"), list)
    )


def is_set_aside(entry: Any) -> bool:
    """Whether something has the form of the values of `Run.earlier`."""
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(part), dict) for part in ("results", "sizes", "places"))
        and _are_names([*entry["places"], *entry["places"].values()])
        and (entry.get("wrote") == {} or is_written(entry.get("wrote")))
    )


def recorded_folder(out: Path, record: Mapping[str, Any], name: str) -> Path | None:
    """The folder that a run's settings name, such as "images"; None if they name none.

    It need not be there. Where only the run's folder is found, but not under its recorded path,
    both have moved: then the other one is looked for where it lay beside it.

    Args:
        out: output folder of the run.
        record: of the run.
        name: of the setting.
    """
    settings = record.get("settings")
    recorded = settings.get(name) if isinstance(settings, dict) else None
    if not recorded:
        return None
    folder, at = Path(str(recorded)), record.get("folder")
    if not folder.is_absolute():  # the oldest records do not tell what it is relative to
        if folder.is_dir():
            warn_once(
                f"{out / 'run.json'} was written by an older version and names the folder {folder} "
                f"as it was typed. {folder.resolve()} is taken for it: if that is another one, run "
                "this command in the folder where the run was started."
            )
        return folder
    if not folder.exists() and isinstance(at, str):  # one mask of all photos is a file
        with contextlib.suppress(ValueError):  # another drive
            moved = Path(os.path.normpath(out.resolve() / os.path.relpath(folder, at)))
            if moved != folder and moved.exists():
                warn_once(f"{folder} has moved with {out}: {moved} is taken for it.")
                return moved
    return folder


def recorded_for(model: Path, name: str) -> Path | None:
    """A folder or file that the run has recorded which made a model; None without one.

    Args:
        model: ``OUT/model``, or that of a part, ``OUT/model_parts/2``.
        name: of the setting.

    Raises:
        EdmHlocError: the record of the run is damaged.
    """
    record = run_folder(model)[0] / "run.json"
    if not record.is_file():
        return None
    return recorded_folder(record.parent, read_json_object(record, "record of a run"), name)


def masks_of_run(model: Path, images: Path) -> dict[str, Path]:
    """The masks of the run that wrote a model, by the names of its photos.

    None where no run is recorded beside it, or its masks cannot be used, of which a warning tells.

    Args:
        model: folder of the model.
        images: folder of the photos.
    """
    try:
        masks = recorded_for(model, "masks")
        if masks is None:
            return {}
        return find_masks(masks, sorted(posed_images(read_model(model))), images)
    except EdmHlocError as error:
        logger.warning("Points may come to lie in masked parts of photos: %s", error)
        return {}


def is_whole(path: Path, recorded: int | None) -> bool:
    """Whether a file or folder has the recorded size; where none is recorded, whether it exists."""
    return path.exists() and recorded in (None, size_of(path))


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def discard(path: Path) -> bool:
    """Removes a file, or a folder of models to which nobody has added something; whether it did."""
    removed = path.is_symlink() or not path.is_dir() or holds_only_models(path)
    if removed:
        remove_leftover(path)
    return removed


def keep_changed(path: Path, recorded: int | None) -> None:
    """Renames a model that somebody has changed since, as by refining it in place.

    What was changed is not this program's any more: nothing removes it under the new name.

    Args:
        path: of a file or folder.
        recorded: its size when it was written; None where that is not known.

    Raises:
        EdmHlocError: it cannot be renamed.
    """
    if is_model(path) and not is_whole(path, recorded):
        kept = path.with_name(earlier_name(path.name, path.parent, "changed"))
        try:
            path.rename(kept)
        except OSError as error:
            raise EdmHlocError(f"Cannot rename {path}: {error.strerror or error}.") from error
        logger.warning("%s has changed since this run wrote it, and is kept as %s.", path, kept)


def is_earlier_name(name: str) -> bool:
    """Whether a file has an `earlier_name`."""
    return re.search(r"_earlier(_\d+)?$", Path(name).stem) is not None


def earlier_name(name: str, folder: Path | None = None, what: str = "earlier") -> str:
    """The name of a file or folder while it is set aside, before the suffix.

    Args:
        name: of the file.
        folder: in which there must be nothing of the new name yet; None for any.
        what: is added to the name.
    """
    path = Path(name)
    numbered = (f"{path.stem}_{what}_{number}{path.suffix}" for number in itertools.count(2))
    every = itertools.chain([f"{path.stem}_{what}{path.suffix}"], numbered)
    return next(n for n in every if folder is None or not os.path.lexists(folder / n))
