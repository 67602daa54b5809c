"""The report shows everything that a record holds, and nothing that it does not."""

import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.bench_record import H200, cpu_record, record, row
from tests.browser import CHROMIUM, chromium
from tlazy.bench import table
from tlazy.bench.peers import PEERS
from tlazy.errors import UserError
from tlazy.report import pictures, write_html, write_pngs, write_report
from tlazy.report.earlier import Changes, Worse

pytest.importorskip("jinja2", reason="the report needs the plot extra: jinja2")
figures = pytest.importorskip(
    "matplotlib.figure", reason="the report needs the plot extra: matplotlib"
)

HOSTILE = (
    """<script>window.hacked = 1</script></style>"'><img src=x onerror="hacked=1"> $x_{$ {{7*7}}"""
)
WRONG = row("compile", None, status="wrong", note="error 0.31 above 0.02", error=0.31)
UNSUPPORTED = row("causal-conv1d", None, status="unsupported", note="kernel sizes of 2 to 4 only")
FAILED = row("fla", None, note="OutOfMemoryError")
LOSING = [
    row(problem="small M", dtype="float16", **{"pass": "full"}),
    row("eager", 90.0, problem="small M", dtype="float16", **{"pass": "full"}),
]
EVEN = [row(problem="even"), row("eager", 99.0, problem="even")]
MIXED = [row(), row("eager", 130.0), WRONG, UNSUPPORTED, FAILED, *LOSING]


FAILED_TESTS = "Some of the kernels' tests failed"


class Page(HTMLParser):
    """The parts of a report that tests look at."""

    def __init__(self, html):
        super().__init__()
        assert html.startswith("<!doctype html>")  # anything before it means quirks mode
        self.tags, self.rows, self.text = [], [], ""
        self._cells = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr" and "data-index" in dict(attributes):
            self._cells = []
            self.rows.append(self._cells)
        elif tag in ("td", "th") and self._cells is not None:
            self._cells.append("")

    def handle_endtag(self, tag):
        if tag == "tr":
            self._cells = None

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data
        if self._cells:
            self._cells[-1] += data

    def having(self, css_class):
        return [a for _, a in self.tags if css_class in (a.get("class") or "").split()]


