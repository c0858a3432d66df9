"""The documentation: pages that the command lists and prints, links that resolve, commands that the parser accepts."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from onnxcompress import passes, recipe
from onnxcompress.cli import app, docs
from onnxcompress.errors import UsageError

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "onnxcompress/docs").glob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "SECURITY.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = 150
"""Of the README: what is longer is not read."""


def commands(text):
    """Return the words of every onnxcompress command in the blocks that show a shell; outputs are left out."""
    found = []
    for kind, block in BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        typed = [line.removeprefix("$ ") for line in lines if kind == "sh" or line.startswith("$ ")]
        found += [shlex.split(line, comments=True)[1:] for line in typed if line.startswith("onnxcompress ")]
    return found


def parse(words):
    """Let the parser of the command line read words, and run nothing; files need not be there."""
    command = typer.main.get_command(app).commands[words[0]]
    for parameter in command.params:
        parameter.callback = None
    command.make_context(words[0], list(words[1:])).close()


COMMANDS = [(path.name, words) for path in TEXTS for words in commands(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands_are_accepted(page, words):
    parse(words)
    if "--recipe" in words:
        name = words[words.index("--recipe") + 1]
        settings = [value for key, value in itertools.pairwise(words) if key == "--set"]
        assert name.endswith(".toml") or recipe.Recipe.load(name, settings)


def test_the_check_of_commands_would_notice():
    text = "```console\n$ onnxcompress compress a.onnx \\\n    --recipes fold\nonnxcompress: done\n```\n"
    assert commands(text) == [["compress", "a.onnx", "--recipes", "fold"]]
    with pytest.raises(typer.BadParameter.__mro__[2], match="--recipes"):
        parse(commands(text)[0])
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_resolve(path):
    targets = [link.split("#")[0] for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    missing = [target for target in targets if target and not (path.parent / target).is_file()]
    assert missing == []


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert {path.name for path in PAGES} <= {Path(link).name for link in LINK.findall(text)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_a_title_and_one_line_that_says_what_it_is_about(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert (lines[1], lines[3]) == ("", "")
    assert lines[2].endswith(".")
    assert len(lines[2]) <= 130


def test_every_page_is_listed_with_its_line():
    done = CliRunner().invoke(app, ["docs"])
    assert done.exit_code == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[2:] if " " in line)
    for path in PAGES:
        assert rows[path.stem] == path.read_text(encoding="utf-8").splitlines()[2]


@pytest.mark.parametrize("topic", ["int8", "INT8", "int8.md"])
def test_a_page_is_printed_as_it_is_in_a_pipe(topic):
    done = CliRunner().invoke(app, ["docs", topic])
    assert done.stdout == (ROOT / "onnxcompress/docs/int8.md").read_text(encoding="utf-8")


def test_a_page_is_laid_out_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = CliRunner().invoke(app, ["docs", "int8"], terminal_width=80)
    assert "```" not in done.stdout
    assert "Only stored as int8, without data" in done.stdout


@pytest.mark.parametrize(
    ("topic", "said"),
    [("pruneing", "Did you mean 'pruning'"), ("int-8", "Did you mean 'int8'"), ("qqqq", "Known: batch, coming-from")],
)
def test_an_unknown_topic_names_the_nearest(topic, said):
    with pytest.raises(UsageError, match=said) as caught:
        docs.read(topic)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("topic", ["../README", "../../README", "/etc/passwd", "", "."])
def test_nothing_but_pages_is_printed(topic):
    with pytest.raises(UsageError, match="unknown topic"):
        docs.read(topic)


def test_pages_name_every_pass_recipe_and_command():
    recipes = (ROOT / "onnxcompress/docs/recipes.md").read_text(encoding="utf-8")
    assert [name for name in passes.SHIPPED if f"\n| `{name}` |" not in recipes] == []
    assert [name for name in recipe.shipped() if f"\n| `{name}` |" not in recipes] == []
    wrong = [name for name in passes.SHIPPED if f"| `{name}` | {_lossless(name)} |" not in recipes]
    assert wrong == ["surgery"]  # its function is the user's
    lines = (ROOT / "onnxcompress/docs/command-line.md").read_text(encoding="utf-8")
    assert [name for name in typer.main.get_command(app).commands if f"`{name}" not in lines] == []


def _lossless(name):
    return "yes" if passes.pass_class(name).lossless else "no"


def test_every_option_of_the_commands_is_in_a_page():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                assert words & set(parameter.opts), f"{name} {parameter.opts}"
