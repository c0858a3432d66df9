"""`split` and `run DIR` as a user types them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress import cli
from onnxcompress.base import quantities
from tests.helpers import floats

MODELS = Path(__file__).parents[2] / "models"
RESNET = MODELS / "resnet14.onnx"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", x=floats(3, 1, 28, 28))

    def call(*args):
        monkeypatch.setattr("sys.argv", ["onnxcompress", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def test_split_and_run_the_folder(run, tmp_path):
    code, out, err = run("split", RESNET, "-o", "parts", "--max-memory", "1.5MB", "--data", "data.npz")
    assert (code, err) == (0, "")
    assert "at x [1, 1, 28, 28]" in out
    assert "part-001" in out
    outputs = []
    for index, arguments in enumerate(
        [[RESNET], ["parts"], ["parts", "--max-memory", "1.5MB"], [RESNET, "--max-memory", "1MB"]]
    ):
        code, out, err = run("run", *arguments, "--data", "data.npz", "-o", f"{index}.npz", "--threads", 1)
        assert (code, err) == (0, "")
        outputs.append(np.load(tmp_path / f"{index}.npz")["logits"])
    for each in outputs[1:]:
        assert each.shape == (3, 10)
        np.testing.assert_allclose(each, outputs[0], rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["parts"]


def test_a_budget_below_the_smallest_is_a_limit_that_is_not_met(run, tmp_path):
    code, _, err = run("split", RESNET, "-o", "parts", "--max-memory", "100KB")
    assert code == 1
    assert "Conv node '/body/body" in err
    assert not (tmp_path / "parts").exists()
    assert run("run", RESNET, "--max-memory", "100KB", "--data", "data.npz")[0] == 1
    assert run("split", RESNET, "-o", "parts", "--parts", 2, "--quiet") == (0, "", "")
    code, _, err = run("run", "parts", "--max-memory", "100KB", "--data", "data.npz")
    assert code == 1
    assert "alone needs" in err


def test_fewer_parts_than_asked_are_told_and_fine(run, caplog):
    code, out, _ = run("split", MODELS / "mbv2.onnx", "-o", "parts", "--parts", 500, "-v", "--json", "m.json")
    assert code == 0
    assert "and not 500 parts" in caplog.text
    document = json.loads(Path("m.json").read_text(encoding="utf-8"))
    assert out.count("part-0") == len(document["parts"]) > 20
    assert document == json.loads(Path("parts", "manifest.json").read_text(encoding="utf-8"))


def test_suggestions_can_be_cut_at(run):
    code, out, _ = run("split", MODELS / "vit.onnx", "--suggest", "--data", "data.npz")
    assert code == 0
    assert "sending the inputs instead: 3,136 bytes (x [1, 1, 28, 28])" in out
    code, out, _ = run("split", MODELS / "vit.onnx", "--suggest", "--json", "-", "--data", "data.npz")
    cut = json.loads(out)["cuts"][3]
    assert run("split", MODELS / "vit.onnx", "-o", "parts", "--at", cut["name"], "--data", "data.npz")[0] == 0
    manifest = json.loads(Path("parts", "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parts"][0]["outputs"] == [name for name in cut["sent"] if name != "x"]
    assert [part["macs"] for part in manifest["parts"]] == cut["macs"]
    assert manifest["cut_bytes"] == cut["sent_bytes"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--parts", "2"], "a folder to write is needed"),
        (["-o", "parts"], "exactly one of"),
        (["-o", "parts", "--parts", "2", "--suggest"], "exactly one of"),
        (["-o", "parts", "--suggest"], "writes nothing"),
        (["-o", "parts", "--parts", "0"], "--parts"),
        (["-o", "parts", "--max-memory", "lots"], "--max-memory"),
        (["-o", "parts", "--at", "/body/body.0/Relu"], "Is it '/body/body.0/Relu_output_0'"),
        (["-o", "data.npz", "--parts", "2"], "file"),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, reason):
    code, _, err = run("split", RESNET, *arguments)
    assert code == 2
    assert reason in err
    assert not Path("parts").exists()


def test_a_folder_is_replaced_with_force_only(run):
    assert run("split", RESNET, "-o", "parts", "--parts", 2, "-q")[0] == 0
    assert run("split", RESNET, "-o", "parts", "--parts", 3, "-q")[0] == 2
    assert run("split", RESNET, "-o", "parts", "--parts", 3, "-q", "--force")[0] == 0
    assert len(list(Path("parts").glob("*.onnx"))) == 3


def test_what_can_not_be_used_is_exit_code_3(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run("run", "empty", "--data", "data.npz")
    assert code == 3
    assert "not a split model" in err
    assert run("split", RESNET, "-o", "parts", "--parts", 2, "-q")[0] == 0
    Path("parts", "part-001.data").write_bytes(b"")
    code, _, err = run("run", "parts", "--data", "data.npz")
    assert code == 3
    assert "should have" in err
    code, _, err = run("split", RESNET, "-o", "other", "--parts", 2, "--data", "parts/part-000.onnx")
    assert code == 3


def test_state_is_carried_from_feed_to_feed_part_by_part(run, tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 2] x, float[n, 2] s) => (float[n, 2] y, float[n, 2] t) { t = Add(x, s) a = Neg(t) y = Exp(a) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    x = floats(4, 2)
    np.savez(tmp_path / "sums.npz", x=x, s=np.zeros((4, 2), np.float32))
    options = ("--data", "sums.npz", "--state", "s=t")
    assert run("split", "m.onnx", "-o", "parts", "--parts", 3, "-q", *options)[0] == 0
    assert run("run", "parts", "-o", "out.npz", "-q", *options)[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["t"], np.cumsum(x, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (2_500_000, "2.5 MB"), (3e9, "3.0 GB")]
)
def test_sizes_are_shown_in_their_unit(count, text):
    assert quantities.show_bytes(count) == text
