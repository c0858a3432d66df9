"""Make the example models and their data again: small Fashion-MNIST classifiers, exported to ONNX.

Everything in `models/` comes from this script::

    apt-get install dataset-fashion-mnist
    pip install -r tools/requirements-train.txt
    python tools/train_fmnist.py data              # fmnist_test.npz and fmnist_calib.npz, byte for byte
    python tools/train_fmnist.py train             # mbv2, resnet14, resnet14_bn, vit
    python tools/train_fmnist.py score             # bytes, sha256 and top-1 of what is there

One CPU thread is enough. Weights differ a little between machines and torch versions, so a new training
gives models of the same structure and about the same accuracy, not the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

Pixels = npt.NDArray[np.uint8]  # uint8 [n, 1, 28, 28]
Images = npt.NDArray[np.float32]  # float32 [n, 1, 28, 28], normalised
Labels = npt.NDArray[np.int64]  # int64 [n]

PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530  # of the training images, scaled to 0..1
CLASSES = 10
TEST_IMAGES, CALIBRATION_IMAGES = 2000, 512
BATCH = 128
OPSET = 17

DATASET_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it
MODELS_FOLDER = Path(__file__).resolve().parent.parent / "models"


# ------------------------------------------------------------------------------------------ data


class DatasetError(Exception):
    """The dataset is not there, or is not what its file names say."""


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array in a gzipped IDX file of unsigned bytes (two zeros, type 8, rank, sizes, data)."""
    if not path.is_file():
        raise DatasetError(
            f"{path} does not exist: apt-get install dataset-fashion-mnist, or name its folder with --dataset"
        )
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    if content[:3] != b"\0\0\x08" or not rank:
        raise DatasetError(f"{path} is not an IDX file of unsigned bytes")
    header_bytes = 4 + 4 * rank
    shape = np.frombuffer(content[4:header_bytes], ">u4").astype(int)
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


@dataclass(frozen=True)
class Split:
    """Images with their labels: one of the two official splits."""

    pixels: Pixels
    labels: Labels

    @classmethod
    def read(cls, folder: Path, prefix: str) -> Split:
        """Read the split whose files start with `prefix` (`train` or `t10k`)."""
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
        if images.ndim != 3 or len(images) != len(labels):
            raise DatasetError(f"{prefix}: images {images.shape} do not go with labels {labels.shape}")
        return cls(images[:, None], labels)


def normalise(pixels: Pixels) -> Images:
    """Turn grey levels into what the models take."""
    images: Images = (pixels.astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD
    return images


def balanced_subset(labels: Labels, count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Choose `count` positions, equally many of each class.

    Each run of ten holds every class once, so that a prefix of the subset is balanced too.
    """
    generator = np.random.default_rng(seed)
    per_class = [generator.permutation(np.flatnonzero(labels == c))[: count // CLASSES] for c in range(CLASSES)]
    return np.stack(per_class, axis=1).reshape(-1)


def save_arrays(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    """Write a compressed `.npz` in one step."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path` first, so that an interrupted run leaves the old file whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


# -------------------------------------------------------------------------------------- networks


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut before the last activation."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet14(nn.Module):
    """A stem, six residual blocks in three widths and a linear layer: 14 layers deep, 0.69M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(32, 32),
            ResidualBlock(32, 32),
            ResidualBlock(32, 64, stride=2),
            ResidualBlock(64, 64),
            ResidualBlock(64, 128, stride=2),
            ResidualBlock(128, 128),
        )
        self.classifier = nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def conv_norm(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size (but for its stride) and its normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen four times, filter each channel, narrow without activation."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        wide = 4 * inputs
        self.adds_input = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *conv_norm(inputs, wide, 1),
            nn.ReLU6(),
            *conv_norm(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU6(),
            *conv_norm(wide, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the input where the shapes agree."""
        return x + self.layers(x) if self.adds_input else self.layers(x)


class MobileNetV2(nn.Module):
    """Six inverted residuals between a strided stem and a pointwise head: 0.09M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_norm(1, 16, 3, stride=2),
            nn.ReLU6(),
            InvertedResidual(16, 24),
            InvertedResidual(24, 24),
            InvertedResidual(24, 32, stride=2),
            InvertedResidual(32, 32),
            InvertedResidual(32, 64, stride=2),
            InvertedResidual(64, 64),
            *conv_norm(64, 256, 1),
            nn.ReLU6(),
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        pooled = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.classifier(self.dropout(pooled))


class SelfAttention(nn.Module):
    """Multi-head attention from plain matrix products.

    Sizes are read from the tensor, as in much published code, so that the exported graph carries the
    shape arithmetic that real exports have.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix the tokens; float32 [batch, length, width] to the same."""
        batch, length, width = tokens.shape

        def by_head(projected: torch.Tensor) -> torch.Tensor:
            return projected.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = (
            by_head(self.query(tokens)),
            by_head(self.key(tokens)),
            by_head(self.value(tokens)),
        )
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        mixed = torch.softmax(scores, -1) @ value
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer whose inner width is twice the outer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply attention, then the perceptron, each beside a residual path."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class VisionTransformer(nn.Module):
    """49 patches of 4x4 and a class token through four encoder layers: 0.31M parameters."""

    def __init__(self, width: int = 96, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 50, width) * 0.02)
        self.encoder = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, read from the class token."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        return self.classifier(self.norm(self.encoder(tokens))[:, 0])


# -------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Plan:
    """How one model is trained and exported."""

    network: Callable[[], nn.Module]
    epochs: int
    peak_rate: float
    weight_decay: float
    convolutional: bool = True  # trained in channels-last layout, which is faster on a CPU
    with_unfused: bool = False  # also export NAME_bn.onnx, which keeps BatchNormalization


PLANS = {
    "mbv2": Plan(MobileNetV2, epochs=3, peak_rate=4e-3, weight_decay=0.01),
    "resnet14": Plan(ResNet14, epochs=3, peak_rate=4e-3, weight_decay=0.01, with_unfused=True),
    "vit": Plan(VisionTransformer, epochs=5, peak_rate=2e-3, weight_decay=0.05, convolutional=False),
}


def batches(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield the positions of each full batch of one shuffled epoch."""
    order = torch.randperm(count, generator=generator)
    yield from order[: count - count % BATCH].split(BATCH)


def fit(plan: Plan, split: Split, *, seed: int, progress: Callable[[str], None]) -> nn.Module:
    """Train a new network: AdamW on a one-cycle schedule, label smoothing, half of the batches mirrored."""
    torch.manual_seed(seed)
    layout = torch.channels_last if plan.convolutional else torch.contiguous_format
    network = plan.network().to(memory_format=layout)
    images, labels = torch.from_numpy(normalise(split.pixels)), torch.from_numpy(split.labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.peak_rate, weight_decay=plan.weight_decay)
    steps = plan.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.peak_rate, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(seed + 1)
    started = time.process_time()
    network.train()
    for epoch in range(plan.epochs):
        losses = []
        for chosen in batches(len(images), generator):
            batch = images[chosen]
            if torch.rand(1, generator=generator) < 0.5:
                batch = batch.flip(3)
            logits = network(batch.contiguous(memory_format=layout))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.process_time() - started
        progress(f"epoch {epoch + 1}/{plan.epochs}: loss {np.mean(losses):.4f}, {seconds:.0f} CPU seconds")
    return network.eval().to(memory_format=torch.contiguous_format)


def export(network: nn.Module, path: Path, *, unfused: bool = False) -> None:
    """Write the network as ONNX with a free batch axis; `unfused` keeps each BatchNormalization."""
    content = io.BytesIO()
    mode = torch.onnx.TrainingMode.PRESERVE if unfused else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, 28, 28),),
        content,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=OPSET,
        do_constant_folding=not unfused,
        training=mode,
        dynamo=False,
    )
    replace_file(path, content.getvalue())


