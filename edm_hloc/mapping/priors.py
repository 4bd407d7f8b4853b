"""Known positions of photos in the mapping: cameras stay near them where the matches are weak."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import adjust_all_images, open_database, posed_images

_LEAST = 3  # positions that place a model


@dataclass(frozen=True)
class PositionPriors:
    """Where photos were taken, in a local frame in metres.

    Attributes:
        places: (3,) positions by the photos' names.
        deviations: (3,) their standard deviations along the axes.
    """

    places: Mapping[str, Sequence[float]]
    deviations: Mapping[str, Sequence[float]]


def with_priors(database: Path, out: Path, priors: PositionPriors) -> Path:
    """Copies a database to `out`, with the positions as pose priors, which the mapper then uses."""
    shutil.copyfile(database, out)
    with open_database(out) as db, pycolmap.DatabaseTransaction(db):
        db.clear_pose_priors()
        for image in db.read_all_images():
            if image.name in priors.places:
                db.write_pose_prior(_prior_of(image, priors))
    return out


def use_priors(colmap: pycolmap.IncrementalPipelineOptions, database: Path) -> None:
    """Makes the mapper use the pose priors of a database, if it has any.

    A robust loss keeps wrong positions from bending the model.
    """
    with open_database(database) as db:
        colmap.use_prior_position = db.num_pose_priors() > 0
    colmap.use_robust_loss_on_prior_position = True


def adjust_to_priors(
    model: pycolmap.Reconstruction,
    priors: PositionPriors,
    colmap: pycolmap.IncrementalPipelineOptions,
    constant: Collection[int],
) -> None:
    """Brings a model into the frame of the positions and adjusts it to them and to its matches.

    A model of which fewer than three photos have positions stays as it is.

    Args:
        model: changed in place.
        priors: the positions; wrong ones count little (Cauchy's loss).
        colmap: what is refined of the cameras, and thresholds.
        constant: ids of the cameras whose intrinsics stay.
    """
    posed = posed_images(model)
    given = [_prior_of(image, priors) for name, image in posed.items() if name in priors.places]
    if len(given) < _LEAST:
        return
    config = adjust_all_images(model, constant)
    robust = pycolmap.PosePriorBundleAdjustmentOptions()
    robust.alignment_ransac.random_seed = 0
    robust.ceres.prior_position_loss_function_type = pycolmap.LossFunctionType.CAUCHY
    with at_work("Adjusting to the positions"):
        pycolmap.create_pose_prior_bundle_adjuster(
            colmap.get_global_bundle_adjustment(), robust, config, given, model
        ).solve()
    pycolmap.ObservationManager(model).filter_all_points3D(
        colmap.mapper.filter_max_reproj_error, colmap.mapper.filter_min_tri_angle
    )
    model.update_point_3d_errors()


def _prior_of(image: pycolmap.Image, priors: PositionPriors) -> pycolmap.PosePrior:
    return pycolmap.PosePrior(
        corr_data_id=image.data_id,
        position=np.array(priors.places[image.name], float).reshape(3, 1),
        position_covariance=np.diag(np.square(priors.deviations[image.name])),
        coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
    )
