"""Cameras of a run whose calibration no lens has."""

from __future__ import annotations

import numpy as np
import pycolmap

from edm_hloc.report.facts import RunFacts

FIELD_OF_VIEW = (12.0, 130.0)  # plausible range, degrees along the longer side
MAX_DISTORTION = 0.5  # largest plausible coefficient, absolute
_MOST_OFF = 1.5  # factor between a focal length and that of the EXIF data


def odd_cameras(facts: RunFacts) -> list[str]:
    """What is odd about each camera of which something is, unless the EXIF data say so."""
    odd = []
    for camera in _cameras(facts):
        if camera.params.size and not len(camera.focal_length_idxs()):
            continue  # a panorama
        focal = camera.mean_focal_length() if camera.params.size else 0.0
        angle = np.degrees(2 * np.arctan(max(camera.width, camera.height) / 2 / max(focal, 1e-9)))
        extra = camera.params[camera.extra_params_idxs()].copy()
        # A second coefficient acts with the fourth power of the radius: little in long lenses.
        extra[1:2] *= min(1.0, (camera.width**2 + camera.height**2) / (2 * max(focal, 1e-9)) ** 2)
        plain = camera.model_name in ("SIMPLE_RADIAL", "RADIAL", "OPENCV")
        told = focal / facts.prior_focal_lengths.get(camera.camera_id, np.inf)
        as_told = 1 / _MOST_OFF < told < _MOST_OFF
        if not FIELD_OF_VIEW[0] <= angle <= FIELD_OF_VIEW[1] and not as_told:
            lens = ", right for a long telephoto lens only" if angle < FIELD_OF_VIEW[0] else ""
            odd.append(f"a field of view of {angle:.0f}°{lens}")
        elif plain and np.abs(extra).max(initial=0) > MAX_DISTORTION:
            odd.append(f"a distortion of {extra[np.abs(extra).argmax()]:+.2f}")
    return odd


def may_share(facts: RunFacts) -> bool:
    """Whether there are several cameras, all for photos of one size."""
    cameras = _cameras(facts)
    return len(cameras) > 1 and len({(c.width, c.height) for c in cameras}) == 1


def _cameras(facts: RunFacts) -> list[pycolmap.Camera]:
    """Each camera once."""
    return list({camera.camera_id: camera for camera in facts.cameras.values()}.values())
