"""The committed models and data are what models/README.md says, and fit the command line as they are."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = ("mbv2", "resnet14", "resnet14_bn", "vit")
ONE_TEST_IMAGE = 1 / 2000
LARGEST_BYTES = 5_000_000


def rows(pattern: str) -> dict[str, tuple[str, ...]]:
    """Return the cells behind the file name, for each row of a table in the README."""
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    return {found[1]: found.groups()[1:] for found in re.finditer(pattern, text, re.MULTILINE)}


def logits(name: str, images: npt.NDArray[np.float32], *, optimized: bool = True) -> npt.NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    result: npt.NDArray[np.float32] = np.concatenate(
        [session.run(None, {"x": images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    )
    return result


@pytest.fixture(scope="module")
def test_data() -> dict[str, npt.NDArray[Any]]:
    return dict(np.load(MODELS / "fmnist_test.npz"))


@pytest.fixture(scope="module")
def calibration_data() -> dict[str, npt.NDArray[Any]]:
    return dict(np.load(MODELS / "fmnist_calib.npz"))


def test_bytes_and_hashes_stand_in_the_readme() -> None:
    stated = rows(r"^\| `([\w.]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|")
    found = {
        path.name: (f"{path.stat().st_size:,}", hashlib.sha256(path.read_bytes()).hexdigest())
        for path in MODELS.iterdir()
        if path.suffix in {".onnx", ".npz"}
    }
    assert stated == found
    assert all((MODELS / name).stat().st_size < LARGEST_BYTES for name in found)


def test_test_images_are_balanced_and_ready_to_feed(test_data: dict[str, npt.NDArray[Any]]) -> None:
    assert set(test_data) == {"x", "label"}
    assert test_data["x"].shape == (2000, 1, 28, 28)
    assert test_data["x"].dtype == np.float32
    assert test_data["label"].dtype == np.int64
    assert np.bincount(test_data["label"]).tolist() == [200] * 10
    assert np.bincount(test_data["label"][:100]).tolist() == [10] * 10  # so is every prefix


def test_calibration_images_are_unlabelled_and_others(
    test_data: dict[str, npt.NDArray[Any]], calibration_data: dict[str, npt.NDArray[Any]]
) -> None:
    assert set(calibration_data) == {"x"}
    assert calibration_data["x"].shape == (512, 1, 28, 28)
    assert calibration_data["x"].dtype == np.float32
    tested = {image.tobytes() for image in test_data["x"]}
    assert len(tested) == 2000
    assert not tested & {image.tobytes() for image in calibration_data["x"]}


@pytest.mark.parametrize("kind", ["test_data", "calibration_data"])
def test_images_are_exactly_normalised_grey_levels(request: pytest.FixtureRequest, kind: str) -> None:
    images = request.getfixturevalue(kind)["x"]
    grey = np.rint((images * 0.3530 + 0.2860) * 255)
    assert grey.min() == 0
    assert grey.max() == 255
    np.testing.assert_array_equal((grey.astype(np.float32) / 255 - 0.2860) / 0.3530, images)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_valid_and_take_any_batch(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    (entry,), (leave,) = model.graph.input, model.graph.output
    assert (entry.name, leave.name) == ("x", "logits")
    assert entry.type.tensor_type.shape.dim[0].dim_param
    assert leave.type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_stands_in_the_readme(name: str, test_data: dict[str, npt.NDArray[Any]]) -> None:
    stated = rows(r"^\| `([\w.]+)` \| [\d,]+ \| [\d,]+ \| (\.\d{4}) \| \.\d{4} \|")
    assert set(stated) == {f"{n}.onnx" for n in NAMES}
    found = np.mean(logits(name, test_data["x"]).argmax(1) == test_data["label"])
    # Processors round differently, which may turn an image on the fence; never more than two.
    assert found == pytest.approx(float(stated[f"{name}.onnx"][0]), abs=2.01 * ONE_TEST_IMAGE)


def test_unfused_twin_computes_the_same(test_data: dict[str, npt.NDArray[Any]]) -> None:
    images = test_data["x"][:100]
    fused, unfused = (logits(n, images, optimized=False) for n in ("resnet14", "resnet14_bn"))
    np.testing.assert_allclose(unfused, fused, rtol=0, atol=1e-4)
    operators = {node.op_type for node in onnx.load(MODELS / "resnet14_bn.onnx").graph.node}
    assert "BatchNormalization" in operators
