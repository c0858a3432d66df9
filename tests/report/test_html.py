"""The report as a page and as Markdown: complete, self-contained, and safe with hostile names."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from onnxcompress.core import Action, Change, Trial
from onnxcompress.errors import UsageError
from onnxcompress.jobs.report import Limits, PassOptions, Report, ResolvedRecipe, Verification
from onnxcompress.quality.ablation import Ablation, LayerAblation
from onnxcompress.quality.result import OutputDifference, Quality
from onnxcompress.report import files, html, page_model, plots
from onnxcompress.runtime.latency import Latency
from onnxcompress.search.archive import TriedCandidate
from onnxcompress.shapes.count import ModelFacts

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>|`$x_{y}$"
BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


def _tried(label, size, latency, drop=0.001, **more):
    trial = Trial(bytes=1, size_ratio=size, latency_ratio=latency, drop=drop, divergence=1e-4)
    return TriedCandidate(label=label, trial=trial, objection=more.pop("objection", None), **more)


def _report(name="/stem/Conv", **more):
    changes = (
        Change(
            pass_name="quantize-static", target=name, action=Action.APPLIED, reason=f"int8 {name}",
            bytes_before=1000, bytes_after=260, details={"sqnr_db": 48.6},
        ),
        Change(pass_name="quantize-static", target="fc", action=Action.SKIPPED, reason="faster on floats"),
        Change(pass_name="normalize", target=name, action=Action.APPLIED, reason="Identity gone"),
        Change(pass_name="fold-shapes", target="r", action=Action.ROLLED_BACK, reason="outputs differ"),
    )  # fmt: skip
    facts = {
        "input": ModelFacts(path=f"{name}.onnx", bytes=1000, nodes=5, parameters=10, macs=100),
        "output": ModelFacts(path=None, bytes=300, nodes=4, parameters=10, macs=None),
        "recipe": ResolvedRecipe(name="int8", passes=[PassOptions(name="quantize-int8", routes=["static", name])]),
        "limits": Limits(max_drop=0.01, max_bytes=None),
        "quality": Quality(
            metric="top1", samples=20, data="a.npz", original=0.9, compressed=0.89, drop=0.01,
            outputs={name: OutputDifference(max_abs=0.5, cosine=0.999, sqnr_db=None)},
        ),
        "latency": Latency(original_ms=2.0, compressed_ms=1.0, ratio=0.5, runs=9, threads=2, provider="CPU"),
        "seconds": 3.25,
        "peak_memory_bytes": 10_000_000,
        "changes": changes,
        "verification": Verification(mode="full"),
        "notes": (f"input {name} never changes",),
        "candidates": (
            _tried("int8/static", 0.3, 0.5, chosen=True),
            _tried(f"int8/{name}", 0.25, 1.2, objection="it is slower"),
        ),
        "sensitivity": (
            LayerAblation(
                layer=name,
                before=Ablation(change=0.314, channels=64, parts=(0.1, 0.4, 0.0, 0.1)),
                after=Ablation(change=0.271, channels=41, parts=(0.2, 0.2)),
            ),
            LayerAblation(layer="fc", before=Ablation(change=1.0, channels=10, parts=()), after=None),
        ),
        "versions": {"onnxruntime": "1.99"},
        "command": f"onnxcompress compress '{name}'",
    }  # fmt: skip
    return Report(**{**facts, **more})


class _Page(HTMLParser):
    """What stands in a page: tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def test_a_page_says_everything():
    found = _Page(html.html(_report()))
    for text in (
        "/stem/Conv.onnx", "1,000", "0.300", "drop 0.0100", "2 threads", "never changes", "48.6", "faster on floats",
        "outputs differ", "it is slower", "onnxcompress compress '/stem/Conv'", "1.99", "routes=", "9 pairs", "3.2 s",
        "What the model depends on", "31%", "27%", "41", "1 of 4", "1 of 2", "removed",
    ):  # fmt: skip
        assert text in found.text, text
    assert found.count("svg") == 1
    assert found.count("script") == 1


def test_a_page_needs_nothing_from_elsewhere():
    found = _Page(html.html(_report()))
    for tag, attributes in found.tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(key, "#").startswith("#"), (tag, attributes)
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "viewport" in [a.get("name") for _, a in found.tags]
    assert len(html.html(_report())) < 80_000


