"""Proofs of a run: of the whole model, region by region, or none for a plan."""

from __future__ import annotations

import onnx_ir as ir

from .. import pipeline
from ..quality.result import Quality
from ..runtime.loaded_model import LoadedModel
from ..verify.regions import RegionProof
from ..verify.whole import WholeProof
from .report import Verification
from .setup import Run


class Prover:
    """Makes the proof of each group of passes, and keeps the figures of all; see `pipeline.Prover`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._regions: list[RegionProof] = []
        self._whole: list[WholeProof] = []

    def __call__(self, model: ir.Model, lossless: bool) -> pipeline.Proof:  # noqa: FBT001 - the pipeline's signature
        """Return the proof of passes that start from a model."""
        if self._run.options.plan:
            return _Unproved()
        if not self._run.proof.is_whole:
            feed, seed = self._run.proof.feeds[0], self._run.options.seed
            self._regions.append(RegionProof(model, feed, lossless=lossless, seed=seed))
            return self._regions[-1]
        self._whole.append(self._whole_proof(model, lossless=lossless))
        return self._whole[-1]

    def _whole_proof(self, model: ir.Model, *, lossless: bool) -> WholeProof:
        run = self._run
        is_first = model is run.start
        return WholeProof(
            model,
            run.proof.feeds,
            lossless=lossless,
            limit=lambda candidate: run.excess_drop(candidate, run.own_limit),
            reference=run.base if is_first else None,
            expected=run.proof.expected if is_first else None,
            size_bytes=run.base.size_bytes if is_first and not run.dropped else None,
            threads=run.options.threads,
            like=run.base,
        )

    def proved(self, model: ir.Model) -> LoadedModel | None:
        """Return a model as the proof has loaded it, None where it is not the last one that a proof accepted."""
        return next((p.proved for p in self._whole if p.proved is not None and p.proved.model is model), None)

    def notes(self) -> tuple[str, ...]:
        """Return a line on each output that could not be proved equal, or not well."""
        return tuple(dict.fromkeys(note for proof in self._whole for note in proof.notes()))

    def region_figures(self) -> tuple[Quality, Verification]:
        """Return the report's `quality` and `verification` where only regions were run."""
        measured = [proof.measured for proof in self._regions]
        regions = sum(each.regions for each in measured)
        least = min((each.least_sqnr_db for each in measured if each.least_sqnr_db is not None), default=None)
        quality = Quality(
            metric="least_region_sqnr_db", samples=regions, original=None, compressed=least, drop=None, outputs={}
        )
        verification = Verification(
            mode="regions",
            regions=regions,
            seconds=round(sum(each.seconds for each in measured), 3),
            peak_memory_bytes=max((each.peak_memory_bytes for each in measured), default=0),
        )
        return quality, verification


class _Unproved:
    """Accepts everything, for a plan: nothing is run."""

    def problem(self, candidate: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find nothing wrong."""
        return None

    def excess(self, candidate: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find no limit."""
        return None
