"""UV charts: the connected pieces of an unwrap."""

import numpy as np
import scipy.sparse
from jaxtyping import Int
from scipy.sparse.csgraph import connected_components


def uv_charts(uv_faces: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, " F"]:
    """Chart of each face: faces that share a UV vertex are in one chart; -1 for faces without UV.

    Charts are numbered in the order of their first face.
    """
    chart = np.full(len(uv_faces), -1, np.int64)
    has_uv = (uv_faces >= 0).all(1)
    corners = uv_faces[has_uv].astype(np.int64)
    if not len(corners):
        return chart
    count = int(corners.max()) + 1
    first, second = corners[:, [0, 1]].T.ravel(), corners[:, [1, 2]].T.ravel()
    graph = scipy.sparse.coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    label = connected_components(graph, directed=False)[1][corners[:, 0]]
    _, first_face, renumbered = np.unique(label, return_index=True, return_inverse=True)
    chart[has_uv] = np.argsort(np.argsort(first_face))[renumbered]
    return chart
