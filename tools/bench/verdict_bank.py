"""The bank of damaged models: the loss of each by labels, and its and its original's outputs for unlabelled samples.

A folder for each model: `original.json` and `original.npz`, and the same two files for every damage. A .json file tells
the metrics on all labelled samples; a .npz file holds the outputs sample by sample, see `Answers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.process import ROOT, TOOLS_FOLDER

ORIGINAL = "original"
MOST_JUDGED = 256
"""Samples to judge by that are stored of each model, where the zoo has so many."""
_STORE_SECONDS = 600
"""Time that a damage may take with its evaluation, before it is killed."""
SEARCH_SECONDS = 60
"""Time after which a recipe begins nothing new: what it makes is to be damaged, not good."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A labelled model of the zoo.

    `metric` is what the loss is taken of (higher is better, one point is .01). `fit` is how many samples recipes see,
    those for few bits only with `blocks_with_data`: where there are few samples, they are kept to judge by. `cut_steps`
    of distillation follow a cut. `noise` are the spreads of further damages, `labelled` how many labelled samples these
    are evaluated on (None: all).
    """

    metric: str = "top1"
    fit: int = 64
    blocks_with_data: bool = True
    cut_steps: int = 60
    noise: tuple[float, ...] = ()
    labelled: int | None = None


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A way to make a model worse: noise on its weights (spread as a part of each), then a recipe, both optional."""

    noise: float = 0.0
    recipe: str = ""
    settings: tuple[str, ...] = ()
    with_data: bool = True


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Outputs of a model by name for each sample, and for which samples a recipe saw them before."""

    samples: list[dict[str, np.ndarray]]
    seen: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Case:
    """A damaged model beside its original; `loss` is by labels, `labelled` the number of labelled samples."""

    model: str
    damage: str
    metric: str
    loss: float
    labelled: int
    original: Answers
    damaged: Answers
    facts: dict[str, Any] = field(default_factory=dict)


_SPREADS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Of weight noise on the classifiers of fmnist, by which they lose 0 to 50 points; measured."""
SUBJECTS = {
    "fmnist/mbv2": Subject(noise=_SPREADS),
    "efficientnet_lite1/model": Subject(fit=32, blocks_with_data=False, cut_steps=0, noise=(0.02, 0.04, 0.07, 0.1)),
    "textgenrnn_lstm/model": Subject(noise=(0.02, 0.05, 0.1)),
    "fmnist/resnet14": Subject(noise=_SPREADS, labelled=4000),
    "chargpt/model": Subject(noise=(0.1, 0.2)),
    "fmnist/vit": Subject(noise=_SPREADS, labelled=4000),
    "ppocr_rec/model": Subject(metric="char_acc", fit=56, cut_steps=0, noise=(0.03, 0.06, 0.1)),
    "silero_vad/model": Subject(metric="acc", noise=(0.1, 0.3)),
    "minilm/model": Subject(metric="sent_acc", cut_steps=0),
    "fmnist/mbv2_bn": Subject(),
    "fmnist/resnet14_bn": Subject(),
    "fmnist/vit_dynamo20": Subject(),
    "fmnist/resnet14_dynamo20": Subject(),
}


def damages(subject: Subject) -> dict[str, Damage]:
    """Return the seven damages that every model gets, then those that are cheap.

    Static int8 and cuts go without what makes them good (recovery, many steps): that takes long.
    """
    quick_cut = (f"prune-channels.distill_steps={subject.cut_steps}", "prune-channels.rounds=1")
    found = {
        "int8": Damage(recipe="int8", settings=("quantize-int8.routes=['static']", "quantize-int8.recover=false")),
        "int8-weights": Damage(recipe="int8-weights", with_data=False),
        **{f"{bits} bits": _blocks(bits, with_data=subject.blocks_with_data) for bits in (4, 3, 2)},
        **{f"prune {keep}": Damage(recipe="prune", settings=(f"prune-channels.keep_macs={keep}", *quick_cut))
           for keep in (0.8, 0.5)},
    }  # fmt: skip
    found |= {f"noise {spread}": Damage(noise=spread) for spread in subject.noise}
    found |= {f"noise {spread}, 4 bits": _blocks(4, noise=spread) for spread in subject.noise[1:3]}
    found |= {f"noise {spread}, int8": Damage(recipe="int8", settings=found["int8"].settings, noise=spread)
              for spread in subject.noise[:1]}  # fmt: skip
    return found


def _blocks(bits: int, *, noise: float = 0.0, with_data: bool = False) -> Damage:
    scheme = f"quantize-blocks.scheme=int{bits}/block32/sym"
    return Damage(recipe="int4-weights", settings=(scheme,), noise=noise, with_data=with_data)


def make(zoo: Path, to: Path, keys: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Fill the bank and yield (model, damage, outcome); what is there already is kept."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)]), "OMP_NUM_THREADS": "1"}
    for key in keys:
        if not (zoo / key).with_suffix(".onnx").exists():
            yield key, ORIGINAL, "not in the zoo"
            continue
        for name in (ORIGINAL, *damages(SUBJECTS[key])):
            target = place(to, key, name)
            if target.with_suffix(".json").exists():
                yield key, name, "kept"
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-W", "ignore", "-m", "bench.verdict_damage", str(zoo), key, name, str(target)]
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=_STORE_SECONDS, check=False
                )
                last = (done.stderr.strip().splitlines() or [""])[-1][:200]
                yield key, name, "stored" if done.returncode == 0 else last or f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                yield key, name, f"killed after {_STORE_SECONDS} s"


def place(bank: Path, key: str, name: str) -> Path:
    """Return where the files of a model or of a damage of it lie, without their suffixes."""
    return bank / key.replace("/", "+") / name.replace(", ", "+").replace(" ", "-").replace(".", "_")


def store(target: Path, answers: Answers, facts: dict[str, Any]) -> None:
    """Write the two files; the .json comes last, so that who sees it sees all."""
    arrays: dict[str, np.ndarray] = {"seen": answers.seen}
    for index, sample in enumerate(answers.samples):
        arrays |= {f"{index}/{name}": value for name, value in sample.items()}
    with target.with_suffix(".part").open("wb") as file:
        np.savez_compressed(file, **arrays)
    target.with_suffix(".part").replace(target.with_suffix(".npz"))
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def read_answers(target: Path) -> Answers:
    """Read what `store` wrote."""
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(target.with_suffix(".npz")) as held:
        seen = held["seen"]
        for key in held.files:
            index, slash, name = key.partition("/")
            if slash:
                samples.setdefault(int(index), {})[name] = held[key]
    return Answers(samples=[samples[index] for index in sorted(samples)], seen=seen)


def cases(bank: Path, keys: Sequence[str]) -> Iterator[Case]:
    """Yield all damaged models of the bank."""
    for key in keys:
        base = place(bank, key, ORIGINAL)
        if not base.with_suffix(".json").exists():
            continue
        metric = SUBJECTS[key].metric
        facts, original = json.loads(base.with_suffix(".json").read_text()), read_answers(base)
        for name in damages(SUBJECTS[key]):
            target = place(bank, key, name)
            if not target.with_suffix(".json").exists():
                continue
            damaged = json.loads(target.with_suffix(".json").read_text())
            limited = damaged["labelled"] != facts["labelled"]
            before = facts["limited"] if limited else facts["metrics"]
            yield Case(
                model=key,
                damage=name,
                metric=metric,
                loss=before[metric] - damaged["metrics"][metric],
                labelled=damaged["labelled"],
                original=original,
                damaged=read_answers(target),
                facts=facts,
            )
