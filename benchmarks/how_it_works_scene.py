"""The rendered scene of how_it_works.py, the pair that it follows, and its folder of pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import numpy as np
import pycolmap
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.files import write_whole
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.geometry import epipolar_errors, essential_matrix
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Matcher
from edm_hloc.synthetic.photo_collection import make_photo_collection

SIZE = (1280, 960)
VIEWS = 10
FIRST, SECOND = "view_02.jpg", "view_05.jpg"  # the pair that the page follows
QUERY = "view_04.jpg"  # left out of the model, localized in it
MAX_BYTES = 120_000  # of a picture


class Output:
    """The folder of pictures, and the lines of numbers."""

    def __init__(self, folder: Path) -> None:
        self.pictures = folder / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._numbers = folder / "numbers.txt"
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        print(line)
        self._lines.append(line)
        write_whole(self._numbers, "\n".join([*self._lines, ""]).encode())

    def jpeg(self, name: str, picture: np.ndarray, width: int) -> None:
        """Writes RGB (H, W, 3), reduced to a width, with the best quality that the size allows."""
        height = round(picture.shape[0] * width / picture.shape[1])
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        for quality in range(92, 30, -4):
            _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            if len(data) <= MAX_BYTES:
                break
        write_whole(self.pictures / f"{name}.jpg", data.tobytes())

    def figure(self, name: str, figure: Figure) -> None:
        """Writes a figure as PNG, or as JPEG if that would be too large."""
        buffer = io.BytesIO()
        figure.savefig(buffer, bbox_inches="tight")
        plt.close(figure)
        png = buffer.getvalue()
        if len(png) <= MAX_BYTES:
            write_whole(self.pictures / f"{name}.png", png)
            return
        pixels = np.asarray(Image.open(buffer).convert("RGB"))
        self.jpeg(name, pixels, min(1100, pixels.shape[1]))


@dataclass(frozen=True)
class Scene:
    """The rendered photos and their true cameras.

    Attributes:
        photos: folder of the photos of the model.
        new: folder of the photo that is localized.
        truth: COLMAP model with the true cameras.
    """

    photos: Path
    new: Path
    truth: pycolmap.Reconstruction

    @classmethod
    def make(cls, folder: Path) -> Scene:
        photos, new = folder / "photos", folder / "new"
        if not new.exists():
            images = make_photo_collection(folder, VIEWS, SIZE, seed=0)
            photos.mkdir(exist_ok=True)
            for path in sorted(images.iterdir()):
                if path.name != QUERY:
                    (photos / path.name).write_bytes(path.read_bytes())
            new.mkdir()
            (new / QUERY).write_bytes((images / QUERY).read_bytes())
        return cls(photos, new, read_model(folder / "truth"))

    def epipolar_distances(self, matches: Matches, name0: str, name1: str) -> np.ndarray:
        """(M,) distance in pixels of the photos from the true epipolar lines, the larger of two."""
        images = posed_images(self.truth)
        cameras = [self.truth.cameras[images[name].camera_id] for name in (name0, name1)]
        K0, K1 = (camera.calibration_matrix() for camera in cameras)
        relative = images[name1].cam_from_world() * images[name0].cam_from_world().inverse()
        E = essential_matrix(relative.matrix())
        F = np.linalg.inv(K1).T @ E @ np.linalg.inv(K0)
        x0, x1 = (
            np.column_stack([to_colmap(points.astype(np.float64)), np.ones(len(points))])
            for points in (matches.keypoints0, matches.keypoints1)
        )
        return np.maximum(*epipolar_errors(x0, x1, F))


def load_photo(path: Path, matcher: Matcher) -> NetworkImage:
    p = matcher.info.preprocessing
    return load_image(path, resize_max=p.resize_max, divisor=p.divisor, grayscale=p.grayscale)
