"""Check the words of the package: docstrings and messages in plain technical English, constants that say why.

    python tools/check_english.py [FOLDER]

Prints `path:line: what is wrong` for each fault and exits with 1 where there is one. It finds
- docstrings that begin with What, How, Which, Where, Whether or Why: they describe what has a name;
- words of the table `BETTER` in docstrings and in texts of two words and more;
- numeric constants of modules and classes that have no docstring below them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ASKING = ("What", "How", "Which", "Where", "Whether", "Why", "Who", "When")
"""First words that no docstring has; properties and functions that answer yes or no begin with "True"."""

BETTER = {
    r"made[- ]up": "synthetic",
    r"makes? up for|made up for|make good|made good|mend(s|ed|ing)?": "compensates, corrected",
    r"(is|are|be|was|were|stays?|leaves?|left) alone": "kept, skipped",
    r"falls? silent|silenced?|silence": "is zeroed, ablated",
    r"leans? on|leaning": "depends on",
    r"hands? (it |them |this )?(on|over)|handed (on|over)": "outputs, passes on",
    r"thin layers?": "low-rank factors",
    r"stands? (in|for|at|there|here|where|before|behind|beside)|standing in": "is, represents, replaces",
    r"how manieth|comes? to nothing|what came of": "say it plainly",
    r"goes|gone": "is removed, moves to",
    r"what is told|is told": "message, reported",
    r"found out": "measured, determined",
}
"""Pattern -> the word of the field."""

_WORDS = {re.compile(rf"\b({pattern})\b", re.IGNORECASE): better for pattern, better in BETTER.items()}


def main() -> int:
    """Print every fault below the folder and return the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "onnxcompress"
    count = 0
    for path in sorted(folder.rglob("*.py")):
        for line, fault in sorted(set(_faults(ast.parse(path.read_text(encoding="utf-8"))))):
            sys.stdout.write(f"{path}:{line}: {fault}\n")
            count += 1
    sys.stdout.write(f"{count} faults\n" if count else "no faults\n")
    return int(count > 0)


def _faults(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").split(" ")[0].strip(",.:")
            if first in ASKING:
                yield _line(node), f"the docstring begins with {first!r}: begin with a verb or a noun of the field"
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from _bare_constants(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for pattern, better in _WORDS.items():
                for found in pattern.finditer(node.value):
                    yield node.lineno, f"{found.group(0)!r}: better {better}"


def _bare_constants(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Yield upper-case numbers, and tuples of numbers, that no docstring follows."""
    for node, following in zip(scope.body, [*scope.body[1:], None], strict=True):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if not targets or not isinstance(targets[0], ast.Name) or not targets[0].id.isupper():
            continue
        is_said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if node.value is not None and _is_number(node.value) and not is_said:
            yield node.lineno, f"constant {targets[0].id} has no docstring: unit, and what it was chosen on"


def _is_number(node: ast.expr) -> bool:
    leaves = [leaf for leaf in ast.walk(node) if not isinstance(leaf, ast.operator | ast.unaryop | ast.expr_context)]
    return all(
        isinstance(leaf, ast.BinOp | ast.UnaryOp | ast.Tuple)
        or (isinstance(leaf, ast.Constant) and isinstance(leaf.value, int | float) and not isinstance(leaf.value, bool))
        for leaf in leaves
    )


def _line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> int:
    return 1 if isinstance(node, ast.Module) else node.lineno


if __name__ == "__main__":
    sys.exit(main())