@pytest.fixture
def page(tmp_path):
    def made(content, **options):
        write_html(content, tmp_path / "report.html", **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return made


def test_table_has_every_row_with_its_status_and_note(page):
    shown = page(record(*MIXED)).rows
    assert len(shown) == len(MIXED)
    for cells, wanted in zip(shown, MIXED, strict=True):
        assert {wanted["peer"], wanted["status"], wanted["dtype"], wanted["pass"]} <= set(cells)
        assert wanted["note"] in cells


def test_names_are_text_wherever_they_stand(page):
    names = ("suite", "op", "problem", "dtype", "pass", "activation", "layout", "backend", "note")
    hostile = dict.fromkeys(names, HOSTILE) | {"shape": {HOSTILE: HOSTILE}}
    content = record(
        row(HOSTILE, **hostile),
        row(**hostile),
        row("eager", None, **hostile),
        command=HOSTILE,
        ceilings={"bandwidth": 4e12, "matmul": {HOSTILE: 700e12}},
    )
    content["machine"] |= {"device": HOSTILE, "processor": HOSTILE}
    content["versions"] |= {"tlazy": HOSTILE, HOSTILE: HOSTILE}
    shown = page(content)
    assert [tag for tag, _ in shown.tags].count("script") == 1
    assert not [tag for tag, _ in shown.tags if tag == "img"]
    assert not [a for _, a in shown.tags for name in a if name.startswith("on")]
    assert shown.text.count(HOSTILE) > 30
    assert all(cells.count(HOSTILE) >= len(names) - 1 for cells in shown.rows)


def test_page_needs_nothing_from_outside(page):
    shown = page(record(*MIXED))
    assert not [a for _, a in shown.tags if "src" in a]
    links = [a["href"] for _, a in shown.tags if "href" in a]
    assert links
    assert all(link.startswith("#") for link in links)
    policies = [a["content"] for _, a in shown.tags if a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "rows", [[], [row()], [row("eager")], [WRONG, FAILED], [row("tlazy", None)]]
)
@pytest.mark.parametrize("made", [record, cpu_record])
def test_few_rows_make_a_page_and_pictures(page, tmp_path, made, rows):
    shown = page(made(*rows))
    assert len(shown.rows) == len(rows)
    assert len(write_pngs(made(*rows), tmp_path)) == 2


def test_hundreds_of_rows_make_a_page_and_pictures(page, tmp_path):
    rows = [
        row(peer, 10.0 + i, problem=f"layer {i}") for i in range(150) for peer in ("tlazy", "eager")
    ]
    shown = page(record(*rows))
    assert len(shown.rows) == 300
    assert len(shown.having("fill")) == 150
    assert len([a for a in shown.having("mark") if "data-row" in a]) == 300
    write_pngs(record(*rows), tmp_path)


def test_every_peer_of_the_benchmark_has_a_mark_of_its_own(page):
    rows = [row("tlazy"), *(row(peer, 120.0) for peer in PEERS if peer != "tlazy")]
    shown = page(record(*rows))
    marks = [mark["href"] for mark in shown.having("mark") if "data-row" in mark]
    assert len(set(marks)) == len(marks) == len(PEERS)
    assert len(set(pictures.MARKERS)) == len(set(pictures.COLOURS)) >= len(PEERS)


def test_a_picture_of_very_many_comparisons_shows_each_problem_beside_its_fastest_peer(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    times = {"tlazy": 100.0, "eager": 150.0, "compile": 90.0, "fla": None}
    rows = [
        row(peer, time, problem=f"layer {i}") for i in range(30) for peer, time in times.items()
    ]
    write_pngs(record(*rows), tmp_path)
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) == 30
    assert all(label.endswith("vs compile") for label in labels)
    said = drawn[0].get_supxlabel()
    assert "30 problems, each beside its fastest peer; of all 90 comparisons:" in said
    assert "eager: faster in 30, slower in 0; compile: faster in 0, slower in 30;" in said
    assert "fla: faster in 0, slower in 0, not compared in 30" in said


def test_losing_is_said_and_striped(page):
    shown = page(record(*LOSING))
    assert len(shown.having("duel")) == len(shown.having("slower")) - 1 == 1  # and a cell
    assert "0.90× slower" in shown.text
    assert "slower in 1" in shown.text
    assert "0.86–0.95×" in shown.text


def test_overlapping_spreads_are_no_difference_wherever_they_are_shown(page, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    content = record(*MIXED, *EVEN)
    shown = page(content)
    assert "0.99× no difference" in shown.text
    assert "Faster in 1, slower in 1, no difference in 1." in shown.text
    assert "geometric mean of 3 problems" in shown.text
    assert "0.99× no difference" in shown.rows[-1]
    assert [a["data-verdict"] for _, a in shown.tags if "data-verdict" in a][-1] == "even"
    write_pngs(content, tmp_path)
    said = [text.get_text() for text in drawn[0].axes[0].texts]
    assert {"0.99× no difference", "0.90× slower"} <= set(said)
    counted = "eager: faster in 1, slower in 1, no difference in 1"
    assert counted in drawn[0].get_supxlabel()
    assert re.findall(r"[\d.]+x ?~?", in_a_terminal(content)) == ["1.30x ", "0.90x ", "0.99x ~"]


def in_a_terminal(content):
    terminal = Console(file=io.StringIO(), width=200)
    table.show(content, terminal)
    return terminal.file.getvalue()


def test_where_no_comparison_shows_a_difference_no_mean_is_shown(page):
    content = record(*EVEN)
    (big,) = re.findall(r"against eager\s+(\S.*?)\s*Faster", page(content).text)
    assert big == "no difference"
    said = "against eager: no difference; faster in 0, slower in 0, no difference in 1\n"
    assert in_a_terminal(content).endswith(said)


def test_the_headline_stands_in_the_terminal_and_on_the_page(page):
    content = record(*MIXED)
    figure = "geometric mean of 2 problems, worst 0.90×"
    assert re.search(rf"against eager\s+1\.08×\s+{figure}\.\s+Faster", page(content).text)
    lines = in_a_terminal(content).splitlines()
    assert f"against eager: 1.08× ({figure}); faster in 1, slower in 1" in lines
    assert "against fla: no figure; faster in 0, slower in 0, not compared in 1" in lines


def test_a_row_without_a_time_gives_no_speedup(page):
    shown = page(record(row(status="wrong", median=None, note="off by 3"), row("eager")))
    assert not shown.having("fill")
    assert "no comparison: tlazy: wrong (off by 3)" in shown.text
    assert "no figure" in shown.text


def test_a_row_that_the_run_ended_before_is_no_failure(page):
    late = row("compile", None, status="not measured", note="the run ended first")
    shown = page(record(row(), row("eager", 130.0), late, complete=False))
    assert "Incomplete record. The run ended before" in shown.text
    assert "1 row of those that it came to is not measured" in shown.text
    assert "no comparison: compile: not measured (the run ended first)" in shown.text
    assert not shown.having("bad")
    assert "given no time" not in shown.text
    assert "1 of 2 rows was given no time: " in page(record(row(), FAILED)).text


def test_what_changed_since_an_earlier_record_has_a_section(page):
    worse = Worse(row("eager", problem=HOSTILE), "1.30 times as long")
    shown = page(record(row()), changes=Changes("old.json", 3, [worse]))
    assert "Compared with old.json" in shown.text
    assert "1 of 3 measurements that old.json has too are worse." in shown.text
    assert f"{HOSTILE}, forward, eager: 1.30 times as long" in shown.text
    none = page(record(row()), changes=Changes("old.json", 0, []))
    assert "Nothing that has a time in old.json was measured." in none.text
    assert "Compared with" not in page(record(row())).text


def test_cpu_and_incomplete_records_say_so(page):
    assert "CPU path: both sides run ATen" in page(cpu_record(row())).text
    assert "Incomplete record" in page(record(row(), complete=False)).text
    whole = page(record(row())).text
    assert "CPU path" not in whole
    assert "Incomplete" not in whole


@pytest.mark.parametrize(
    ("told", "noted"),
    [
        ({"exit_code": 0}, None),
        ({"exit_code": 1}, FAILED_TESTS),
        ({"exit_code": -2}, FAILED_TESTS),
        ({"exit_code": 1, "in_time": True, "failed": {"a": ["b"]}}, FAILED_TESTS),
        ({"exit_code": 1, "in_time": False, "failed": {}}, "The kernels' tests were cut short"),
        (
            {"exit_code": 1, "in_time": False, "failed": {"a": ["b"]}},
            f"{FAILED_TESTS} and others were cut short",
        ),
    ],
)
def test_tests_of_the_same_run_are_shown_and_noted_where_not_all_passed(page, told, noted):
    tests = {"command": "pytest tests", "summary": "what became of them", **told}
    text = page(record(row(), tests=tests)).text
    assert "what became of them (pytest tests)" in text
    assert re.findall("(.*) in this run: what became of them", text) == ([noted] if noted else [])


def test_page_names_machine_versions_date_and_command(page):
    text = page(record(row(), command="tlazy bench conv1d --dtype float16")).text
    for wanted in (H200, "23 November 2026", "2.11.0", "3.12.3", "128 GiB", "conv1d --dtype"):
        assert wanted in text


def test_every_tooltip_has_problem_shape_and_median(page):
    text = page(record(row(median=1250.0))).text
    assert re.search(r"wav2vec2 layer 0, bfloat16, forward\nbatch 32, .*\nmedian 1.25 ms", text)


def test_pictures_are_legible_pngs_that_name_their_device_and_versions(tmp_path, monkeypatch):
    drawn, savefig = [], figures.Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(figures.Figure, "savefig", keep)
    paths = write_pngs(record(*MIXED, row("_$x$", 70.0)), tmp_path)
    assert [path.name for path in paths] == ["speedups.png", "roofline.png"]
    for path, figure in zip(paths, drawn, strict=True):
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert int.from_bytes(head[16:20], "big") == 1200
        assert H200 in figure._suptitle.get_text()
        assert "torch 2.11.0" in figure._supxlabel.get_text()
    legend = drawn[1].axes[0].get_legend()
    assert any("_" in text.get_text() for text in legend.get_texts())


@pytest.mark.parametrize("write", [write_html, write_pngs])
def test_a_path_that_cannot_be_written_is_one_line(tmp_path, write):
    with pytest.raises(UserError, match=r"cannot write .*nowhere"):
        write(record(row()), tmp_path / "nowhere" / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_html, write_pngs])
def test_a_malformed_record_is_refused_before_anything_is_written(tmp_path, write):
    with pytest.raises(UserError, match=r"rows\[0\].median_us"):
        write(record(row(median_us="fast")), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "library"), [(write_html, "jinja2"), (write_pngs, "matplotlib.figure")]
)
def test_a_missing_library_is_named_with_the_way_out(tmp_path, monkeypatch, write, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(UserError, match=re.escape("pip install 'tlazy[plot]'")):
        write(record(row()), tmp_path)


def test_a_report_is_drawn_beside_its_record_with_what_is_installed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "2026-11-23.json"
    path.write_text(json.dumps(record(*MIXED)))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        write_report(path)
    said = "no report, or a part of it: pictures need matplotlib: pip install 'tlazy[plot]'\n"
    assert capsys.readouterr().err == said
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "2026-11-23.html"}
    write_report(path)
    assert capsys.readouterr().err == ""
    assert (tmp_path / "speedups.png").exists()