def top1(model: Path, images: Images, labels: Labels) -> float:
    """Return the share of images whose class the exported model names, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    logits = [session.run(None, {"x": images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    return float(np.mean(np.concatenate(logits).argmax(1) == labels))


# ---------------------------------------------------------------------------------- command line

app = typer.Typer(help="Make the example models and their data again.", no_args_is_help=True, add_completion=False)
console = Console()

DatasetOption = Annotated[Path, typer.Option(help="Folder of the four gzipped IDX files.")]
FolderOption = Annotated[Path, typer.Option("--folder", "-o", help="Where the models and the npz files are.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the choice or of the training.")]


@app.command()
def data(dataset: DatasetOption = DATASET_FOLDER, folder: FolderOption = MODELS_FOLDER, seed: SeedOption = 0) -> None:
    """Write fmnist_test.npz (labelled, balanced, from the test images) and fmnist_calib.npz (no labels)."""
    test, training = Split.read(dataset, "t10k"), Split.read(dataset, "train")
    chosen = balanced_subset(test.labels, TEST_IMAGES, seed=seed)
    calibration = np.random.default_rng(seed).choice(len(training.pixels), CALIBRATION_IMAGES, replace=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(folder / "fmnist_test.npz", x=normalise(test.pixels[chosen]), label=test.labels[chosen])
    save_arrays(folder / "fmnist_calib.npz", x=normalise(training.pixels[calibration]))
    console.print(f"{len(chosen)} test and {len(calibration)} calibration images are in {folder}")


@app.command()
def train(
    names: Annotated[list[str] | None, typer.Argument(help="Models to train (default: all).")] = None,
    dataset: DatasetOption = DATASET_FOLDER,
    folder: FolderOption = MODELS_FOLDER,
    seed: SeedOption = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the result depends on it.")] = 1,
) -> None:
    """Train and export: python tools/train_fmnist.py train mbv2 --folder new-models."""
    wanted = names or list(PLANS)
    if unknown := [name for name in wanted if name not in PLANS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(PLANS)}")
    torch.set_num_threads(threads)
    training = Split.read(dataset, "train")
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        plan = PLANS[name]
        network = fit(plan, training, seed=seed, progress=lambda text, name=name: console.print(name, text))
        export(network, folder / f"{name}.onnx")
        if plan.with_unfused:
            export(network, folder / f"{name}_bn.onnx", unfused=True)
    console.print(f"{', '.join(wanted)}: exported to {folder}")


@app.command()
def score(dataset: DatasetOption = DATASET_FOLDER, folder: FolderOption = MODELS_FOLDER) -> None:
    """Print bytes, sha256 and the accuracy of every model, on fmnist_test.npz and on all 10,000 images."""
    official = Split.read(dataset, "t10k")
    subset = np.load(folder / "fmnist_test.npz")
    table = Table("file", "bytes", "top-1, subset", "top-1, all 10,000", "sha256")
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".onnx", ".npz"}):
        accuracy = ["", ""]
        if path.suffix == ".onnx":
            accuracy = [
                f"{top1(path, subset['x'], subset['label']):.4f}",
                f"{top1(path, normalise(official.pixels), official.labels):.4f}",
            ]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        table.add_row(path.name, str(path.stat().st_size), *accuracy, digest)
    Console(width=max(console.width, 140)).print(table)


def main() -> None:
    """Run the command line; a missing dataset is one line and exit code 3."""
    try:
        app()
    except DatasetError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(3) from None


if __name__ == "__main__":
    main()
