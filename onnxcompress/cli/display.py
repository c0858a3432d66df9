"""Display on stderr while a command works: a line about the search, and bars of loops. Only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress, TaskID

    from ..base.search_terms import SearchStatus

_QUICK_SECONDS = 1.0
"""What takes no longer shows no progress bar."""
_REFRESHES = 2
"""Times a second that the line is written anew. Chosen by judgement."""


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def progress(self, _: str, items: Sequence[Any]) -> Iterator[Any]:
        """Return the items."""
        return iter(items)

    def show(self, status: SearchStatus) -> None:
        """Show nothing."""


class Display(Silence):
    """Shows the state of a search and the loops that take more than a second, until it is left."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._bars: Progress | None = None
        self._status: SearchStatus | None = None
        self._is_left = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        self._status = None
        self._stop()

    def progress(self, title: str, items: Sequence[Any]) -> Iterator[Any]:
        """Wrap a loop in a bar, which appears after a second."""
        started, task = time.monotonic(), None
        try:
            for done, item in enumerate(items):
                if task is None and time.monotonic() - started > _QUICK_SECONDS:
                    task = self._begun(title, len(items))
                if task is not None and self._bars is not None:
                    self._bars.update(task, completed=done)
                yield item
        finally:
            if task is not None and self._bars is not None:
                self._bars.remove_task(task)
                if not self._bars.tasks and self._status is None:
                    self._stop()

    def show(self, status: SearchStatus) -> None:
        """Show a line with the best so far, what is being done, and the time that is left."""
        self._status = status
        self._start()
        self._refresh()

    def line(self) -> str:
        """Return that line, empty before there is one."""
        status = self._status
        return "" if status is None else f"best so far: {status.best or 'none'} | {status.stage} | {status.left()}"

    def _begun(self, title: str, total: int) -> TaskID | None:
        self._start()
        task = None if self._bars is None else self._bars.add_task(title, total=total)
        self._refresh()
        return task

    def _refresh(self) -> None:
        live = self._live
        if live is not None:
            live.refresh()

    def _start(self) -> None:
        """Begin to write; work that was left behind when the display was left shows nothing any more."""
        if self._live is not None or self._is_left:
            return
        from rich.console import Console
        from rich.live import Live
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bars = Progress(console=console)
        self._live = Live(console=console, get_renderable=self._rendered, refresh_per_second=_REFRESHES, transient=True)
        self._live.start()

    def _stop(self) -> None:
        live, self._live, self._bars = self._live, None, None
        if live is not None:
            live.stop()

    def _rendered(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._status is not None:
            parts.append(Text(self.line(), no_wrap=True, overflow="ellipsis"))
        if self._bars is not None and self._bars.tasks:
            parts.append(self._bars.get_renderable())
        return Group(*parts)
