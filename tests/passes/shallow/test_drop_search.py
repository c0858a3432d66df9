"""The search for blocks to drop: the cheapest first, better sets and smaller ones, the original untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.shallow.drop_search import BlockDropSearch, DroppedBlock, DropState
from tests.helpers import floats, with_constants

WIDTH, HIDDEN = 6, 12
FEEDS = [{"x": floats(1, WIDTH, seed=seed)} for seed in range(120)]
BRANCH_MACS = 2 * WIDTH * HIDDEN
STRENGTHS = (0.3, 0.01, 0.2)


def _net() -> ir.Model:
    """Return three residual branches whose outputs have these strengths, and a last product."""
    arrays, lines, value = {"w": floats(WIDTH, 5)}, [], "x"
    for n, strength in enumerate(STRENGTHS):
        arrays[f"u{n}"] = floats(WIDTH, HIDDEN, seed=10 + n) / 2
        arrays[f"v{n}"] = np.float32(strength) * floats(HIDDEN, WIDTH, seed=20 + n)
        lines.append(f"a{n} = MatMul({value}, u{n})  b{n} = Relu(a{n})  c{n} = MatMul(b{n}, v{n})")
        lines.append(f"s{n} = Add({value}, c{n})")
        value = f"s{n}"
    inputs = ", ".join(f"float[{', '.join(map(str, array.shape))}] {name}" for name, array in arrays.items())
    text = f"g (float[N, {WIDTH}] x, {inputs}) => (float[N, 5] y) {{ {'  '.join(lines)}  y = MatMul({value}, w) }}"
    return with_constants(text, **arrays)


def _search(model: ir.Model | None = None, **options: object) -> BlockDropSearch:
    context = replace(Context(feeds=FEEDS), **options)  # type: ignore[arg-type]
    return BlockDropSearch(model or _net(), context, FEEDS[0], "bias")


def _single(search: BlockDropSearch, out: str) -> DroppedBlock:
    """Return the block of the one branch that ends in a sum."""
    found = [s for s in search.shortcuts(search.start) if s.out.name == out and s.macs == BRANCH_MACS]
    return DroppedBlock.of(found[0], "bias")


def test_the_branch_that_costs_least_is_dropped_first_and_the_next_one_then():
    search = _search()
    one = search.next(search.start, BRANCH_MACS)
    assert one is not None
    assert [block.out for block in one.dropped] == ["s1"]
    assert one.macs == BRANCH_MACS
    assert "a1" not in {output.name for node in one.model.graph for output in node.outputs}
    two = search.next(one, BRANCH_MACS)
    assert two is not None
    assert [block.out for block in two.dropped] == ["s1", "s2"]
    assert two.loss > one.loss > 0


def test_a_dropped_block_and_those_of_other_nodes_are_no_candidates():
    search = _search()
    one = search.next(search.start, BRANCH_MACS)
    assert one is not None
    taken = {(block.out, block.through) for block in one.dropped}
    assert taken
    assert not taken & {(s.out.name, s.through.name) for s in search.shortcuts(one)}
    kept_away = _search(selects=lambda node: query.label(node) != "MatMul:a1")
    assert all("MatMul:a1" not in {query.label(n) for n in s.nodes} for s in kept_away.shortcuts(kept_away.start))
    assert kept_away.next(kept_away.start, BRANCH_MACS).dropped[0].out != "s1"  # type: ignore[union-attr]


def test_a_bad_choice_is_exchanged_for_the_set_that_loses_less():
    search = _search()
    best = search.next(search.start, BRANCH_MACS)
    assert best is not None
    bad = DropState(model=search.start.model, dropped=(_single(search, "s0"),), loss=10.0)
    found = search.improved(bad, BRANCH_MACS, 1)
    assert [block.out for block in found.dropped] == ["s1"]
    assert found.loss == pytest.approx(best.loss, rel=1e-6)


def test_a_block_too_many_is_put_back():
    search = _search()  # no other sets are known before the first step
    bad = DropState(model=search.start.model, dropped=(_single(search, "s0"), _single(search, "s1")), loss=10.0)
    found = search.improved(bad, BRANCH_MACS, None)
    assert [block.out for block in found.dropped] == ["s1"]
    needed = search.improved(bad, 2 * BRANCH_MACS, None)
    assert needed is bad


def test_the_result_begins_anew_from_the_original_which_does_not_change():
    model = _net()
    before = model_io.to_bytes(model)
    search = _search(model)
    one = search.next(search.start, BRANCH_MACS)
    assert one is not None
    found = search.finished(one, 0)
    assert model_io.to_bytes(model) == before
    assert found.distilled is None
    assert found.loss == found.refitted is not None
    assert found.loss <= one.loss * 1.05
    assert {"MatMul:a2", "MatMul:c2", "MatMul:y"} <= {change.layer for change in found.refits}
    assert not {"MatMul:a0"} & {change.layer for change in found.refits}


def test_models_that_can_not_be_run_or_give_no_numbers_have_no_divergence():
    search = _search()
    assert search.measured(search.start.model) == pytest.approx(0, abs=1e-6)
    infinite = _net()
    infinite.graph.initializers["w"].const_value = ir.tensor(np.full((WIDTH, 5), np.inf, np.float32), name="w")
    assert search.measured(infinite) is None
