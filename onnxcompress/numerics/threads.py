"""Linear algebra on one thread: results of BLAS and LAPACK differ with the number of threads."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which BLAS uses one thread, in every thread of this process."""
    return threadpool_limits(limits=1, user_api="blas")  # type: ignore[no-any-return]
