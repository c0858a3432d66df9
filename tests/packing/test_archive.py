"""Archives give back every byte, and whatever else they hold is refused in one line with nothing left behind."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcompress import cli
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.io import model_io
from onnxcompress.io.sources import PACKED, OpenFile
from onnxcompress.jobs.report import json_schema
from onnxcompress.packing.archive import pack, save_packed, unpack
from onnxcompress.packing.blocks import BLOCK_BYTES, Decoder, Encoder
from onnxcompress.packing.header import _START
from onnxcompress.packing.layout import RangeKind, model_layout

MODELS = Path(__file__).parents[2] / "models"
RNG = np.random.default_rng(0)


def _model(*tensors, name="m"):
    """Return a model that holds some tensors and adds nothing."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, name, [x], [y], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def _saved(tmp_path, data, name="m.onnx"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def _there_and_back(path):
    """Return the archive's size; the file must come out as it went in."""
    archive, out = path.with_name("a.onnxpack"), path.with_name("out.onnx")
    packed = pack(path, archive, force=True)
    assert packed.packed_bytes == archive.stat().st_size
    found = unpack(archive, out, force=True)
    assert out.read_bytes() == path.read_bytes()
    assert found.unpacked_bytes == path.stat().st_size
    assert found.packed_bytes == packed.packed_bytes
    return packed.packed_bytes


# Blocks.


@given(kind=st.sampled_from(RangeKind), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_block_of_any_words_comes_back(kind, data):
    common = st.sampled_from([0, 1, 2**63 + 5])
    words = data.draw(st.lists(st.one_of(common, st.integers(0, 2**64 - 1)), min_size=1, max_size=300))
    repeats = data.draw(st.sampled_from([1, 400]))
    raw = np.tile(np.array(words, np.uint64), repeats).astype(f"<u{kind.width}").tobytes()
    block = Encoder().encode(raw, kind)

    def read(length):
        start = getattr(read, "at", 0)
        read.at = start + length
        return block[start : start + length]

    assert Decoder().decode(read, len(raw), kind) == raw
    assert read.at == len(block)


def _block_bytes(words, kind):
    return len(Encoder().encode(words.tobytes(), kind))


def test_each_kind_of_weight_is_near_its_entropy():
    floats = RNG.standard_normal(200_000).astype(np.float32)
    assert _block_bytes(floats, RangeKind.FLOAT32) < 0.84 * floats.nbytes  # 24 bits of noise, 2.6 of exponent
    assert _block_bytes(floats.astype(np.float16), RangeKind.FLOAT16) < 0.86 * floats.nbytes / 2
    brain = floats.astype(ml_dtypes.bfloat16)
    assert _block_bytes(brain, RangeKind.BFLOAT16) < 0.69 * brain.nbytes
    sparse = np.where(RNG.random(200_000) < 0.5, 0, floats).astype(np.float32)
    assert _block_bytes(sparse, RangeKind.FLOAT32) < 0.46 * floats.nbytes  # a bit each, and half of the above
    clustered = floats[:16][RNG.integers(0, 16, 200_000)]
    assert _block_bytes(clustered, RangeKind.FLOAT32) < 0.13 * floats.nbytes  # 4 bits of 32
    assert _block_bytes(np.clip(np.round(floats * 20), -127, 127).astype(np.int8), RangeKind.BYTES) < 0.83 * floats.size
    repeated = np.tile(floats[:500], 200)
    assert _block_bytes(repeated, RangeKind.FLOAT32) < 0.02 * repeated.nbytes
    noise = RNG.integers(0, 2**32, 50_000, dtype=np.uint32)
    assert _block_bytes(noise, RangeKind.FLOAT32) <= noise.nbytes + 21


# Files.

NUMERIC = [t for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


@given(data=st.binary(max_size=3000))
@settings(deadline=None, max_examples=40)
def test_any_bytes_come_back(tmp_path_factory, data):
    _there_and_back(_saved(tmp_path_factory.mktemp("any"), data))


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda t: t.name)
def test_every_type_comes_back(tmp_path, dtype):
    length = 6000
    raw = RNG.bytes(length * dtype.bitwidth // 8)
    tensor = TensorProto(data_type=int(dtype), dims=[length], raw_data=raw, name="w")
    small = TensorProto(data_type=int(dtype), dims=[8], raw_data=raw[: dtype.bitwidth], name="s")
    path = _saved(tmp_path, _model(tensor, small, tensor))
    (large, *_) = [s for s in model_layout(OpenFile(path)).segments if s.length == len(raw)]
    assert large.kind.width == (
        dtype.itemsize if dtype.itemsize in (2, 4, 8) and dtype.numpy().kind != "c" else large.kind.width
    )
    _there_and_back(path)


@given(
    shapes=st.lists(st.tuples(st.sampled_from(NUMERIC), st.integers(0, 40_000)), max_size=8),
    seed=st.integers(0, 2**32 - 1),
    zeros=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_random_models_come_back(tmp_path_factory, shapes, seed, zeros):
    rng = np.random.default_rng(seed)
    tensors = []
    for index, (dtype, count) in enumerate(shapes):
        count -= count % 8
        size = count * dtype.bitwidth // 8
        raw = bytes(size) if zeros else rng.bytes(size)
        tensors.append(TensorProto(data_type=int(dtype), dims=[count], raw_data=raw, name=f"w{index}"))
    model = _model(*tensors)
    floats = rng.standard_normal(2000)
    model.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2000], floats))
    model.graph.initializer.append(helper.make_tensor("doubles", TensorProto.DOUBLE, [2000], floats))
    _there_and_back(_saved(tmp_path_factory.mktemp("random"), model))