def test_importing_the_report_imports_no_plotting_library():
    code = "import sys, tlazy.report; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    # Under pytest's own path, so also where nothing is installed.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of all kinds of rows, one with a name that would like to run."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    hostile = [row(problem=HOSTILE, dtype="float32"), row("eager", 1300.0, problem=HOSTILE)]
    write_html(record(*MIXED, *EVEN, *hostile, complete=False), path)
    return path


MEDIANS = """[...document.querySelectorAll("#rows tbody tr:not(.out)")]
    .map(row => row.cells[5].dataset.value ?? "").map(text => text === "" ? null : Number(text))"""

# The contrast of each text with what is painted behind it, by WCAG 2.2's formula.
LOW_CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (css) => [...rgba(css)].slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const css = getComputedStyle(el).backgroundColor;
      if (rgba(css)[3] === 255) return css;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = []; let seen = 0;
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement, style = getComputedStyle(el);
    if (!walker.currentNode.data.trim() || !el.getClientRects().length) continue;
    const [a, b] = [light(el.closest("svg") ? style.fill : style.color), light(behind(el))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    seen += 1;
    if (ratio < 4.5) low.push([walker.currentNode.data, ratio]);
  }
  return {seen, low};
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200], ids=["phone", "desktop"])
def test_browser_shows_plots_and_table(browser, report, tmp_path, width, dark):
    browser.open(report, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    plot = browser.run("document.querySelector('.plot > svg').getBoundingClientRect().toJSON()")
    assert plot["width"] > 0.5 * width
    assert plot["height"] > 250
    places = browser.run(
        "[...document.querySelectorAll('.plot [data-row]')].map(p => p.getBoundingClientRect())"
        ".map(r => [r.x + r.width / 2, r.y + r.height / 2])"
    )
    assert len(places) == 8
    for x, y in places:
        assert plot["left"] < x < plot["right"]
        assert plot["top"] < y < plot["bottom"]
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) is dark
    contrast = browser.run(LOW_CONTRAST)
    assert contrast["seen"] > 100
    assert contrast["low"] == []
    assert browser.screenshot(tmp_path / "shot.png").startswith(b"\x89PNG")
    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]
    assert browser.run("typeof window.hacked") == "undefined"


