"""The command line: one file a command, each a few lines around one library call.

Heavy imports happen inside commands, so that help is there at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..errors import OnnxCompressError, one_line
from ..runtime.isolation import Isolation, isolated
from . import batch, compare, compress, distill, docs, inspect, lists, record, run, split, unpack
from .supervised import ChildDiedError, supervised

__all__ = ["app", "main"]

app = typer.Typer(
    help="Make an exported .onnx model smaller and faster, and prove that it is still good.",
    epilog="Example: onnxcompress compress model.onnx -o small.onnx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=compress.EXAMPLE)(compress.compress)
app.command(epilog=inspect.EXAMPLE)(inspect.inspect)
app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=distill.EXAMPLE)(distill.distill)
app.command(epilog=split.EXAMPLE)(split.split)
app.command(epilog=run.EXAMPLE)(run.run)
app.command(epilog=record.EXAMPLE, context_settings={"allow_interspersed_args": False})(record.record)
app.command(epilog=batch.EXAMPLE)(batch.batch)
app.command(epilog=unpack.EXAMPLE)(unpack.unpack)
app.command(name="passes", epilog=lists.PASSES_EXAMPLE)(lists.show_passes)
app.command(name="recipes", epilog=lists.RECIPES_EXAMPLE)(lists.show_recipes)
app.command(name="docs", epilog=docs.EXAMPLE)(docs.show_docs)

_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of the errors that typer raises for mistakes on the command line; typer has it in a private module."""
_INTERRUPTED = 130
"""Exit code after SIGINT, as shells have it."""
_BUG = 70
"""Exit code of an internal error (EX_SOFTWARE)."""


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"onnxcompress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Make an exported .onnx model smaller and faster, and prove that it is still good."""


def main() -> NoReturn:
    """Run the command line and end the process with the promised exit code.

    Every error is one line on stderr; only a bug of ours shows a traceback.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        # A program of the user's has to be in the group of processes that the terminal talks to.
        code = _run("none") if sys.argv[1:2] == ["record"] else supervised(_run)
    except ChildDiedError as death:
        code = _died(death)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; what was to be done is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give output that the caller has closed nowhere to go: the next file to be opened would get its number."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


def _run(isolation: Isolation) -> int:
    try:
        with isolated(isolation):
            code = app(prog_name="onnxcompress", standalone_mode=False)
    except OnnxCompressError as error:
        return _fail(str(error), error.exit_code)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer has shown the help
            return 2
        return _fail(f"{_message(error)} {_help_hint(error)}", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except MemoryError:
        return _fail("out of memory. Use a machine with more of it, or a smaller model", 3)
    except OSError as error:
        return _fail(_os_error(error), 3)
    except Exception:  # noqa: BLE001 - the last line of defence
        return _bug()
    was_ours = code == _INTERRUPTED and sys.argv[1:2] != ["record"]
    return _fail("interrupted", _INTERRUPTED) if was_ours else code if isinstance(code, int) else 0


def _died(death: ChildDiedError) -> int:
    """End as the child did where it was told to, else say what happened."""
    if death.number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(death.number, signal.SIG_DFL)
        os.kill(os.getpid(), death.number)
    hint = "There may be too little memory" if death.number == signal.SIGKILL else "The model can't be worked on"
    return _fail(f"the process that did the work {death}. {hint}", 3)


def _os_error(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror or error}"


def _message(error: Exception) -> str:
    text = str(getattr(error, "format_message", error.__str__)())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _help_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "onnxcompress")
    return f"`{path} --help` lists what it takes"


def _fail(message: str, code: int) -> int:
    _say(f"onnxcompress: error: {one_line(message)}")
    return code


def _bug() -> int:
    _say(traceback.format_exc().rstrip())
    _say("onnxcompress: this is a bug of ours: please report it with the lines above and, if you can, the model")
    return _BUG


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
