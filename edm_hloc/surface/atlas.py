"""Texture images: the patches of a mesh cut out of their photos, and packed into pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from edm_hloc.base.compiled import floats
from edm_hloc.base.frames import from_colmap, to_colmap
from edm_hloc.base.progress import track
from edm_hloc.images.load import stored_pixels
from edm_hloc.surface.colours import ReducedPhoto
from edm_hloc.surface.ply import Mesh
from edm_hloc.surface.projection import Projected
from edm_hloc.surface.raster import draw_values
from edm_hloc.surface.seams import Patches, levelled
from edm_hloc.surface.views import Candidates, best_photos, neighbours

Array = np.ndarray

_SIDE = 4096  # px of a page, which all graphics hardware takes
_MOST_PAGES = 4
_PADDING = 3  # px around a patch, for what viewers interpolate
_SHRINK = 0.95  # of the scale of the photos, until all patches have room
_QUALITY = 90  # of JPEG
_FILLED = 10.0  # edges, up to which a triangle that no photo sees has the colour of another
_GREY = 128


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh with texture images, cut apart into N vertices at the seams.

    Attributes:
        vertices: (N, 3) in the frame of the model.
        uv: (N, 2) in [0, 1]: from the left border of the page to the right one, and from the upper
            one to the lower one.
        triangles: (T, 3) int32 of each page, rows of `vertices`.
        pages: JPEG files.
        rest: what no photo sees whole, with colours at its vertices.
    """

    vertices: Array
    uv: Array
    triangles: list[Array]
    pages: list[bytes]
    rest: Mesh

    def __len__(self) -> int:
        """The number of triangles."""
        return sum(map(len, self.triangles)) + len(self.rest.triangles)


def textured(
    mesh: Mesh, model: pycolmap.Reconstruction, images: Mapping[Path, pycolmap.Image], side: float
) -> TexturedMesh:
    """A mesh with the textures of photos.

    Args:
        mesh: in the frame of the model.
        model: its cameras are for the photos as they are stored.
        images: the posed images of the photos' files.
        side: px of a photo's longer side as the matcher saw it.
    """
    candidates = Candidates.of(mesh, model, images, side)
    pairs = neighbours(mesh)
    photos = best_photos(candidates, pairs)
    patches = Patches.of(mesh.triangles, photos, pairs)
    in_photos = candidates.colours_in(photos)
    usual = (candidates.usual_colours() - in_photos)[patches.rows]
    rest = _rest(mesh, photos, in_photos)
    if not len(patches.rows):
        return TexturedMesh(np.zeros((0, 3)), np.zeros((0, 2)), [], [], rest)
    cameras = [model.cameras[image.camera_id] for image in images.values()]
    points = _node_points(patches, mesh, cameras, list(images.values()))
    photo_sizes = np.array([(camera.width, camera.height) for camera in cameras])
    cut = Cut.of(patches, points, photo_sizes[patches.photo])
    sheets = [np.full((height, width, 3), _GREY, np.uint8) for width, height in cut.sizes]
    colours = np.zeros((len(points), 3))
    files = list(images)
    for photo in track(np.unique(patches.photo).tolist(), "Texturing", "photo"):
        pixels = stored_pixels(files[photo])
        nodes = patches.photo[patches.patch] == photo
        colours[nodes] = ReducedPhoto.of(pixels, side).at(points[nodes])
        size = _whole(np.array(pixels.shape[1::-1]), cut.scale)
        scaled = cv2.resize(pixels, size.tolist(), interpolation=cv2.INTER_AREA)
        for patch in np.flatnonzero(patches.photo == photo).tolist():
            (left, top), (width, height) = cut.low[patch], cut.size[patch]
            columns = np.arange(left, left + width).clip(0, size[0] - 1)
            rows = np.arange(top, top + height).clip(0, size[1] - 1)
            cut.window(sheets, patch)[:] = np.rint(scaled[rows[:, None], columns])
    _add_changes(sheets, cut, patches, levelled(patches, colours, usual))
    page = cut.page[patches.patch[patches.triangles[:, 0]]]
    return TexturedMesh(
        mesh.vertices[patches.vertex],
        cut.uv(patches),
        [patches.triangles[page == number].astype(np.int32) for number in range(len(sheets))],
        [_jpeg(sheet) for sheet in sheets],
        rest,
    )


def _node_points(
    patches: Patches,
    mesh: Mesh,
    cameras: Sequence[pycolmap.Camera],
    images: Sequence[pycolmap.Image],
) -> Array:
    """(N, 2) where the nodes are in their photos, hloc's frame."""
    points = np.zeros((len(patches.vertex), 2))
    photo_of = patches.photo[patches.patch]
    for photo in np.unique(photo_of).tolist():
        nodes = photo_of == photo
        vertices = mesh.vertices[patches.vertex[nodes]]
        points[nodes] = Projected.of(vertices, cameras[photo], images[photo]).pixels
    return points


