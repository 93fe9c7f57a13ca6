"""The cheapest assignment of prompts to clusters of equal capacity, the step that balanced k-means repeats.

c-BTM's published code (kernelmachine/balanced-kmeans) solves it approximately, by auction. Here it is solved exactly,
as a transport problem: prompts start at their cheapest cluster, then whole chains of moves, each the cheapest there
is, lead from clusters over capacity to clusters with room. The chains' costs give the optimum's dual prices: with a
cluster's price added to its costs, the cheapest cluster is the balanced one, for unseen prompts too.

>>> labels, prices = assign(np.array([[0.0, 5.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]]))
>>> labels.tolist()
[0, 1, 0, 1]
"""

import numpy as np

_ROUNDING = 1e-12


def assign(costs: np.ndarray, prices: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest assignment of n rows to k columns with at most ceil(n / k) rows a column, and its prices.

    costs: (n, k). prices: (k,) to start from, such as an earlier answer's. Returns labels (n,) and prices (k,) with
    mean 0, for which every row's costs + prices are least (up to rounding) at its label.
    """
    n, k = costs.shape
    labels = (costs + prices).argmin(axis=1)
    room = -(-n // k) - np.bincount(labels, minlength=k)
    moves, mover = np.full((k, k), np.inf), np.zeros((k, k), dtype=int)

    def refresh(column: int) -> None:
        """Find the cheapest row to move from `column` to each other column, and what that costs."""
        rows = np.flatnonzero(labels == column)
        if len(rows):
            extra = costs[rows] - costs[rows, column, None]
            best = extra.argmin(axis=0)
            moves[column], mover[column] = extra[best, np.arange(k)], rows[best]
        else:
            moves[column] = np.inf
        moves[column, column] = 0

    for column in range(k):
        refresh(column)
    while True:
        over = room < 0
        reach, before = _cheapest_chains(moves, over if over.any() else np.ones(k, dtype=bool))
        end = column = int(np.where(room > 0, reach, np.inf).argmin())
        if not over.any() and not (room[end] > 0 and reach[end] < -_ROUNDING):
            break
        while before[column] >= 0:
            labels[mover[before[column], column]] = column
            refresh(column)
            column = before[column]
        refresh(column)
        room[column] += 1
        room[end] -= 1
    return labels, _prices(moves)


def _cheapest_chains(moves: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cost of the cheapest chain of moves from any source to each column, and the column before it (-1: none).

    Bellman and Ford's algorithm: a move may pay off, but in an optimal assignment no ring of moves does."""
    reach = np.where(sources, 0.0, np.inf)
    before = np.full(len(reach), -1)
    for _ in reach:
        through = reach[:, None] + moves
        nearest = through.argmin(axis=0)
        cost = through[nearest, np.arange(len(reach))]
        better = cost < reach - _ROUNDING
        if not better.any():
            break
        reach[better], before[better] = cost[better], nearest[better]
    return reach, before


def _prices(moves: np.ndarray) -> np.ndarray:
    """Prices under which no move pays, in the middle of those that are possible, with mean 0.

    Costs of the cheapest chains to any one column are such prices, and so are negated costs of those from it; their
    mean lies between. An empty column's price is the lowest that attracts no row."""
    filled = np.isfinite(moves).all(axis=1)
    inner = moves[np.ix_(filled, filled)]
    chains = np.stack([_cheapest_chains(inner, np.arange(len(inner)) == column)[0] for column in range(len(inner))])
    prices = np.empty(len(moves))
    prices[filled] = (chains.mean(axis=1) - chains.mean(axis=0)) / 2
    prices[~filled] = (prices[filled, None] - moves[np.ix_(filled, ~filled)]).max(axis=0)
    return prices - prices.mean()
