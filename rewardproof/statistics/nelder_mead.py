"""Nelder and Mead's simplex search, one question at a time: whoever asks may take as long as it likes over an answer."""

# N coordinates; a simplex has N + 1 vertices.
from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from rewardproof.errors import EvaluationError
from rewardproof.statistics.checks import FloatArray, finite

REFLECTION, EXPANSION, CONTRACTION, SHRINKAGE = 1.0, 2.0, 0.5, 0.5


@dataclass
class Vertex:
    """A point of the simplex and what it was found to be worth."""

    point_N: FloatArray
    value: float = -np.inf


class NelderMead:
    r"""Seeks the maximum of a function of which only values are known.

    With the vertices in order of their values, best first, and the centre c of all but the worst w:

    .. math::
        \text{reflect } r = c + (c - w) \qquad \text{expand } c + 2 (r - c) \qquad
        \text{contract } c + \tfrac12 (w - c) \qquad \text{shrink } b + \tfrac12 (x_i - b)

    Example:
        >>> search = NelderMead([[0.0], [1.0]])
        >>> for _ in range(60):
        ...     search.tell(-float((search.asked_N[0] - 3.0) ** 2))
        >>> search.best.point_N.round(3)
        array([3.])

    Reference:
        Nelder and Mead, The Computer Journal 7 (1965); as a search for thresholds Moskovitz et al., arXiv:2310.04373, algorithm 3.
    """

    def __init__(self, simplex: Sequence[Sequence[float]] | FloatArray) -> None:
        """Begin with a simplex, one row a vertex.

        Raises:
            EvaluationError: The vertices span no volume.
        """
        points = finite(simplex, "vertices")
        if points.ndim != 2 or len(points) != points.shape[1] + 1 or np.linalg.matrix_rank(points[1:] - points[0]) < points.shape[1]:
            raise EvaluationError(
                f"Got a simplex of shape {points.shape}, expected N + 1 vertices in N coordinates that lie in no plane together: the "
                "search would never leave it. Give vertices that differ in every coordinate."
            )
        self.vertices = [Vertex(point_N) for point_N in points]
        self._moves = _moves(self.vertices)
        self.asked_N: FloatArray = next(self._moves)

    def tell(self, value: float) -> None:
        """What the point asked for is worth; `asked_N` becomes the next one."""
        self.asked_N = self._moves.send(value)

    @property
    def best(self) -> Vertex:
        """The best vertex."""
        return max(self.vertices, key=lambda vertex: vertex.value)


def _moves(vertices: list[Vertex]) -> Generator[FloatArray, float, None]:
    for vertex in vertices:
        vertex.value = yield vertex.point_N
    while True:
        vertices.sort(key=lambda vertex: -vertex.value)
        worst, second_worst = vertices[-1], vertices[-2]
        centre_N = np.mean([vertex.point_N for vertex in vertices[:-1]], axis=0)
        reflected = Vertex(centre_N + REFLECTION * (centre_N - worst.point_N))
        reflected.value = yield reflected.point_N
        if reflected.value > vertices[0].value:
            expanded = Vertex(centre_N + EXPANSION * (reflected.point_N - centre_N))
            expanded.value = yield expanded.point_N
            vertices[-1] = max(reflected, expanded, key=lambda vertex: vertex.value)
        elif reflected.value > second_worst.value:
            vertices[-1] = reflected
        else:
            contracted = Vertex(centre_N + CONTRACTION * (worst.point_N - centre_N))
            contracted.value = yield contracted.point_N
            if contracted.value > worst.value:
                vertices[-1] = contracted
                continue
            for vertex in vertices[1:]:
                vertex.point_N = vertices[0].point_N + SHRINKAGE * (vertex.point_N - vertices[0].point_N)
                vertex.value = yield vertex.point_N