def test_segments_cover_bodies_functions_and_typed_fields(tmp_path):
    def constant(count):
        return helper.make_node(
            "Constant", [], [f"c{count}"], value=numpy_helper.from_array(np.ones(count, np.float16))
        )

    def body(node):
        value = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT16, None)
        return helper.make_graph([node], "body", [], [value])

    model = _model(helper.make_tensor("t", TensorProto.FLOAT, [700], np.ones(700)))
    choice = helper.make_node("If", ["c"], ["z"], then_branch=body(constant(600)), else_branch=body(constant(610)))
    model.graph.node.append(choice)
    opsets = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("d", "f", [], ["c620"], [constant(620)], opsets))
    found = model_layout(OpenFile(_saved(tmp_path, model))).segments
    assert [(s.kind, s.length) for s in found if s.kind != RangeKind.BYTES] == [
        (RangeKind.FLOAT16, 1220),  # helper.make_node sorts attributes: the else branch comes first
        (RangeKind.FLOAT16, 1200),
        (RangeKind.FLOAT32, 2800),
        (RangeKind.FLOAT16, 1240),
    ]


@pytest.mark.parametrize("name", ["resnet14", "vit", "mbv2"])
def test_real_models_are_a_tenth_smaller_than_a_zip(tmp_path, name):
    data = (MODELS / f"{name}.onnx").read_bytes()
    assert _there_and_back(_saved(tmp_path, data)) < 0.905 * len(zlib.compress(data, 9))


def test_a_tensor_over_several_blocks_and_many_short_ones(tmp_path):
    floats = RNG.standard_normal(BLOCK_BYTES // 4 * 2 + 77).astype(np.float32)
    short = [numpy_helper.from_array(floats[i * 3000 : i * 3000 + 2000], f"s{i}") for i in range(600)]
    model = _model(*short[:300], numpy_helper.from_array(floats, "w"), *short[300:])
    model.doc_string = "x" * 100_000
    assert _there_and_back(_saved(tmp_path, model)) < 0.85 * model.ByteSize()


# External data.


def _external(tmp_path, location="sub/w.bin"):
    folder = tmp_path / "in"
    (folder / location).parent.mkdir(parents=True)
    weights = [RNG.standard_normal(n).astype(np.float32) for n in (30_000, 40_000)]
    (folder / location).write_bytes(b"head" * 1024 + weights[0].tobytes() + bytes(4096) + weights[1].tobytes())
    model = _model()
    for index, (offset, array) in enumerate([(4096, weights[0]), (4096 + 120_000 + 4096, weights[1])]):
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[array.size])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
    return _saved(folder, model)