@pytest.mark.parametrize("width", [375, 1200], ids=["phone", "desktop"])
def test_browser_draws_winning_bars_right_and_losing_bars_left_of_one(browser, report, width):
    browser.open(report, width=width)
    sides = browser.run(
        """[...document.querySelectorAll(".duel .fill")].map(bar => {
            const r = bar.getBoundingClientRect(), track = bar.parentElement;
            const line = getComputedStyle(track, "::after");
            const one = track.getBoundingClientRect().x + parseFloat(line.left);
            return [bar.closest(".duel").querySelector("b").textContent.split("× ")[1],
                    r.width > 1, r.x + 1 > one, r.right - 1 < one];
        })"""
    )
    assert sides == [
        ["faster", True, True, False],
        ["slower", True, False, True],
        ["no difference", True, False, True],
    ]


def test_browser_sorts_by_a_heading_with_the_keyboard(browser, report):
    browser.open(report, width=1200)
    as_written = browser.run(MEDIANS)
    assert None in as_written
    browser.run("document.querySelectorAll('#rows th button')[5].focus()")
    for direction in ("ascending", "descending"):
        browser.press("Enter", 13, "\r")
        assert browser.run("document.querySelector('th[aria-sort]').ariaSort") == direction
        timed = sorted((m for m in as_written if m), reverse=direction == "descending")
        assert browser.run(MEDIANS) == timed + [None] * as_written.count(None)
    browser.run("document.querySelectorAll('#rows th button')[1].click()")
    who = browser.run("[...document.querySelectorAll('#rows tbody tr')].map(r => r.dataset.peer)")
    assert who == sorted(who)
    assert browser.run("document.querySelectorAll('th[aria-sort]').length") == 1


