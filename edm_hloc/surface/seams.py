"""Levels colours at the seams of a texture: photos differ in exposure, and lenses darken corners.

Each vertex gets a change of colour in each patch it is part of, so that patches agree where they
meet and the changes are smooth inside: Lempitsky and Ivanov, 2007; Waechter et al., "Let There Be
Color!", 2014, section 4. Over larger areas they lead to the colours that most photos show.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg

Array = np.ndarray

_SMOOTH = 0.3  # weight of a change along an edge, against one of a difference at a seam
_USUAL = 1e-3  # … of a difference to the usual colour
_LARGEST = 60.0  # grey levels by which a colour is changed
_PRECISION, _ITERATIONS = 1e-4, 1000


class Patches(NamedTuple):
    """Parts of a mesh that one photo shows, cut apart: the vertices of each are nodes of their own.

    Attributes:
        triangles: (T, 3) int, the nodes of textured triangles.
        rows: (T,) int, which triangles of the mesh these are.
        vertex: (N,) the vertex of each node.
        patch: (N,) the patch of each node.
        photo: (P,) the photo of each patch.
    """

    triangles: Array
    rows: Array
    vertex: Array
    patch: Array
    photo: Array

    @classmethod
    def of(cls, triangles: Array, photos: Array, pairs: Array) -> Patches:
        """Those of a mesh.

        Args:
            triangles: (T, 3) of the mesh.
            photos: (T,) the photo of each, -1 for none.
            pairs: (E, 2) neighbouring triangles.
        """
        joined = pairs[photos[pairs[:, 0]] == photos[pairs[:, 1]]]
        number = len(triangles)
        graph = coo_array((np.ones(len(joined), np.int8), joined.T), (number, number))
        rows = np.flatnonzero(photos >= 0)
        component = connected_components(graph, directed=False)[1][rows]
        _, first, patch_of = np.unique(component, return_index=True, return_inverse=True)
        vertices = int(triangles.max(initial=-1)) + 1
        keys = patch_of.reshape(-1, 1).astype(np.int64) * vertices + triangles[rows]
        nodes, numbers = np.unique(keys, return_inverse=True)
        return cls(
            numbers.reshape(-1, 3),
            rows,
            nodes % max(vertices, 1),
            nodes // max(vertices, 1),
            photos[rows][first],
        )


def levelled(patches: Patches, colours: Array, usual: Array) -> Array:
    """The changes of colour (N, 3) float32 of the nodes.

    Args:
        patches: of a mesh.
        colours: (N, 3) the photo's colour at each node.
        usual: (T, 3) the change of colour of each textured triangle to what photos usually show.
    """
    number = len(patches.vertex)
    if not number:
        return np.zeros((0, 3), np.float32)
    order = np.argsort(patches.vertex, kind="stable")
    again = np.flatnonzero(np.diff(patches.vertex[order]) == 0)
    seams = np.stack([order[again], order[again + 1]])
    triangles = patches.triangles
    edges = np.unique(
        np.sort(np.stack([triangles, np.roll(triangles, -1, axis=1)], 2).reshape(-1, 2), axis=1),
        axis=0,
    ).T
    rows = np.concatenate([seams, edges], axis=1)
    weights = np.repeat([1.0, _SMOOTH], [seams.shape[1], edges.shape[1]])
    differences = _differences(rows, number)
    wanted = np.zeros((rows.shape[1], 3))
    wanted[: seams.shape[1]] = colours[seams[1]] - colours[seams[0]]
    weighted = differences.T * weights[None, :]
    normal = csr_array(weighted @ differences) + _USUAL * diags_array(np.ones(number))
    inverse = diags_array(1 / normal.diagonal())
    right = weighted @ wanted + _USUAL * _at_nodes(triangles, usual, number)
    changes = [
        cg(normal, column, rtol=_PRECISION, maxiter=_ITERATIONS, M=inverse)[0] for column in right.T
    ]
    return np.stack(changes, axis=1).clip(-_LARGEST, _LARGEST).astype(np.float32)


def _at_nodes(triangles: Array, values: Array, number: int) -> Array:
    """(N, 3) the means at the nodes of values (T, 3) of their triangles."""
    at = triangles.ravel()
    count = np.maximum(np.bincount(at, minlength=number), 1)
    sums = [np.bincount(at, np.repeat(column, 3), number) for column in values.T]
    return np.stack(sums, axis=1) / count[:, None]


def _differences(rows: Array, number: int) -> csr_array:
    """(M, N) the matrix of the differences between the first and the second of nodes (2, M)."""
    count = rows.shape[1]
    signs = np.repeat([1.0, -1.0], count)
    return csr_array((signs, (np.tile(np.arange(count), 2), rows.ravel())), (count, number))