def test_external_data_come_back_beside_the_model(tmp_path):
    path = _external(tmp_path)
    packed = pack(path, tmp_path / "a.onnxpack")
    assert packed.files == ("m.onnx", "sub/w.bin")
    assert packed.packed_bytes < 0.87 * packed.unpacked_bytes
    out = tmp_path / "out"
    out.mkdir()
    found = unpack(tmp_path / "a.onnxpack", out / "renamed.onnx")
    assert found.files == ("renamed.onnx", "sub/w.bin")
    assert (out / "renamed.onnx").read_bytes() == path.read_bytes()
    assert (out / "sub/w.bin").read_bytes() == (path.parent / "sub/w.bin").read_bytes()
    onnx.checker.check_model(out / "renamed.onnx")
    with pytest.raises(UsageError, match="exists already"):
        unpack(tmp_path / "a.onnxpack", out / "other.onnx")
    assert sorted(p.name for p in out.iterdir()) == ["renamed.onnx", "sub"]
    unpack(tmp_path / "a.onnxpack", out / "other.onnx", force=True)


def test_what_save_writes_with_external_data_is_packed_too(tmp_path):
    model = model_io.load(MODELS / "mbv2.onnx")
    model_io.save(model, tmp_path / "a.onnx", external_data="always")
    packed = save_packed(model, tmp_path / "a.onnxpack", external_data="always")
    assert len(packed.files) == 2
    unpack(tmp_path / "a.onnxpack", tmp_path / "out.onnx", force=True)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data", ".onnx", ".onnx", ".onnxpack"]


def test_a_data_file_that_is_missing_or_outside_is_named(tmp_path):
    path = _external(tmp_path)
    (path.parent / "sub/w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin: external data: no such file"):
        pack(path, tmp_path / "a.onnxpack")
    data = path.read_bytes().replace(b"sub/w.bin", b"../../w.b")
    with pytest.raises(ModelError, match="outside of the model's folder"):
        pack(_saved(path.parent, data), tmp_path / "a.onnxpack")
    assert not (tmp_path / "a.onnxpack").exists()


# Archives that are not as they should be.


@pytest.fixture
def archive(tmp_path):
    path = _external(tmp_path)
    pack(path, tmp_path / "a.onnxpack")
    return tmp_path / "a.onnxpack"


def _refused(archive, match, **options):
    """Unpacking must fail with one line and leave nothing behind."""
    out = archive.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(ModelError, match=match) as caught:
        unpack(archive, out / "m.onnx", **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(archive))
    assert not list(out.iterdir())


def _rewritten(archive, **changes):
    """Change fields of the last file's entry in an archive's header."""
    data = archive.read_bytes()
    magic, version, packed, _ = _START.unpack_from(data)
    start = _START.size
    header = json.loads(zstandard.decompress(data[start : start + packed]))
    header["files"][-1].update(changes)
    text = json.dumps(header).encode()
    again = zstandard.compress(text)
    archive.write_bytes(_START.pack(magic, version, len(again), len(text)) + again + data[start + packed :])


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_archive_leaves_nothing(archive, share):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    _refused(archive, "damaged|not an archive")


