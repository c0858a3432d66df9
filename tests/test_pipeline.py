"""A wrong rewrite is found, taken back and named; the right ones stay."""

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from onnxcompress import pipeline
from onnxcompress.base.clock import Clock
from onnxcompress.base.gate import Gate, Memo
from onnxcompress.core import Action, Change, Context, Need
from onnxcompress.errors import TimeUpError
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.jobs.internal_errors import all_was_lost
from onnxcompress.verify.whole import WholeProof

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3] x) => (float[n, 3] y)
<float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6}, float[3] c = {7, 8, 9}>
{
  p = Add(x, a)
  q = Mul(p, b)
  y = Sub(q, c)
}
"""


@dataclass(frozen=True, kw_only=True)
class Rename:
    """Copies every weight; spoils the one called `spoil`."""

    name: ClassVar[str] = "rename"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    spoil: str = ""
    crash: bool = False

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        changes = []
        for name in sorted(model.graph.initializers):
            value = model.graph.initializers[name]
            if name.startswith("done_") or not context.gate.admits(self.name, name):
                continue
            if self.crash:
                raise KeyError(name)
            array = query.constant(value) + (0.5 if name == self.spoil else 0)
            new = edit.add_initializer(model.graph, edit.Names(model), f"done_{name}", array.astype(np.float32))
            edit.replace_value(value, new)
            edit.remove_initializer(value)
            changes.append(Change(pass_name=self.name, target=name, action=Action.APPLIED, reason="copied"))
        return changes


def _run(one):
    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))
    feeds = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}]
    return pipeline.run(model, [one], Context(), lambda before, lossless: WholeProof(before, feeds, lossless=lossless))


def test_all_right_rewrites_stay():
    outcome = _run(Rename())
    assert [c.action for c in outcome.changes] == [Action.APPLIED] * 3
    assert sorted(outcome.model.graph.initializers) == ["done_a", "done_b", "done_c"]


def test_the_wrong_rewrite_is_named_and_only_it_is_taken_back():
    outcome = _run(Rename(spoil="b"))
    back = [c for c in outcome.changes if c.action is Action.ROLLED_BACK]
    assert [c.target for c in back] == ["b"]
    assert "'y'" in back[0].reason or "y" in back[0].reason
    assert sorted(outcome.model.graph.initializers) == ["b", "done_a", "done_c"]


def test_beyond_a_limit_the_longest_prefix_within_it_is_kept():
    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))

    class AtMostTwo:
        def problem(self, candidate):
            return None if candidate.graph.outputs else "no output"

        def excess(self, candidate):
            done = sum(name.startswith("done_") for name in candidate.graph.initializers)
            return f"{done} are too many" if done > 2 else None

    outcome = pipeline.run(model, [Rename()], Context(), lambda *_: AtMostTwo())
    assert sorted(outcome.model.graph.initializers) == ["c", "done_a", "done_b"]
    back = [c for c in outcome.changes if c.action is Action.ROLLED_BACK]
    assert [(c.target, c.reason) for c in back] == [("c", "with it, 3 are too many")]


def test_a_pass_that_crashes_costs_only_itself():
    outcome = _run(Rename(crash=True))
    assert sorted(outcome.model.graph.initializers) == ["a", "b", "c"]
    assert [(c.target, c.action, c.reason) for c in outcome.changes] == [
        ("graph", Action.ROLLED_BACK, "internal error: KeyError: 'a': please report")
    ]
    assert [str(error) for error in outcome.internal_errors] == ["rename: internal error: KeyError: 'a': please report"]
    assert all_was_lost(outcome.internal_errors, outcome.changes, [Rename()])


def test_the_other_passes_of_a_group_stay_when_one_crashes():
    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))
    feeds = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}]
    attempts = []

    def prover(before, lossless):
        attempts.append(lossless)
        return WholeProof(before, feeds, lossless=lossless)

    outcome = pipeline.run(model, [Rename(crash=True), Rename()], Context(), prover)
    assert sorted(outcome.model.graph.initializers) == ["done_a", "done_b", "done_c"]
    assert len(outcome.internal_errors) == 1
    assert not all_was_lost(outcome.internal_errors, outcome.changes, [Rename()])
    assert attempts == [True]


def test_a_search_for_wrong_rewrites_ends_in_time(monkeypatch):
    monkeypatch.setattr(pipeline, "_LEAST_BISECTION_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "_BISECTION_TIMES", 0.0)
    outcome = _run(Rename(spoil="b"))
    assert sorted(outcome.model.graph.initializers) == ["a", "b", "c"]
    assert all(
        c.reason.endswith("; which rewrite is at fault was not found in the time for it") for c in outcome.changes
    )


def test_what_was_found_holds_until_the_next_rewrite():
    gate = Gate()
    memo, found = Memo(gate), []

    def ask():
        return memo.get("key", lambda: found.append(1) or len(found))

    assert [ask(), ask()] == [1, 1]
    gate.admits("any", "node")
    assert [ask(), ask()] == [2, 2]
    Gate(denied=frozenset({("any", "node")})).admits("any", "node")
    assert ask() == 2


def test_a_pass_with_nothing_to_do_is_asked_again_only_after_a_rewrite():
    asked = []

    @dataclass(frozen=True, kw_only=True)
    class Once:
        name: ClassVar[str] = "once"
        lossless: ClassVar[bool] = True
        needs: ClassVar[frozenset[Need]] = frozenset()
        tag: str
        edits: bool = False

        def run(self, _model, context):
            asked.append(self.tag)
            if self.edits and asked.count(self.tag) == 1 and context.gate.admits(self.name, self.tag):
                return [Change(pass_name=self.name, target=self.tag, action=Action.APPLIED, reason="done")]
            return [Change(pass_name=self.name, target=self.tag, action=Action.SKIPPED, reason="none left")]

    class Fine:
        def problem(self, _candidate):
            return None

        def excess(self, _candidate):
            return None

    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))
    group = [Once(tag="a"), Once(tag="b", edits=True), Once(tag="c")]
    outcome = pipeline.run(model, group, Context(), lambda *_: Fine())
    assert asked == ["a", "b", "c", "a", "b"]
    assert [(c.target, c.action) for c in outcome.changes] == [
        ("b", Action.APPLIED),
        *((tag, Action.SKIPPED) for tag in "abc"),
    ]


def test_passes_that_rewrite_nothing_leave_the_model_itself():
    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))
    for name in list(model.graph.initializers):
        value = model.graph.initializers[name]
        value.name = f"done_{name}"
    outcome = pipeline.run(model, [Rename()], Context(), lambda *_: None)
    assert outcome.model is model


@dataclass(frozen=True, kw_only=True)
class Search(Rename):
    """Offers the best so far, as passes do that a time limit may end."""

    name: ClassVar[str] = "search"
    lossless: ClassVar[bool] = False

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        changes = super().run(model, context)
        context.best.offer(model_io.clone(model), changes)
        return changes


class _NoTime:
    """Lets lossy passes run and then has no time for them."""

    may_end_early = True

    def passes(self, work, *, lossless, has_found):  # noqa: ARG002 - the protocol's signature
        outcome = work(Clock())
        if not lossless:
            raise TimeUpError
        return outcome

    def proof(self, work):
        return work()


def test_passes_after_one_that_was_cut_short_leave_its_result_alone():
    """The time that is left is for the result: another pass would make another model, which had to be scored anew."""
    model = model_io.load(ir.to_proto(ir.from_onnx_text(TEXT)))
    feeds = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}]
    outcome = pipeline.run(
        model,
        [Search(), Rename()],
        Context(),
        lambda before, lossless: WholeProof(before, feeds, lossless=lossless),
        _NoTime(),
    )
    assert outcome.cut_short == ("search", "rename")
    assert sorted(outcome.model.graph.initializers) == ["done_a", "done_b", "done_c"]
    assert [(c.action, c.reason) for c in outcome.changes if c.pass_name == "rename"] == [("skipped", pipeline.TIME_UP)]
