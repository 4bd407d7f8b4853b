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
import io
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from PIL import Image

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.compiled import floats
from edm_hloc.base.files import make_folder
from edm_hloc.base.frames import from_colmap, to_colmap
from edm_hloc.images.load import colours_at, stored_pixels
from edm_hloc.pipelines.mesh import Surfaces
from edm_hloc.surface.atlas import TexturedMesh, textured
from edm_hloc.surface.colours import colours_of
from edm_hloc.surface.ply import Mesh
from edm_hloc.surface.poisson import poisson_mesh
from edm_hloc.surface.projection import Projected
from edm_hloc.surface.raster import draw_values
from edm_hloc.surface.simplify import simplified

_TRIANGLES = 400_000  # of textured meshes, as in `edm-hloc mesh`
_RIM = 3  # px around what the mesh does not cover, where it is not compared
_FINER = 3
_COARSE = 4.0  # px of the blur that leaves the shade

Array = np.ndarray


def drawn(
    mesh: Mesh | TexturedMesh,
    camera: pycolmap.Camera,
    image: pycolmap.Image,
    shape: tuple[int, int],
) -> tuple[Array, Array]:
    """What a camera sees of a mesh, drawn `_FINER` times as large, as textures are finer.

    Returns:
        (H, W) bool, whether a pixel is covered, and (H, W, 3) the picture.
    """
    textured = mesh if isinstance(mesh, TexturedMesh) else None
    coloured = mesh.rest if isinstance(mesh, TexturedMesh) else mesh
    vertices, triangles = coloured.vertices, coloured.triangles
    at, colours = np.full(vertices.shape, -1.0), coloured.colours.astype(np.float64)
    if textured is not None:  # its nodes come first, with their page and their place on it
        page = np.zeros(len(textured.vertices))
        for number, its in enumerate(textured.triangles):
            page[its] = number
        at = np.concatenate([np.column_stack([textured.uv, page]), at])
        colours = np.concatenate([np.zeros(textured.vertices.shape), colours])
        triangles = np.concatenate([*textured.triangles, triangles + len(textured.vertices)])
        vertices = np.concatenate([textured.vertices, vertices])

    size = (_FINER * shape[0], _FINER * shape[1])
    projected = Projected.of(vertices, camera, image)
    scale = np.array([size[1] / camera.width, size[0] / camera.height])
    points = floats(from_colmap(to_colmap(projected.pixels) * scale))
    seen = triangles[np.isfinite(points[triangles]).all(axis=(1, 2))]
    seen = seen[np.argsort(-projected.depths[seen].mean(axis=1), kind="stable")]  # the nearest last
    picture, places = np.zeros((*size, 3), np.float32), np.zeros((*size, 3), np.float32)
    covered = np.zeros(size, np.float32)
    draw_values(floats(points[seen]), floats(at[seen]), places, covered.copy())
    draw_values(floats(points[seen]), floats(colours[seen]), picture, covered)
    for number, file in enumerate(textured.pages if textured is not None else ()):
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        of_page = (covered > 0) & (np.rint(places[..., 2]) == number)
        there = places[of_page, :2] * pixels.shape[1::-1]
        picture[of_page] = colours_at(pixels, from_colmap(there))
    reduced = [
        cv2.resize(values, shape[::-1], interpolation=cv2.INTER_AREA)
        for values in (covered, picture.astype(np.float64))
    ]
    return reduced[0] > 1 - 1e-3, reduced[1]


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
    first, second = (np.rint(pixels).astype(np.uint8) for pixels in (true, grey))
    unknown = np.empty((0, 0), np.float32)  # no flow to begin with
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, unknown)
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
    others = copy.deepcopy(found.model)
    for name in left_out:
        others.deregister_frame(posed[name].frame_id)
    colours = colours_of(whole.vertex_cloud(), others, args.images, found.side)
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
            seen = drawn(mesh, camera, posed[name], photo.shape[:2])
            figures, drawing = compared(*seen, photo.astype(np.float64))
            rows[kind].append(figures)
            drawings.append(drawing)
        if args.pictures:
            beside = np.rint(np.hstack(drawings)).astype(np.uint8)[..., ::-1]
            cv2.imwrite(str(args.pictures / f"{Path(name).stem}.png"), beside)
    print(f"{len(left_out)} photos left out")
    print("| | covered (%) | shade (grey levels) | detail (%) | alike | beside (px) |")
    print("|---|---|---|---|---|---|")
    for kind, of_photos in rows.items():
        share, shade, detail, alike, misplaced = np.nanmedian(np.array(of_photos), axis=0)
        print(
            f"| {kind} | {share:.0f} | {shade:.1f} | {detail:.0f} | {alike:.2f} | {misplaced:.2f} |"
        )


if __name__ == "__main__":
    main()
