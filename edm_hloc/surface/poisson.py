"""Poisson surface reconstruction by COLMAP, cut back to where there are points.

Kazhdan and Hoppe, "Screened Poisson Surface Reconstruction", 2013. It closes every surface. COLMAP
4.2 trims its result wrongly (coordinates of the wrong byte order), so this is done here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from edm_hloc.base.files import scratch_folder, write_whole
from edm_hloc.surface.cloud import Cloud
from edm_hloc.surface.ply import Mesh, cloud_ply, read_mesh

_DEEPEST = 13  # levels of the octree; each takes up to four times the memory
_REACH = 4.0  # spacings from the next point of the cloud, up to which the surface is kept
_SMALLEST_PIECE = 0.01  # share of all matches


def poisson_mesh(cloud: Cloud) -> Mesh:
    """The grey mesh of a cloud; without triangles if the cloud is empty."""
    if not len(cloud):
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.int32))
    middle = np.median(cloud.points, axis=0)  # the file has single precision
    with scratch_folder() as folder:
        before, after = Path(folder) / "cloud.ply", Path(folder) / "mesh.ply"
        grey = np.full(cloud.points.shape, 128, np.uint8)
        write_whole(before, cloud_ply(cloud, grey, middle))
        options = pycolmap.PoissonMeshingOptions()
        options.depth = octree_depth(cloud)
        options.trim = 0
        pycolmap.poisson_meshing(before, after, options)
        mesh = read_mesh(after)  # COLMAP does not say when the disk is full
    moved = Mesh(mesh.vertices + middle, mesh.colours, mesh.triangles)
    return without_small_pieces(near_points(moved, cloud), cloud)


def octree_depth(cloud: Cloud) -> int:
    """Depth at which a cell of the octree is as large as the finer spacings of the cloud."""
    size = float(np.ptp(cloud.points, axis=0).max())
    finest = float(np.percentile(cloud.spacings, 25))
    return max(1, min(_DEEPEST, math.ceil(math.log2(max(1.1 * size / finest, 2)))))


def near_points(mesh: Mesh, cloud: Cloud) -> Mesh:
    """The triangles whose corners all are near a point of the cloud."""
    distances, which = cKDTree(cloud.points).query(mesh.vertices)
    near = distances < _REACH * cloud.spacings[which]
    return mesh.with_triangles(near[mesh.triangles].all(axis=1))


def without_small_pieces(mesh: Mesh, cloud: Cloud) -> Mesh:
    """Without what hangs together and has less than one per cent of all matches.

    What few photos show, such as the background of an object, can be large but has few matches.
    """
    number, (a, b, c) = len(mesh.vertices), mesh.triangles.T
    if not number:
        return mesh
    rows, columns = np.concatenate([a, b]), np.concatenate([b, c])
    edges = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (number, number))
    piece = connected_components(edges, directed=False)[1]
    nearest = cKDTree(mesh.vertices).query(cloud.points)[1]
    matches = np.bincount(piece[nearest], cloud.matches, minlength=piece.max() + 1)
    return mesh.with_triangles((matches >= _SMALLEST_PIECE * matches.sum())[piece[a]])
