"""Ctrl-C with `--keep-best`: the first one ends the search, not the run; the second one ends the run as always.

passes --Ctrl-C--> the best so far is proved, scored, returned --Ctrl-C--> KeyboardInterrupt
passes --end-----> the result is proved, scored, returned --Ctrl-C--> ends as it would have --Ctrl-C--> the same
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Interrupts:
    """Hears SIGINT for the time of a block; where it is not wanted, or is not the main thread's, nothing is changed.

    Args:
        is_wanted: `--keep-best`.
    """

    def __init__(self, *, is_wanted: bool = False) -> None:
        self.is_wanted = is_wanted
        self.is_result_found = False
        """Set where a search has ended and its result is only to be finished: the first Ctrl-C does not end that."""
        self._count = 0
        self._before: object = None

    def __enter__(self) -> Self:
        is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.is_wanted and is_usual and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hear(self, _: int, __: FrameType | None) -> None:
        self._count += 1
        if self.is_result_found and self._count == 1:
            log.warning("the result is being finished; Ctrl-C once more gives it up")
            return
        raise KeyboardInterrupt