def test_more_than_it_should_hold_is_refused(archive):
    archive.write_bytes(archive.read_bytes() + b"x")
    _refused(archive, "1 bytes too many")


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory):
    """Return the bytes of an archive in which every transform occurs, and of the model in it."""
    folder = tmp_path_factory.mktemp("small")
    floats = RNG.standard_normal(5000).astype(np.float32)
    sparse = np.where(floats > 0.5, floats, 0).astype(np.float32)
    plain = np.tile(floats[:500], 10)
    arrays = {"planes": np.tile(floats, 4), "sparse": np.tile(sparse, 4), "palette": np.tile(np.sign(floats), 4)}
    model = _model(*(numpy_helper.from_array(array, name) for name, array in {**arrays, "plain": plain}.items()))
    path = _saved(folder, model)
    pack(path, folder / "a.onnxpack")
    return (folder / "a.onnxpack").read_bytes(), path.read_bytes()


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=80)
def test_a_flipped_bit_is_found_or_does_no_harm(small_archive, tmp_path_factory, place, bit):
    whole, model = small_archive
    folder = tmp_path_factory.mktemp("flip")
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    (folder / "a").write_bytes(data)
    try:
        unpack(folder / "a", folder / "m.onnx")
    except ModelError:
        assert [p.name for p in folder.iterdir()] == ["a"]
    else:
        assert (folder / "m.onnx").read_bytes() == model


@pytest.mark.parametrize("name", ["../w.bin", "/w.bin", "a/../w.bin", "a//w", "a\\w", "C:w", "", ".", "a\0b", "m.onnx"])
def test_names_that_leave_the_folder_are_refused(archive, name):
    _rewritten(archive, name=name)
    _refused(archive, "file name|two files of one name")


def test_a_link_that_leads_out_is_refused(archive):
    elsewhere = archive.parent / "elsewhere"
    elsewhere.mkdir()
    out = archive.parent / "out"
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    with pytest.raises(ModelError, match="leads out"):
        unpack(archive, out / "m.onnx")
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 7}, "don't add up"),
        ({"size": -1}, "greater than or equal to 0"),
        ({"size": 2**62, "segments": [["bytes", 2**62]]}, "less than"),
        ({"size": 2**61, "segments": [["bytes", 2**61]]}, "more than the .* that are admitted"),
        ({"size": 5, "segments": [["f32", 5]]}, "within a word"),
        ({"size": 8, "segments": [["f32", 8], ["f32", 0]]}, "greater than 0"),
        ({"segments": [["f80", 8]]}, "Input should be"),
        ({"sha256": "0" * 64}, "does not come out as it went in"),
        ({"sha256": "x"}, "pattern"),
        ({"surprise": 1}, "not permitted"),
    ],
)
def test_a_header_that_lies_is_refused(archive, changes, match):
    _rewritten(archive, **changes)
    _refused(archive, match)


def test_lengths_are_checked_before_there_is_room_made(archive):
    data = archive.read_bytes()
    magic, version, packed, size = _START.unpack_from(data)
    rest = data[_START.size :]
    archive.write_bytes(_START.pack(magic, version, packed, 2**32 - 1) + rest)
    _refused(archive, "its header says that it has 4,294,967,295 bytes")
    bomb = zstandard.compress(bytes(1 << 24))
    archive.write_bytes(_START.pack(magic, version, len(bomb), size) + bomb)
    _refused(archive, "not as long as it says")
    archive.write_bytes(_START.pack(magic, 2, packed, size) + rest)
    _refused(archive, "version 2")


def test_a_stream_of_more_than_its_block_is_refused():
    block = bytes([0, 1]) + (len(bomb := zstandard.compress(bytes(1 << 24)))).to_bytes(4, "little") + bomb
    for content in (block, bytes([0, 0]) + (1 << 24).to_bytes(4, "little")):
        at = 0

        def read(length, content=content):
            nonlocal at
            at += length
            assert length < 1 << 20
            return content[at - length : at]

        with pytest.raises(ModelError, match="damaged"):
            Decoder().decode(read, 1 << 12, RangeKind.BYTES)


