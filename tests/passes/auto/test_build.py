"""What is built ahead by processes or a cluster is what is built here, and a worker that goes away costs time only."""

import json
import os
import signal
import time
from concurrent.futures import Future

import pytest

import onnxcompress as oc
from onnxcompress.core import Action, Change, Context
from onnxcompress.errors import LostWorkerError
from onnxcompress.io import model_io
from onnxcompress.jobs.node_selector import selector
from onnxcompress.passes.auto import build as auto_build
from onnxcompress.passes.auto.build import Builder, BuildOrder, PassCall
from onnxcompress.runtime import executors
from tests.helpers import floats, with_constants

ORDER = BuildOrder((PassCall(name="quantize-weights", options=()),))
OTHER = BuildOrder((PassCall(name="quantize-weights", options=(("min_elements", 1),)),))


def _model():
    text = "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { m = MatMul(x, w) y = Relu(m) }"
    return with_constants(text, w=floats(64, 64))


class _Line:
    """An executor that answers when it is asked to."""

    def __init__(self, answer=None):
        self.orders, self.shared, self.futures, self.answer = [], 0, [], answer

    def share(self, value):
        self.shared += 1
        return value

    def submit(self, fn, /, *args):
        self.orders.append(args[1])
        self.futures.append(Future())
        if isinstance(self.answer, Exception):
            self.futures[-1].set_exception(self.answer)
        elif self.answer is not None:
            self.futures[-1].set_result(fn(*args))
        return self.futures[-1]


def test_without_workers_it_is_built_here():
    model = _model()
    builder = Builder(model, Context())
    builder.ahead([ORDER])
    built = builder.built(ORDER)
    assert [c.action for c in built.changes] == [Action.APPLIED]
    assert model_io.model_bytes(built.model) < 0.5 * model_io.model_bytes(model)


def test_the_passes_of_an_order_run_one_after_another():
    order = BuildOrder((PassCall(name="remove-dead", options=()), *ORDER.steps))
    assert order.label == "remove-dead + quantize-weights"
    model = with_constants(
        "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { d = Relu(x) y = MatMul(x, w) }", w=floats(64, 64)
    )
    built = Builder(model, Context()).built(order)
    assert [c.pass_name for c in built.changes if c.action is Action.APPLIED] == ["remove-dead", "quantize-weights"]


def test_each_order_is_sent_once_and_the_model_too():
    line = _Line("done")
    builder = Builder(_model(), Context(executor=line))
    builder.ahead([ORDER, OTHER])
    builder.ahead([ORDER])
    assert (line.orders, line.shared) == ([ORDER, OTHER], 1)
    here = Builder(_model(), Context()).built(ORDER)
    there = builder.built(ORDER)
    assert model_io.to_bytes(there.model) == model_io.to_bytes(here.model)
    assert there.changes == here.changes


def test_what_a_lost_worker_had_is_built_here_and_errors_are_errors():
    builder = Builder(_model(), Context(executor=_Line(LostWorkerError("gone"))))
    builder.ahead([ORDER])
    assert builder.built(ORDER).changes
    builder = Builder(_model(), Context(executor=_Line(oc.ModelError("can't be run"))))
    builder.ahead([ORDER])
    with pytest.raises(oc.ModelError, match="can't be run"):
        builder.built(ORDER)


def test_what_nobody_asked_for_is_given_up():
    line = _Line()
    builder = Builder(_model(), Context(executor=line))
    builder.ahead([ORDER])
    builder.close()
    assert line.futures[0].cancelled()


def test_a_process_builds_the_same_bytes_for_the_nodes_that_were_chosen():
    model = _model()
    selects = selector(model, skip=["op:MatMul"])
    here = Builder(model, Context(selects=selects)).built(ORDER)
    with executors.wanted(workers=2, scheduler=None) as executor:
        builder = Builder(model, Context(executor=executor, selects=selects, feeds=[{"x": floats(1, 64)}]))
        builder.ahead([ORDER])
        there = builder.built(ORDER)
    assert there.changes == here.changes
    assert model_io.to_bytes(there.model) == model_io.to_bytes(here.model)
    assert len(model_io.to_bytes(there.model)) > 64 * 64 * 4


def test_one_worker_needs_no_executor():
    with executors.wanted(workers=1, scheduler=None) as executor:
        assert executor is None


def test_a_cluster_builds_on_though_a_worker_is_killed(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(auto_build, "carry_out", slowly)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50
        ) as cluster,
        executors.wanted(workers=1, scheduler=cluster.scheduler_address) as executor,
    ):
        orders = [BuildOrder((PassCall(name="quantize-weights", options=(("min_elements", n),)),)) for n in range(1, 5)]
        builder = Builder(_model(), Context(executor=executor))
        builder.ahead(orders)
        os.kill(cluster.workers[0].process.process.pid, signal.SIGKILL)
        for order in orders:
            assert builder.built(order).changes[0].reason == "from afar"
        assert executor.elsewhere_seconds > 0


def test_searches_with_workers_or_after_an_interruption_come_to_the_same_bytes(tmp_path, monkeypatch):
    text = (
        "g (float[n, 64] x, float[64, 96] a, float[96, 10] b) => (float[n, 10] y)"
        " { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    )
    b = floats(96, 10, seed=1)
    b[40:] *= 1e-4
    model = with_constants(text, a=floats(64, 96), b=b)
    given = {"data": {"x": floats(64, 64, seed=2)}, "settings": ["search-best.builds=2"]}
    alone = oc.compress(model, **given)
    report = tmp_path / "report.json"
    report.write_text(json.dumps(alone.report.as_json()))
    helped = oc.compress(model, workers=2, timings=report, **given)
    assert any("prune-channels" in each.label for each in helped.report.candidates)
    assert model_io.to_bytes(helped.model) == model_io.to_bytes(alone.model)
    built, asked = Builder.built, []

    def interrupted(self, order):
        asked.append(order)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return built(self, order)

    monkeypatch.setattr(Builder, "built", interrupted)
    with pytest.raises(KeyboardInterrupt):
        oc.compress(model, checkpoint=tmp_path / "state", timings=report, **given)
    resumed = oc.compress(model, checkpoint=tmp_path / "state", timings=report, **given)
    assert asked[0].steps[0].options[0] == ("keep_macs", 0.5)
    assert asked[1] == asked[2]
    assert len({order.label for order in asked}) == len(asked) - 1  # what was built is not built again
    assert model_io.to_bytes(resumed.model) == model_io.to_bytes(alone.model)


def slowly(material, order):
    """Carry an order out elsewhere, and take a while."""
    time.sleep(0.3)
    model, _ = CARRY_OUT(material, order)
    return model, (Change(pass_name=order.steps[0].name, target="w", action=Action.APPLIED, reason="from afar"),)


CARRY_OUT = auto_build.carry_out