def test_names_from_a_model_are_text_and_nothing_else():
    plain, hostile = _Page(html.html(_report())), _Page(html.html(_report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert HOSTILE in hostile.text


def test_control_characters_are_spelled_out():
    found = html.html(_report("a\u202eb\x1b[31m"))
    assert "\u202e" not in found
    assert "\x1b" not in found
    assert "\\u202e" in found


def test_what_was_not_measured_leaves_no_hole():
    bare = _report(
        quality=None, latency=None, changes=(), notes=(), candidates=(), versions={}, command=None, limits=Limits(),
        sensitivity=(),
        verification=Verification(mode="regions", regions=3),
    )  # fmt: skip
    found = _Page(html.html(bare))
    assert (found.count("svg"), found.count("script"), found.count("pre")) == (0, 0, 0)
    assert "3 regions" in found.text
    assert "None" not in found.text + html.markdown(bare)


def test_one_candidate_needs_no_plot():
    found = _Page(html.html(_report(candidates=(_tried("a", 0.3, 0.5),))))
    assert (found.count("svg"), "another one is better" in found.text) == (0, True)


def test_a_plot_is_the_same_each_time_and_takes_the_drop_where_nothing_was_timed():
    points = page_model.page(_report()).points
    assert plots.candidates(points) == plots.candidates(points)
    assert "time, as a part" in plots.candidates(points)
    untimed = page_model.page(_report(candidates=(_tried("a", 0.3, None), _tried("b", 0.5, None)))).points
    assert "drop of the score" in plots.candidates(untimed)


def test_many_layers_are_cut_and_counted(monkeypatch):
    monkeypatch.setattr(page_model, "MOST_ROWS", 1)
    found = html.html(_report())
    assert "1 further rows" in found
    assert "faster on floats" not in found


def test_markdown_escapes_names_and_keeps_its_columns():
    text = html.markdown(_report(HOSTILE))
    assert "<script" not in text.replace("\\<script", "").split("    onnxcompress")[0]
    for block in re.split(r"\n(?!\|)", text):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, rows


def test_markdown_says_everything():
    text = html.markdown(_report())
    for part in (
        "drop 0.0100",
        "48.6",
        "it is slower",
        "1.99",
        "never changes",
        "outputs differ",
        "quantize\\-int8",
        "31%",
        "gone",
    ):
        assert part in text, part


@pytest.mark.parametrize("suffix", [".html", ".md", ".json", ".HTM"])
def test_the_suffix_decides(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    files.check_format(path)
    files.write_report(_report(), path)
    assert path.read_text(encoding="utf-8")[0] == {".html": "<", ".htm": "<", ".md": "#", ".json": "{"}[suffix.lower()]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.pdf.*html"):
        files.check_format(tmp_path / "out.pdf")


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(UsageError, match=r"needs jinja2.*onnxcompress\[report\]"):
        files.check_format(tmp_path / "out.html")
    files.check_format(tmp_path / "out.json")


PROBE = """
<script>
const rows = () => [...document.querySelectorAll('#layers tbody tr')].filter(r => !r.hidden).length;
const said = [document.title, rows()];
const words = document.getElementById('words'), outcome = document.getElementById('outcome');
words.value = 'FASTER'; words.dispatchEvent(new Event('input')); said.push(rows());
words.value = ''; outcome.value = 'done'; outcome.dispatchEvent(new Event('change')); said.push(rows());
said.push(document.documentElement.scrollWidth <= window.innerWidth);
document.body.dataset.probe = said.join(';');
</script>
"""


@pytest.fixture
def browser():
    """Headless Chromium by its path."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: the page is checked by a parser only (apt-get install chromium)")
    return found


def _shown(browser, folder, text):
    """Return what a page has become in a browser."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    flags = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
    place = (f"--user-data-dir={folder}/profile", "--window-size=500,844", "--virtual-time-budget=2000")
    command = [browser, "--headless", *flags, *place, "--dump-dom", f"file://{folder}/page.html"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_in_a_browser_the_filter_works_nothing_hostile_runs_and_a_phone_can_show_it(tmp_path, browser):
    text = html.html(_report(HOSTILE))
    policy = re.search(r"script-src '[^']*'", text)[0]
    loud = text.replace(policy, "script-src 'unsafe-inline'").replace("</body>", f"{PROBE}</body>")
    probe = re.search(r'data-probe="([^"]*)"', _shown(browser, tmp_path, loud))
    title, *rest = probe[1].rsplit(";", 4)
    assert title.startswith("onnxcompress: ")
    assert rest == ["2", "1", "1", "true"]


def test_in_a_browser_only_the_pages_own_script_runs(tmp_path, browser):
    text = html.html(_report()).replace("</body>", "<script>document.body.dataset.mine = 'ran'</script></body>")
    shown = _shown(browser, tmp_path, text)
    assert ">2 of 2</output>" in shown
    assert "data-mine" not in shown