def test_browser_filters_table_and_plots_together(browser, report):
    browser.open(report, width=1200)
    choose = """(name, value) => {
        const field = document.querySelector(".filters").elements[name];
        field.value = value; field.dispatchEvent(new Event("input", {bubbles: true}));
    }"""
    shown = """[...document.querySelectorAll("#rows tbody tr:not(.out)")]
        .map(r => r.dataset.status)"""
    points = "document.querySelectorAll('.plot [data-row]:not(.out)').length"
    browser.run(f"({choose})('status', '=wrong')")
    assert browser.run(shown) == ["wrong"]
    assert browser.run(points) == 0
    browser.run(f"({choose})('status', '')")
    browser.run(f"({choose})('verdict', 'slower')")
    assert browser.run("document.querySelectorAll('.problem:not(.out)').length") == 1
    assert browser.run(points) == 2
    browser.run(f"({choose})('verdict', 'even')")
    assert browser.run("document.querySelector('.problem:not(.out) b').textContent").endswith(
        "no difference"
    )
    browser.run(f"({choose})('search', 'no such row')")
    assert browser.run("document.querySelector('output').textContent") == "0 of 11 rows"


def test_browser_shows_a_tooltip_at_a_point(browser, report):
    browser.open(report, width=1200)
    x, y = browser.run(
        """(async () => { const p = document.querySelector('.plot [data-row="0"]');
            p.scrollIntoView({block: "center"});
            for (const _ of "12") await new Promise(requestAnimationFrame);
            const r = p.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; })()"""
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = browser.run("document.querySelector('.tip:not([hidden])')?.textContent")
    assert "tlazy (triton)" in tip
    assert "batch 32" in tip
    assert "median 100 µs" in tip


def test_browser_without_scripts_shows_the_plain_table(browser, report):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report, width=1200)
        assert browser.run("document.querySelectorAll('#rows th button').length") == 0
        assert browser.run("document.querySelectorAll('#rows tbody tr').length") == 11
        assert browser.run("document.querySelector('.filters').getClientRects().length") == 0
        assert browser.run("document.querySelectorAll('.plot [data-row] title').length") == 8
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