def test_the_users_limit_counts(archive):
    size = sum(p.stat().st_size for p in (archive.parent / "in").rglob("*") if p.is_file())
    _refused(archive, "Give --max-bytes", max_bytes=size - 1)
    unpack(archive, archive.parent / "out" / "m.onnx", max_bytes=size)


def test_existing_files_and_places_are_respected(archive):
    out = archive.parent / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        unpack(archive, out / "m.onnx")
    assert (out / "m.onnx").read_bytes() == b"mine"
    assert [p.name for p in out.iterdir()] == ["m.onnx"]
    assert unpack(archive, out / "new" / "m.onnx").path.is_file()
    with pytest.raises(UsageError, match="exists already"):
        pack(out / "m.onnx", archive)


def test_a_data_file_under_the_models_own_name_is_refused(tmp_path):
    pack(_external(tmp_path, "w.bin"), tmp_path / "a.onnxpack")
    with pytest.raises(UsageError, match="data file"):
        unpack(tmp_path / "a.onnxpack", tmp_path / "w.bin")


def test_the_same_model_gives_the_same_archive(tmp_path):
    for name in ("a", "b"):
        pack(MODELS / "vit.onnx", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_packed_model_is_not_taken_for_a_model(archive):
    assert archive.read_bytes().startswith(PACKED)
    with pytest.raises(ModelError, match=r"is a packed model\. Run `onnxcompress unpack"):
        model_io.load(archive)
    with pytest.raises(ModelError, match="is not an archive"):
        unpack(MODELS / "vit.onnx", archive.parent / "m.onnx")


# The command line.


def _main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["onnxcompress", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_compress_packs_what_it_would_have_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes((MODELS / "mbv2.onnx").read_bytes())
    base = ["compress", "m.onnx", "--recipe", "fold"]
    assert _main(monkeypatch, *base, "-o", "plain.onnx", "-q") == 0
    assert _main(monkeypatch, *base, "--pack", "--json", "report.json") == 0
    archive = Path("m-compressed.onnxpack")
    report = json.loads(Path("report.json").read_text())
    jsonschema.validate(report, json_schema())
    assert report["output"]["path"] == report["packed"]["path"] == str(archive.absolute())
    assert report["packed"]["bytes"] == archive.stat().st_size < 0.85 * report["packed"]["unpacked_bytes"]
    assert report["packed"]["unpacked_bytes"] == report["output"]["bytes"] == Path("plain.onnx").stat().st_size
    assert f"{archive.stat().st_size:,}" in capsys.readouterr().out
    assert _main(monkeypatch, "unpack", archive, "-o", "back.onnx", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["unpacked_bytes"] == Path("plain.onnx").stat().st_size
    assert Path("back.onnx").read_bytes() == Path("plain.onnx").read_bytes()
    assert _main(monkeypatch, "unpack", archive, "-o", "back.onnx") == 2
    assert _main(monkeypatch, "unpack", archive, "-o", "back.onnx", "--force", "--max-bytes", "1KB") == 3
    capsys.readouterr()
    archive.write_bytes(archive.read_bytes()[:-7])
    assert _main(monkeypatch, "unpack", archive, "-o", "new.onnx") == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "cut short" in told
    for command in (["inspect", archive], ["compare", "m.onnx", archive], ["run", archive, "--data", "x.npz"]):
        assert _main(monkeypatch, *command) == 3
        assert "onnxcompress unpack" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "back.onnx",
        "m-compressed.onnxpack",
        "m.onnx",
        "plain.onnx",
        "report.json",
    ]


def test_an_archive_named_like_a_model_is_warned_about(tmp_path, monkeypatch, capsys, caplog):
    target = tmp_path / "small.onnx"
    assert _main(monkeypatch, "compress", MODELS / "mbv2.onnx", "-o", target, "--recipe", "fold", "--pack") == 0
    assert "will be an archive" in caplog.text
    assert target.read_bytes().startswith(PACKED)
