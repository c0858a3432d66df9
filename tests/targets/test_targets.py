"""Target profiles: what is in the files, what is refused, and that the probe finds again what the cpu's says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.targets import facts as targets

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from probe.build import Around, Case
from probe.cases import COMPUTE, MOVES, POINTWISE
from probe.measure import is_integer, quantized_model


@pytest.mark.parametrize("target", targets.NAMES)
def test_every_target_says_what_it_is_based_on(target):
    facts = targets.static_facts(target)
    assert facts.basis == ("measured" if target == targets.HERE else "documented")
    conv = facts.operator("Conv", "depthwise")
    assert conv is not None
    assert conv.form == "compute"
    assert facts.operator("NoSuchOperator") is None


def test_types_differ_by_target():
    cpu, tensorrt, qnn = (targets.static_facts(t) for t in ("cpu", "tensorrt", "qnn"))
    assert (cpu.activation, cpu.symmetric) == ("uint8", False)
    assert (tensorrt.activation, tensorrt.symmetric) == ("int8", True)
    assert qnn.least_range == 1e-4
    assert not qnn.operators["Conv"].channels


def test_a_kind_of_kernel_has_its_own_row_where_there_is_one():
    facts = targets.static_facts("cpu")
    assert facts.operator("Conv", "depthwise") is not facts.operator("Conv")
    assert facts.operator("Gemm", "depthwise") is facts.operator("Gemm")


def test_an_unknown_target_and_a_malformed_file_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="unknown target 'gpu'"):
        targets.static_facts("gpu")
    monkeypatch.setattr(targets, "_read", lambda _: {"static": {"opset": 3}})
    with pytest.raises(UsageError, match=r"targets/cpu.toml: static\.(opset|basis)"):
        targets.static_facts("cpu")


def _agrees(case: Case, around: Around) -> bool:
    return is_integer(quantized_model(case, around)) == (case.key in targets.static_facts("cpu").operators)


@pytest.mark.parametrize("case", [*COMPUTE, *POINTWISE], ids=lambda case: case.key)
def test_the_runtime_still_does_what_the_profile_says(case):
    assert _agrees(case, Around())


@pytest.mark.parametrize("case", MOVES, ids=lambda case: case.key)
def test_data_movement_needs_one_scale(case):
    assert _agrees(case, Around(scales="equal"))
    assert not is_integer(quantized_model(case, Around(scales="different"))) or case.op_type == "Identity"


@pytest.mark.parametrize(
    ("around", "runs"),
    [(Around(output=False), False), (Around(after="Relu"), True), (Around(after="Clip"), True)],
)
def test_what_makes_a_convolution_fall_back(around, runs):
    assert is_integer(quantized_model(COMPUTE[0], around)) is runs
