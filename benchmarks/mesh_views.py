"""How well textured meshes show photos that their textures were not taken from.

    python benchmarks/mesh_views.py OUT IMAGES [--every 6] [--pictures FOLDER]

OUT is a run of `edm-hloc reconstruct IMAGES OUT`. Its surface is made from all matches, as
`edm-hloc mesh` does; its colours from all photos but every sixth one. Each photo that was left out
is compared, at --side px, with the mesh drawn from its place: with the texture (.glb), and with
colours at the vertices (.ply). Printed are medians over these photos, where the mesh covers them,
the exposure adjusted by a factor for each colour: the root mean square of the difference of grey
levels after blurring by 4 px (shade); the contrast of what is finer than that, of the photo's
(detail), and its correlation with the photo's (alike); and how far the drawing is beside the photo,
by optical flow (px). --pictures keeps photos and drawings beside each other.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.compiled import compiled, floats
from edm_hloc.base.files import make_folder
from edm_hloc.images.load import colours_at, stored_pixels
from edm_hloc.pipelines.mesh import Surfaces
from edm_hloc.surface.atlas import TexturedMesh, textured
from edm_hloc.surface.colours import colours_of
from edm_hloc.surface.ply import Mesh
from edm_hloc.surface.poisson import poisson_mesh
from edm_hloc.surface.projection import Projected
from edm_hloc.surface.simplify import simplified

_TRIANGLES = 400_000  # of textured meshes, as in `edm-hloc mesh`
_RIM = 3  # px around what the mesh does not cover, where it is not compared
_FINER = 3
_COARSE = 4.0  # px of the blur that leaves the shade

Array = np.ndarray


@compiled
def draw(corners: Array, inverse: Array, values: Array, nearest: Array, drawn: Array) -> None:
    """Draws what is in front: values (T, 3, C) at corners (T, 3, 2) of inverse depths (T, 3)."""
    height, width = nearest.shape
    for t in range(len(corners)):
        x0, y0 = corners[t, 0]
        x1, y1 = corners[t, 1]
        x2, y2 = corners[t, 2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0:
            continue
        for y in range(
            max(0, math.ceil(min(y0, y1, y2))), min(height - 1, math.floor(max(y0, y1, y2))) + 1
        ):
            for x in range(
                max(0, math.ceil(min(x0, x1, x2))), min(width - 1, math.floor(max(x0, x1, x2))) + 1
            ):
                b = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
                c = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
                if b < 0 or c < 0 or b + c > 1:
                    continue
                a = 1 - b - c
                value = a * inverse[t, 0] + b * inverse[t, 1] + c * inverse[t, 2]
                if value <= nearest[y, x]:
                    continue
                nearest[y, x] = value
                for k in range(values.shape[2]):
                    drawn[y, x, k] = (
                        a * inverse[t, 0] * values[t, 0, k]
                        + b * inverse[t, 1] * values[t, 1, k]
                        + c * inverse[t, 2] * values[t, 2, k]
                    ) / value


class View:
    """What a camera sees of meshes; drawn `_FINER` times as large, as textures are finer."""

    def __init__(self, camera: pycolmap.Camera, image: pycolmap.Image, shape: tuple[int, int]):
        self._camera, self._image, self._shape = camera, image, shape
        shape = (_FINER * shape[0], _FINER * shape[1])
        self._scale = np.array([shape[1] / camera.width, shape[0] / camera.height])
        self.nearest = np.zeros(shape, np.float32)
        self.picture = np.zeros((*shape, 3))

    def add(self, vertices: Array, triangles: Array, values: Array, page: Array | None) -> None:
        """Draws triangles with colours at the vertices, or places of a texture."""
        projected = Projected.of(vertices, self._camera, self._image)
        points = floats((projected.pixels + 0.5) * self._scale - 0.5)
        seen = triangles[np.isfinite(points[triangles]).all(axis=(1, 2))]
        before = self.nearest.copy()
        drawn = np.zeros((*self.nearest.shape, values.shape[1]), np.float32)
        inverse = floats(1 / projected.depths)
        draw(points[seen], inverse[seen], floats(values[seen]), self.nearest, drawn)
        new = self.nearest > before
        if page is None:
            self.picture[new] = drawn[new]
        else:
            at = drawn[new] * page.shape[1::-1] - 0.5
            self.picture[new] = colours_at(page, at)

    def reduced(self) -> tuple[Array, Array]:
        """(H, W) bool, whether a pixel is covered, and (H, W, 3) the picture."""
        size = self._shape[::-1]
        covered = cv2.resize(
            (self.nearest > 0).astype(np.float32), size, None, 0, 0, cv2.INTER_AREA
        )
        picture = cv2.resize(self.picture, size, None, 0, 0, cv2.INTER_AREA)
        return covered > 1 - 1e-3, picture

    def of_textured(self, mesh: TexturedMesh) -> View:
        for triangles, page in zip(mesh.triangles, mesh.pages, strict=True):
            pixels = cv2.imdecode(np.frombuffer(page, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            self.add(mesh.vertices, triangles, mesh.uv, pixels)
        if len(mesh.rest.triangles):
            self.of_mesh(mesh.rest)
        return self

    def of_mesh(self, mesh: Mesh) -> View:
        self.add(mesh.vertices, mesh.triangles, mesh.colours, None)
        return self


def compared(covered: Array, picture: Array, photo: Array) -> tuple[list[float], Array]:
    """Covered, shade, detail, alike and misplaced of a drawing; and the drawing, exposed."""
    covered = cv2.erode(covered.astype(np.uint8), np.ones((2 * _RIM + 1,) * 2)) > 0
    if not covered.any():
        return [0.0, *[math.nan] * 4], picture
    middle = np.median(photo[covered], axis=0), np.median(picture[covered], axis=0)
    exposed = (picture * middle[0] / np.maximum(middle[1], 1)).clip(0, 255)
    true, grey = (
        np.where(covered, pixels.mean(axis=2), pixels[covered].mean())
        for pixels in (photo, exposed)
    )
    coarse = [cv2.GaussianBlur(pixels, (0, 0), _COARSE) for pixels in (true, grey)]
    shade = math.sqrt(np.mean((coarse[1] - coarse[0])[covered] ** 2))
    fine = [(p - c)[covered] for p, c in zip((true, grey), coarse, strict=True)]
    detail = float(fine[1].std() / fine[0].std())
    alike = float(np.corrcoef(fine[0], fine[1])[0, 1])
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
        *(np.rint(pixels).astype(np.uint8) for pixels in (true, grey)), None
    )
    misplaced = float(np.median(np.linalg.norm(flow[covered], axis=1)))
    return [100 * float(covered.mean()), shade, 100 * detail, alike, misplaced], exposed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder of a run")
    parser.add_argument("images", type=Path, help="folder of its photos")
    parser.add_argument("--every", type=int, default=6, help="of the photos is left out")
    parser.add_argument("--side", type=int, default=1000, help="px of the longer side")
    parser.add_argument("--pictures", type=Path, help="folder for the drawings")
    args = parser.parse_args()

    found = Surfaces.of_run(args.out / "model", args.images)
    posed = posed_images(found.model)
    left_out = sorted(posed)[args.every // 2 :: args.every]
    kept = {args.images / n: image for n, image in posed.items() if n not in left_out}
    whole = poisson_mesh(found.cloud)
    with_texture = textured(simplified(whole, _TRIANGLES), found.model, kept, found.side)
    seen = copy.deepcopy(found.model)
    for name in left_out:
        seen.deregister_frame(posed[name].frame_id)
    colours = colours_of(whole.vertex_cloud(), seen, args.images, found.side)
    coloured = replace(whole, colours=colours)
    if args.pictures:
        make_folder(args.pictures)

    rows: dict[str, list[list[float]]] = {"texture": [], "colours at vertices": []}
    for name in left_out:
        photo = stored_pixels(args.images / name)
        scale = min(1.0, args.side / max(photo.shape))
        size = [round(scale * length) for length in photo.shape[1::-1]]
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        camera = found.model.cameras[posed[name].camera_id]
        drawings = [photo.astype(np.float64)]
        for kind, mesh in (("texture", with_texture), ("colours at vertices", coloured)):
            view = View(camera, posed[name], photo.shape[:2])
            view = view.of_mesh(mesh) if isinstance(mesh, Mesh) else view.of_textured(mesh)
            figures, drawing = compared(*view.reduced(), photo.astype(np.float64))
            rows[kind].append(figures)
            drawings.append(drawing)
        if args.pictures:
            beside = np.rint(np.hstack(drawings)).astype(np.uint8)[..., ::-1]
            cv2.imwrite(str(args.pictures / f"{Path(name).stem}.png"), beside)
    print(f"{len(left_out)} photos left out")
    print("| | covered (%) | shade (grey levels) | detail (%) | alike | beside (px) |")
    print("|---|---|---|---|---|---|")
    for kind, figures in rows.items():
        share, shade, detail, alike, misplaced = np.nanmedian(np.array(figures), axis=0)
        print(
            f"| {kind} | {share:.0f} | {shade:.1f} | {detail:.0f} | {alike:.2f} | {misplaced:.2f} |"
        )


if __name__ == "__main__":
    main()
