"""The line about a search and the bars of loops: on a terminal only, gone when they have ended."""

import io
import itertools
import logging
import sys

from onnxcompress.base.search_terms import SearchStatus
from onnxcompress.cli import console, display
from onnxcompress.cli.display import Display, Silence


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Put a terminal in the place of stderr; in the test itself, since pytest puts its own there after fixtures."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return found


def status(best="", stage="whole"):
    return SearchStatus(stage=stage, best=best, left=lambda: "9 s left")


def test_the_line_has_the_best_the_stage_and_the_time_left(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with console.display(quiet=False) as shown:
        shown.show(status())
        assert shown.line() == "best so far: none | whole | 9 s left"
        shown.show(status("0.5 of the size", "cut"))
        assert shown.line() == "best so far: 0.5 of the size | cut | 9 s left"
    assert "best so far: 0.5 of the size | cut | 9 s left" in terminal.getvalue()
    assert shown.line() == ""
    length = len(terminal.getvalue())
    shown.show(status())  # of work that was left behind
    assert len(terminal.getvalue()) == length


def test_loops_that_take_long_have_a_bar_with_and_without_a_search(monkeypatch):
    terminal = on_terminal(monkeypatch)
    for is_search in (False, True):
        terminal.truncate(0)
        monkeypatch.setattr(display.time, "monotonic", itertools.count().__next__)
        with console.display(quiet=False) as shown:
            if is_search:
                shown.show(status())
            assert list(shown.progress("Measuring", "abcd")) == list("abcd")
            assert (shown._live is not None) is is_search
        assert "Measuring" in terminal.getvalue()
        assert ("best so far" in terminal.getvalue()) is is_search


def test_a_bar_ends_with_a_loop_that_is_left(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(display.time, "monotonic", itertools.count().__next__)
    shown = Display()
    items = shown.progress("Measuring", "abcd")
    for each in items:
        if each == "d":
            break
    items.close()
    assert shown._live is None
    assert "Measuring" in terminal.getvalue()


def test_nothing_is_shown_elsewhere(monkeypatch, capsys):
    assert type(console.display(quiet=False)) is Silence
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(console.display(quiet=True)) is Silence
    with console.display(quiet=True) as shown:
        shown.show(status())
        assert list(shown.progress("Measuring", "ab")) == ["a", "b"]
    assert sys.stderr.getvalue() == ""


def test_the_log_is_written_to_what_is_standard_error_then(monkeypatch):
    terminal = on_terminal(monkeypatch)
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a word", None, None)
    console._Stderr().handle(record)
    assert terminal.getvalue() == "a word\n"