class Cut(NamedTuple):
    """Which window of its photo each of P patches is, and where that is in the pages.

    Attributes:
        scale: of the photos in the pages.
        points: (N, 2) the nodes in the photos of that scale, hloc's frame.
        low: (P, 2) int, the top-left pixel of each window there.
        size: (P, 2) int, its width and height.
        page: (P,) its page.
        place: (P, 2) int, its top-left pixel there.
        sizes: width and height of each page.
    """

    scale: float
    points: Array
    low: Array
    size: Array
    page: Array
    place: Array
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, patches: Patches, points: Array, photo_sizes: Array) -> Cut:
        """The windows at the largest scale, up to that of the photos, at which they have room.

        Args:
            patches: the nodes of each are one after the other.
            points: (N, 2) the nodes in their photos, hloc's frame.
            photo_sizes: (P, 2) width and height of the photo of each patch.
        """
        first = np.searchsorted(patches.patch, np.arange(len(patches.photo)))
        scale = 1.0
        while True:
            factors = (_whole(photo_sizes, scale) / photo_sizes)[patches.patch]
            scaled = from_colmap(to_colmap(points) * factors)
            low = np.floor(np.minimum.reduceat(scaled, first)).astype(np.int64) - _PADDING
            high = np.ceil(np.maximum.reduceat(scaled, first)).astype(np.int64) + _PADDING
            size = high - low + 1
            packed = _packed(size)
            if packed is not None:
                return cls(scale, scaled, low, size, *packed)
            scale *= _SHRINK

    def window(self, sheets: Sequence[Array], patch: int) -> Array:
        """The part of the pages (height, width, 3) that a patch has."""
        (x, y), (width, height) = self.place[patch], self.size[patch]
        return sheets[self.page[patch]][y : y + height, x : x + width]

    def in_windows(self, patches: Patches) -> Array:
        """(N, 2) the nodes in the windows of their patches, hloc's frame."""
        return np.asarray(self.points - self.low[patches.patch])

    def uv(self, patches: Patches) -> Array:
        """(N, 2) texture coordinates of the nodes."""
        on_page = to_colmap(self.in_windows(patches) + self.place[patches.patch])
        return np.asarray(on_page / np.array(self.sizes)[self.page[patches.patch]])


def _whole(sizes: Array, scale: float) -> Array:
    """Sizes of photos at a scale, in whole pixels."""
    return np.maximum(1, np.rint(scale * sizes)).astype(np.int64)


def _packed(size: Array) -> tuple[Array, Array, list[tuple[int, int]]] | None:
    """Puts windows on shelves, the highest first.

    Args:
        size: (P, 2) width and height.

    Returns:
        The page (P,) and the place (P, 2) of each, and the sizes of the pages; None where they have
        no room.
    """
    area = float(np.prod(size, axis=1).sum())
    if size.max() > _SIDE or area > _MOST_PAGES * _SIDE**2:
        return None
    wide = int(min(_SIDE, max(size[:, 0].max(), np.ceil(1.05 * np.sqrt(area)))))
    page, place = np.zeros(len(size), np.int64), np.zeros(size.shape, np.int64)
    heights = [0]  # of the pages, as far as shelves are full
    x = shelf = 0
    for i in np.argsort(-size[:, 1], kind="stable").tolist():
        width, height = size[i].tolist()
        if x + width > wide:
            heights[-1] += shelf
            x = shelf = 0
        if shelf == 0 and heights[-1] + height > _SIDE:
            heights.append(0)
        shelf = shelf or height
        page[i], place[i] = len(heights) - 1, (x, heights[-1])
        x += width
    heights[-1] += shelf
    if len(heights) > _MOST_PAGES:
        return None
    return page, place, [(wide, height) for height in heights]


def _add_changes(sheets: Sequence[Array], cut: Cut, patches: Patches, changes: Array) -> None:
    """Adds the changes of colour (N, 3) of the nodes to the patches on the pages."""
    corners = floats(cut.in_windows(patches)[patches.triangles])
    values = floats(changes[patches.triangles])
    patch_of = patches.patch[patches.triangles[:, 0]]
    order = np.argsort(patch_of, kind="stable")
    ends = np.searchsorted(patch_of[order], np.arange(len(patches.photo) + 1))
    window = (2 * _PADDING + 1,) * 2
    for patch in range(len(patches.photo)):
        its = order[ends[patch] : ends[patch + 1]]
        width, height = cut.size[patch].tolist()
        drawn, covered = (
            np.zeros((height, width, 3), np.float32),
            np.zeros((height, width), np.float32),
        )
        draw_values(corners[its], values[its], drawn, covered)
        # what viewers interpolate beside the patch changes as its border does
        beside = cv2.blur(drawn, window) / np.maximum(cv2.blur(covered, window), 1e-6)[..., None]
        drawn = np.where(covered[..., None] > 0, drawn, beside)
        target = cut.window(sheets, patch)
        target[:] = np.rint(target + drawn).clip(0, 255)


def _rest(mesh: Mesh, photos: Array, colours: Array) -> Mesh:
    """The triangles without a photo, in the colours of the nearest ones that have one.

    Args:
        mesh: all triangles.
        photos: (T,) the photo of each, -1 for none.
        colours: (T, 3) of the triangles that have one.
    """
    has = photos >= 0
    rest = mesh.with_triangles(~has)
    found = np.full(rest.vertices.shape, _GREY, np.uint8)
    if has.any() and len(rest.vertices):
        middles = mesh.vertices[mesh.triangles[has]].mean(axis=1)
        distances, nearest = cKDTree(middles).query(rest.vertices)
        close = distances < _FILLED * rest.vertex_cloud().spacings
        found[close] = np.rint(colours[has][nearest[close]])
    return Mesh(rest.vertices, found, rest.triangles)


def _jpeg(sheet: Array) -> bytes:
    """The file of a page (height, width, 3), RGB."""
    done, data = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return data.tobytes()
