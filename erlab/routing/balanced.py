"""Optimal assignment of prompts to clusters of equal capacity, one step of balanced k-means.

c-BTM's published code (kernelmachine/balanced-kmeans) approximates it by an auction. Here it is solved exactly, as a
transport problem: every prompt starts at its cheapest cluster; then the cheapest chains of moves lead from clusters
above capacity to clusters with room. The costs of the chains give the dual prices of the optimum: if each cluster's
price is added to its costs, the cheapest cluster is the balanced one, for unseen prompts as well.

>>> labels, prices = assign(np.array([[0.0, 5.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]]))
>>> labels.tolist()
[0, 1, 0, 1]
"""

import numpy as np

_ROUNDING = 1e-12


def assign(costs: np.ndarray, prices: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Assign n rows to k columns at the least total cost, with at most ceil(n / k) rows per column.

    Args:
        costs: (n, k).
        prices: Initial prices (k,), such as those of a previous call.

    Returns:
        Labels (n,) and prices (k,) with mean 0: costs + prices of each row are smallest, up to rounding, at its label.
    """
    n, k = costs.shape
    labels = (costs + prices).argmin(axis=1)
    room = -(-n // k) - np.bincount(labels, minlength=k)
    moves, mover = np.full((k, k), np.inf), np.zeros((k, k), dtype=int)

    def refresh(column: int) -> None:
        """Find the cheapest row to move from `column` to each other column, and the cost of the move."""
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
    """Return the cost of the cheapest chain of moves from any source to each column, and its last column but one or -1.

    Bellman-Ford algorithm: a single move may have a negative cost, but no cycle of moves does.
    """
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
    """Return dual prices with mean 0: no move has a negative cost under them.

    The costs of the cheapest chains to any one column are such prices, and so are the negated costs of the chains from
    it; the mean of both is used. The price of an empty column is the lowest that attracts no row.
    """
    filled = np.isfinite(moves).all(axis=1)
    inner = moves[np.ix_(filled, filled)]
    chains = np.stack([_cheapest_chains(inner, np.arange(len(inner)) == column)[0] for column in range(len(inner))])
    prices = np.empty(len(moves))
    prices[filled] = (chains.mean(axis=1) - chains.mean(axis=0)) / 2
    prices[~filled] = (prices[filled, None] - moves[np.ix_(filled, ~filled)]).max(axis=0)
    return prices - prices.mean()
