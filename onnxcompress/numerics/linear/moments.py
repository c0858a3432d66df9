"""Sums of products of rows, which solve least-squares problems without keeping the rows.

Sums are float64, per group (first axis); a layer without groups has one. Moments of parts of the data add up. Products
within a chunk of rows are float64 as well, or float32 around the chunk's means, which takes half the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .positive_definite import require_finite

CHUNK_ROWS = 4096
"""Rows that are converted to float64 at a time, for memory. Chosen by judgement; not measured."""
_SINGLE_RANGE = (1e-12, 1e12)
"""Largest magnitude in a chunk of rows between which its products can be float32: their squares are then within its
range, by far."""
MOST_COLUMNS = 4608
"""Most columns for which `xx` is kept by default: 170 MB per group. Chosen for memory."""


@dataclass
class Moments:
    """Sums over rows x [groups, n, columns] and targets y [groups, n, outputs].

    Args:
        groups: number of parts that are summed separately.
        columns: numbers in a row.
        outputs: numbers in a target; 0 for none.
        is_full: False to keep `x`, `y` and `yy` alone, for rows too wide for a square of their columns.
        is_single: True for products within a chunk in float32, around its means: sums of squares have relative errors
            of about 1e-6 then. For solutions with a penalty far above that, not for errors that are compared.

    Attributes:
        count: rows.
        x: [groups, columns] sum of x.
        xx: [groups, columns, columns] sum of x' x; None unless full.
        y: [groups, outputs] sum of y.
        xy: [groups, columns, outputs] sum of x' y; None unless full.
        yy: [groups, outputs] sum of y^2.
    """

    groups: int
    columns: int
    outputs: int = 0
    is_full: bool = field(default=True, kw_only=True)
    is_single: bool = field(default=False, kw_only=True)
    count: int = field(default=0, kw_only=True)
    x: np.ndarray = field(init=False, repr=False)
    xx: np.ndarray | None = field(init=False, repr=False)
    y: np.ndarray = field(init=False, repr=False)
    xy: np.ndarray | None = field(init=False, repr=False)
    yy: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        groups, columns, outputs = self.groups, self.columns, self.outputs
        self.x = np.zeros((groups, columns))
        self.y = np.zeros((groups, outputs))
        self.yy = np.zeros((groups, outputs))
        self.xx = np.zeros((groups, columns, columns)) if self.is_full else None
        self.xy = np.zeros((groups, columns, outputs)) if self.is_full else None

    def update(self, x: np.ndarray, y: np.ndarray | None = None, *, chunk_rows: int = CHUNK_ROWS) -> None:
        """Add rows.

        Args:
            x: float [groups, n, columns].
            y: float [groups, n, outputs]; None without targets.
            chunk_rows: rows that are converted to float64 at a time.

        Raises:
            ValueError: the shapes don't fit.
        """
        n = x.shape[1]
        if x.shape != (self.groups, n, self.columns):
            raise ValueError(f"rows of shape {list(x.shape)} for {self.groups} groups of {self.columns} columns")
        if self.outputs > 0 if y is None else y.shape != (*x.shape[:2], self.outputs):
            raise ValueError(f"{self.outputs} outputs, targets {None if y is None else list(y.shape)}")
        self.count += n
        with np.errstate(over="ignore", invalid="ignore"):  # `require_finite` names it
            self._add(x, y, chunk_rows)

    def _add(self, x: np.ndarray, y: np.ndarray | None, chunk_rows: int) -> None:
        """Add rows of the right shapes."""
        for start in range(0, x.shape[1], chunk_rows):
            rows = x[:, start : start + chunk_rows]
            targets = None if y is None else y[:, start : start + chunk_rows].astype(np.float64)
            if targets is not None:
                self.y += targets.sum(axis=1)
                self.yy += np.square(targets).sum(axis=1)
            if self.is_single and self.is_full and _is_in_range(rows) and (targets is None or _is_in_range(targets)):
                self._add_single(rows.astype(np.float32), targets)
                continue
            rows = rows.astype(np.float64)
            across = rows.transpose(0, 2, 1)
            self.x += rows.sum(axis=1)
            if self.xx is not None:
                for total, left, right in zip(self.xx, across, rows, strict=True):
                    total += left @ right  # of one buffer with itself: half the work of a product
            if targets is not None and self.xy is not None:
                self.xy += across @ targets

    def _add_single(self, rows: np.ndarray, targets: np.ndarray | None) -> None:
        """Add a chunk, its products in float32.

        With rows x = m + d and targets y = p + t, where m and p are float32 means,
        x' y = d' t + m' sum(y) + sum(x)' p - n m' p, in which only d' t is not float64.
        """
        assert self.xx is not None
        count = rows.shape[1]
        sums = rows.sum(axis=1, dtype=np.float64)
        self.x += sums
        means = (sums / count).astype(np.float32)
        moved = rows - means[:, None]
        across = moved.transpose(0, 2, 1)
        middle = means.astype(np.float64)
        for total, left, right, at, of in zip(self.xx, across, moved, middle, sums, strict=True):
            total += left @ right
            total += np.outer(at, of - count * at)
            total += np.outer(of, at)
        if targets is None or self.xy is None:
            return
        all_targets = targets.sum(axis=1)
        target_means = (all_targets / count).astype(np.float32)
        around = targets.astype(np.float32) - target_means[:, None]
        target_middle = target_means.astype(np.float64)
        self.xy += across @ around
        self.xy += middle[:, :, None] * (all_targets - count * target_middle)[:, None, :]
        self.xy += sums[:, :, None] * target_middle[:, None, :]

    def require_finite(self) -> None:
        """Refuse sums that are not finite.

        Raises:
            NotFiniteError: rows or targets had infinities or NaNs, or their sums overflow.
        """
        for name, sums in (("inputs", self.xx if self.xx is not None else self.x), ("targets", self.yy)):
            require_finite(sums, f"the sum over a layer's {name}")

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows.

        Raises:
            ValueError: they are moments of different things.
        """
        if self._kind() != other._kind():
            raise ValueError(f"moments of {self._kind()} and of {other._kind()}")
        both = Moments(self.groups, self.columns, self.outputs, is_full=self.is_full, count=self.count + other.count)
        both.x, both.y, both.yy = self.x + other.x, self.y + other.y, self.yy + other.yy
        if self.xx is not None and other.xx is not None:
            both.xx = self.xx + other.xx
        if self.xy is not None and other.xy is not None:
            both.xy = self.xy + other.xy
        return both

    def mean(self) -> np.ndarray:
        """Return the mean row, [groups, columns]."""
        return self.x / max(1, self.count)

    def target_mean(self) -> np.ndarray:
        """Return the mean target, [groups, outputs]."""
        return self.y / max(1, self.count)

    def second(self) -> np.ndarray:
        """Return the mean of x' x, [groups, columns, columns].

        Raises:
            ValueError: the moments are not full.
        """
        found: np.ndarray = self._full(self.xx) / max(1, self.count)
        return found

    def covariance(self) -> np.ndarray:
        """Return the mean of (x - mean)' (x - mean), [groups, columns, columns].

        Raises:
            ValueError: the moments are not full.
        """
        mean = self.mean()
        found: np.ndarray = self.second() - mean[:, :, None] * mean[:, None, :]
        return found

    def cross_covariance(self) -> np.ndarray:
        """Return the mean of (x - mean)' (y - mean), [groups, columns, outputs].

        Raises:
            ValueError: the moments are not full.
        """
        mean = self.mean()[:, :, None] * self.target_mean()[:, None, :]
        found: np.ndarray = self._full(self.xy) / max(1, self.count) - mean
        return found

    def target_variance(self) -> np.ndarray:
        """Return the mean of (y - mean)^2, [groups, outputs]."""
        found: np.ndarray = np.maximum(0, self.yy / max(1, self.count) - self.target_mean() ** 2)
        return found

    def error(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the mean of (y - x weights' - bias)^2 over the rows, [groups, outputs].

        Args:
            weights: [groups, outputs, columns].
            bias: [groups, outputs].

        Raises:
            ValueError: the moments are not full.
        """
        weights, bias = weights.astype(np.float64), bias.astype(np.float64)
        offset = self.target_mean() - np.einsum("gok,gk->go", weights, self.mean()) - bias
        product = weights @ self.covariance()
        explained = np.einsum("gok,gok->go", product, weights)
        shared = np.einsum("gok,gko->go", weights, self.cross_covariance())
        found: np.ndarray = np.maximum(0, self.target_variance() - 2 * shared + explained) + offset**2
        return found

    def _kind(self) -> tuple[int, int, int, bool]:
        return self.groups, self.columns, self.outputs, self.is_full

    @staticmethod
    def _full(sums: np.ndarray | None) -> np.ndarray:
        if sums is None:
            raise ValueError("the products of columns were not summed")
        return sums


def _is_in_range(rows: np.ndarray) -> bool:
    """Say whether the squares of rows, float [groups, n, columns], are within the range of float32."""
    largest = np.abs(rows).max(initial=0.0)
    return bool(_SINGLE_RANGE[0] < largest < _SINGLE_RANGE[1])


def rows_wanted(columns: int, *, per_column: int = 64, least: int = 16384) -> int:
    """Return the rows that a least-squares solution over columns needs to hold on other rows.

    Measured: with 16 rows per column the error on other rows fell to 0.70 of what it was, with 64 to
    0.06, with 256 to 0.004.
    """
    return max(least, per_column * (columns + 1))
