"""The tables of a report: what they say, how changes are grouped, and that hostile names stay text."""

import json
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

import onnxcompress as oc
from onnxcompress.core import Action, Change
from onnxcompress.errors import LimitError, one_line
from onnxcompress.jobs import report as report_module
from onnxcompress.jobs.report import Limits, Report, ResolvedRecipe, Verification
from onnxcompress.quality.result import OutputDifference, Quality
from onnxcompress.report import tables as report_tables
from onnxcompress.report import wording
from onnxcompress.report.tables_compare import comparison_tables
from onnxcompress.runtime.latency import Latency
from onnxcompress.shapes.count import ModelFacts
from tests.helpers import from_text

MODELS = Path(__file__).parents[2] / "models"
SCHEMA = json.loads(Path(report_module.__file__).with_name("report-schema.json").read_text(encoding="utf-8"))


def _change(target, reason, action=Action.APPLIED, name="fuse", before=0, after=0):
    return Change(pass_name=name, target=target, action=action, reason=reason, bytes_before=before, bytes_after=after)


def _report(*changes, **fields):
    facts = {"nodes": 10, "parameters": 1000, "macs": 5000}
    given = {
        "input": ModelFacts(path="in.onnx", bytes=4000, **facts),
        "output": ModelFacts(path="out.onnx", bytes=1000, **{**facts, "nodes": 5}),
        "recipe": ResolvedRecipe(name="fold", passes=()),
        "limits": Limits(max_drop=None),
        "quality": Quality(
            metric="top1",
            samples=2000,
            original=0.9265,
            compressed=0.925,
            drop=0.0015,
            outputs={"y": OutputDifference(max_abs=0.1, cosine=0.99, sqnr_db=20.0)},
        ),
        "latency": Latency(original_ms=2.0, compressed_ms=1.0, ratio=0.51, runs=41, threads=2, provider="CPU"),
        "verification": Verification(mode="full"),
        "seconds": 1.0,
        "peak_memory_bytes": 10,
    }
    return Report(**{**given, **fields}, changes=tuple(changes))


