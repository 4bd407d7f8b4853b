"""Whether two photos show the same things: the raw matches of a pair that fit one geometry."""

from __future__ import annotations

import cv2
import numpy as np

from edm_hloc.base.matches import Matches

_MOST = 1000  # matches that are looked at, those with the highest scores
_TOLERANCE = 1 / 400  # of the extent of the keypoints, to an epipolar line: 2.5 px of 1,000
_MIN_SHARE = 0.25  # of the matches: chance lets fewer agree


def agreeing_matches(matches: Matches, min_share: float = _MIN_SHARE) -> int:
    """Number of matches of a pair that one fundamental matrix explains; 0 if it explains few.

    It takes milliseconds, and does not replace the verification of keypoints: it tells which
    photos are worth pairing further.

    Args:
        matches: raw matches of a pair, of which the 1,000 with the highest scores count.
        min_share: of these, below which it explains few.
    """
    if len(matches) < 8:
        return 0
    best = matches[np.argsort(-matches.scores, kind="stable")[:_MOST]]
    points = [np.asarray(p, np.float64) for p in (best.keypoints0, best.keypoints1)]
    extent = max(float(np.ptp(p, axis=0).max()) for p in points)
    if extent <= 0:
        return 0
    cv2.setRNGSeed(0)
    # in units of the tolerance, so that photos of all sizes are treated alike
    first, second = (p / (extent * _TOLERANCE) for p in points)
    try:
        _, inliers = cv2.findFundamentalMat(first, second, cv2.USAC_ACCURATE, 1.0, 0.999, 500)
    except cv2.error:  # of degenerate matches
        return 0
    count = 0 if inliers is None else int(np.count_nonzero(inliers))
    return count if count >= min_share * len(best) else 0