def _render(parts, *, width=200):
    console = Console(file=StringIO(), width=width, highlight=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def _printed(report, *, every_change=False, width=200):
    return _render(report_tables.report_tables(report, every_change=every_change), width=width)


def _row(printed, *words):
    """Return the cells of the one line in which all words stand."""
    lines = [line for line in printed.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, printed
    return [each.strip() for each in lines[0].split("  ") if each.strip()]


def test_the_schema_that_ships_is_the_one_that_the_types_give():
    assert report_module.json_schema() == SCHEMA, "run tools/write_schemas.py"


def test_the_figures_stand_side_by_side():
    printed = _printed(_report())
    assert _row(printed, "file, bytes") == ["file, bytes", "4,000", "1,000", "0.250"]
    assert _row(printed, "nodes") == ["nodes", "10", "5", "0.500"]
    assert _row(printed, "latency") == ["latency, ms (2 threads)", "2.000", "1.000", "0.510"]
    assert _row(printed, "top1") == ["top1 (2,000 samples)", "0.9265", "0.9250", "drop 0.0015"]
    assert "written to out.onnx" in printed


def test_what_was_not_measured_is_said_or_left_out():
    facts = ModelFacts(path=None, bytes=0, nodes=0, parameters=0, macs=None)
    printed = _printed(_report(quality=None, latency=None, input=facts, output=facts, notes=("no data was given",)))
    assert _row(printed, "MACs") == ["MACs", "unknown", "unknown"]
    assert "latency" not in printed
    assert "top1" not in printed
    assert "written to" not in printed
    assert printed.rstrip().endswith("note: no data was given")


def test_done_changes_are_added_up_by_pass_and_kind():
    printed = _printed(
        _report(
            _change("a", "/b.0/Mul merged into the weight", before=3000, after=2000),
            _change("b", "/b.1/Mul, /b.1/Add merged into the weight", before=500, after=500),
            _change("c", "4 nodes were a spelled HardSwish"),
            _change("d", "4 nodes were a spelled HardSwish"),
            _change("e", "/b.2/Mul merged into the weight", name="other", before=7, after=0),
        )
    )
    assert _row(printed, "fuse", "merged") == ["fuse", "2", "1,000", "… merged into the weight"]
    assert _row(printed, "HardSwish") == ["fuse", "2", "4 nodes were a spelled HardSwish"]
    assert _row(printed, "other") == ["other", "1", "7", "/b.2/Mul merged into the weight"]


def test_refusals_are_grouped_by_reason_with_three_examples():
    refused = [_change(f"conv{i}", f"reads weight_{i} of int8", Action.SKIPPED, before=9) for i in range(5)]
    printed = _printed(_report(*refused))
    row = _row(printed, "reads …")
    assert row == ["fuse", "5", "reads … of int8", "conv0, conv1, conv2"]
    assert "conv3" not in printed
    assert "\ndone" not in printed


def test_what_was_taken_back_is_named_each():
    back = [_change(f"conv{i}", "output 'y' differs", Action.ROLLED_BACK) for i in range(5)]
    printed = _printed(_report(*back))
    for i in range(5):
        assert _row(printed, f"conv{i}") == ["fuse", f"conv{i}", "output 'y' differs"]


def test_every_change_is_a_row_when_all_are_wanted():
    changes = [_change(f"conv{i}", "same reason", before=8, after=2) for i in range(5)]
    changes.append(_change("last", "no", Action.SKIPPED))
    printed = _printed(_report(*changes), every_change=True)
    for i in range(5):
        assert _row(printed, f"conv{i}") == ["fuse", f"conv{i}", "applied", "8", "2", "same reason"]
    assert _row(printed, "last") == ["fuse", "last", "skipped", "no"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Mul gives back its input", "Mul gives back its input"),
        ("equals /Constant_1_output_0", "equals …"),
        ("int8 with a scale for each of 192 output channels", "int8 with a scale for each of N output channels"),
        ("p2o.Mul.0, p2o.Add.2 merged into the weight", "… merged into the weight"),
        ("its result takes 65,536 bytes", "its result takes N bytes"),
        ("left out by --only/--skip", "left out by --only/--skip"),
        ("runs as MatMulNBits at float16", "runs as MatMulNBits at float16"),
        ("'a_b' stays: (c.d) reads it", "… stays: (…) reads it"),
        ("", ""),
    ],
)
def test_names_and_numbers_make_no_kind_of_their_own(reason, kind):
    assert wording.kind(reason) == kind


def test_names_are_text_and_not_markup_nor_commands_to_the_terminal():
    hostile = "[red]a[/red]\x1b[2J\nb\u202e"
    for every_change in (True, False):
        printed = _printed(_report(_change(hostile, hostile, Action.ROLLED_BACK)), every_change=every_change)
        assert "\x1b" not in printed
        assert "\u202e" not in printed
        assert "[red]a[/red]\\x1b[2J b\\u202e" in printed


def test_a_narrow_terminal_wraps_and_loses_nothing():
    name = "a_rather_long_name_of_a_layer_" * 4
    printed = _printed(_report(_change(name, "why", Action.ROLLED_BACK)), width=60)
    assert name in "".join(
        part for line in printed.splitlines() for part in line.split() if part not in ("fuse", "why")
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain", "plain"),
        ("a\r\n\tb ", "a b"),
        ("\x07\x9b", "\\x07\\x9b"),
        ("größe 大", "größe 大"),
        ("\ud800", "\\ud800"),
    ],
)
def test_one_line_spells_out_what_is_no_text(given, shown):
    assert one_line(given) == shown


def test_made_up_reports_follow_the_schema_and_broken_ones_do_not():
    document = _report(_change("a", "b")).as_json()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    for key in SCHEMA["required"]:
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, SCHEMA)
    document["changes"][0]["action"] = "done"
    with pytest.raises(jsonschema.ValidationError, match="done"):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    ("model", "recipe", "options"),
    [
        ("mbv2", "fold", {}),
        ("vit", "int8-weights", {}),
        ("resnet14_bn", "auto", {"plan": True}),
        ("resnet14_bn", "int8-weights", {"verify": "regions"}),
    ],
)
def test_real_reports_follow_the_schema(model, recipe, options):
    result = oc.compress(MODELS / f"{model}.onnx", recipe=recipe, **options)
    assert _printed(result.report)
    document = json.loads(json.dumps(result.report.as_json(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    assert document["changes"]
    assert document["recipe"]["name"] == recipe


def test_a_missed_limit_carries_a_report_that_follows_the_schema():
    with pytest.raises(LimitError) as caught:
        oc.compress(MODELS / "mbv2.onnx", recipe="fold", max_bytes=1000)
    jsonschema.validate(caught.value.report.as_json(), SCHEMA)


def test_outputs_that_are_no_floats_have_no_figures_of_floats():
    model = from_text("""g (float[N,4] x) => (int64[N] label, float[N,4] y) {
        y = Relu(x)
        label = ArgMax<axis=1, keepdims=0>(x)
    }""")
    printed = _render(comparison_tables(oc.compare(model, model)))
    assert _row(printed, "label") == ["label"]
    assert _row(printed, "1.000000") == ["y", "0", "1.000000"]
