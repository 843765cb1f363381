"""What the report promises: an honest headline, nothing unescaped, nothing missing without a word, a page that works."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wmlc.errors import InputError
from wmlc.files import write_json
from wmlc.report.charts import accuracy_chart, line_chart
from wmlc.report.page import make_page, script_json, write_report
from wmlc.report.sections import all_notes, all_sections
from wmlc.report.series import latency_points, layer_rows, pareto_front, profile_pairs, size_points, width_bars
from wmlc.report.summary import Report, all_cells, cell_words, headline, read_reports
from wmlc.report.tables import all_rows, row_table, scenario_table
from wmlc.run import Run

SECTIONS = ("accuracy", "training", "weights", "widths", "layers", "scenarios", "table", "environment")
CHARTS = {
    "accuracy-over-latency", "accuracy-over-parameters", "accuracy-over-macs", "top1-curves", "loss-curves",
    "peer-weights", "widths", "layers", "server-rate", "offline-rate",
}  # fmt: skip
NASTY = "</script><img src=x onerror=alert(1)>&\"'"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


def make_report(
    top1: dict[int, float], speedups: dict[int, tuple[float, float, float]] | None, **changes: Any
) -> Report:
    """A run of two pruned peers and a whole one; `top1` by peer, 0 being the baseline; `speedups` None: no bench."""
    params, ratios = {0: 1000, 1: 300, 2: 600, 3: 1000}, {0: 0.0, 1: 0.7, 2: 0.4, 3: 0.0}
    networks = {
        peer: {"peer": peer, "ratio": ratios[peer], "achieved_ratio": ratios[peer], "params": params[peer],
               "macs": 10 * params[peer], "top1": top1[peer], "stage_channels": {"stem": [8], "stage1": [8, 4]}}
        for peer in top1
    }  # fmt: skip
    rows = [
        {**networks[peer], "name": f"peer{peer}" if peer else "baseline", "engine": "ort", "precision": "fp32",
         "threads": 1, "batch": 1, "top1_drop": top1.get(0, 0) - top1[peer], "notes": [],
         "latency_ms": {"p50": 2.0 - 0.5 * ratios[peer], "p90": 3.0, "p99": 4.0, "mean": 2.0, "n": 100},
         "speedup": dict(zip(("low", "median", "high"), (speedups or {}).get(peer, (1.0, 1.0, 1.0)), strict=True))}
        for peer in networks
    ]  # fmt: skip
    family = {
        "arch": "resnet20", "data": {"name": "digits"}, "peers": [n for p, n in networks.items() if p],
        "baseline": networks.get(0), "finished": True,
    }  # fmt: skip
    bench = None if speedups is None else {"rows": rows, "environment": {"cpu": "a CPU"}}
    plain = Report(
        name="run", root=Path("runs/run"), family=family, config={"settings": {}}, epochs=[], baseline_epochs=[],
        bench=bench,
    )  # fmt: skip
    return Report(**{**vars(plain), **changes})


SCORES = {0: 90.0, 1: 85.0, 2: 89.5, 3: 90.2}


def test_headline_names_the_smallest_peer_within_a_point_and_its_speed_up() -> None:
    assert headline(make_report(SCORES, {2: (1.2, 1.3, 1.4)})).replace("\u00a0", " ") == (
        "One training run of resnet20 on digits gave 3 networks of 300 to 1k parameters. Peer 2, with 40 % fewer "
        "parameters, is the smallest within a point of the baseline (top-1 89.50 % against 90.00 %), and 1.30 times "
        "as fast (95 % interval 1.20 to 1.40; ONNX Runtime, 1 thread, batch 1)."
    )
    assert "Peer 1, with 70" in headline(make_report({**SCORES, 1: 89.0}, {})), "a whole point is within a point"


def test_headline_says_when_a_peer_is_not_faster() -> None:
    assert "It is not faster but slower: 0.90 times as fast" in headline(make_report(SCORES, {2: (0.8, 0.9, 0.95)}))
    assert "It is not shown to be faster: 1.01 times" in headline(make_report(SCORES, {2: (0.99, 1.01, 1.05)}))


def test_headline_says_by_how_much_every_peer_misses() -> None:
    said = headline(make_report({**SCORES, 2: 87.5}, {2: (1.2, 1.3, 1.4)})).replace("\u00a0", " ")
    assert "No pruned peer is within a point of the baseline: the nearest is peer 2, 2.50 points below" in said
    assert "misses the point by 1.50. It is 1.30 times as fast" in said


def test_headline_says_what_is_missing_and_the_command_that_makes_it() -> None:
    assert "Nothing was timed yet: 'wmlc bench --run runs/run' measures" in headline(make_report(SCORES, None))
    alone = make_report({peer: top1 for peer, top1 in SCORES.items() if peer}, None)
    assert "There is no baseline" in headline(alone) and "'wmlc train' without --no-baseline" in headline(alone)
    assert "None of them is pruned" in headline(make_report({0: 90.0, 3: 90.2}, {}))
    untimed = make_report(SCORES, {})
    assert untimed.bench is not None
    untimed.bench["rows"][2] |= {"speedup": None, "notes": ["times not measured: it crashed"]}
    assert "Its speed-up was not measured: times not measured: it crashed." in headline(untimed)
    untimed.bench["rows"].pop(2)
    assert "The bench has no times of it" in headline(untimed)


def test_headline_takes_the_training_s_accuracy_where_the_engine_s_was_not_measured() -> None:
    report = make_report(SCORES, {2: (1.2, 1.3, 1.4)})
    assert report.bench is not None
    for row in report.bench["rows"]:
        row["top1"] = None
    assert "Peer 2" in headline(report)


def test_front_holds_what_no_other_point_beats() -> None:
    points = [
        {"p50": p50, "top1": top1} for p50, top1 in ((1.0, 70.0), (2.0, 69.0), (2.0, 75.0), (3.0, 75.0), (4.0, 80.0))
    ]
    assert pareto_front(points, "p50") == [points[0], points[2], points[4]]


def test_networks_without_a_number_are_no_points() -> None:
    report = make_report(SCORES, {})
    assert report.bench is not None
    report.bench["rows"][1]["top1"] = None
    report.bench["rows"][2]["latency_ms"] = None
    assert [p["network"] for p in latency_points([report], ("ort", 1, 1))] == ["baseline", "peer3"]
    assert [p["network"] for p in size_points([report])] == ["baseline", "peer2", "peer3"]
    assert [p["label"] for p in size_points([make_report(SCORES, None)])] == ["baseline", "peer1", "peer2", "peer3"]


def test_an_older_bench_has_its_threads_in_the_settings() -> None:
    report = make_report(SCORES, {})
    assert report.bench is not None
    report = make_report(SCORES, {}, bench={"settings": {"threads": 2}, "rows": [
        {key: value for key, value in row.items() if key != "threads"} for row in report.bench["rows"]
    ]})  # fmt: skip
    assert [cell_words(cell) for cell in all_cells(report.rows)] == ["ONNX Runtime, 2 threads, batch 1"]


def test_layers_stand_side_by_side_and_the_slow_ones_are_marked() -> None:
    def profile(peer: int, times: dict[str, float], channels: int) -> dict[str, Any]:
        layers = [
            {"layer": name, "op": "Conv", "ms": ms, "channels": [8, 8 if name == "stem" else channels],
             "macs": 64 if name == "stem" else 8 * channels, "bytes": 10, "intensity": 2.0}
            for name, ms in times.items()
        ]  # fmt: skip
        return {"engine": "ort", "threads": 1, "batch": 1, "peer": peer, "name": f"peer{peer}", "layers": layers}

    whole = profile(0, {"stem": 1.0, "a": 1.0, "b": 1.0}, 8)
    cut = profile(1, {"stem": 1.1, "a": 0.5, "b": 0.99}, 4)
    rows = layer_rows(whole, cut)
    assert [row["speed"] for row in rows] == ["△ 0.91×", "2.00×", "▲ 1.01×"]
    assert [row["no_faster"] for row in rows] == [False, False, True]
    assert (rows[0]["channels"], rows[1]["channels"], rows[1]["macs"]) == ("8→8", "8→8 | 8→4", "64 | 32")
    report = make_report(SCORES, {}, bench={"rows": [], "profiles": [whole, cut]})
    assert [words for words, _, _ in profile_pairs(report)] == ["peer1, ONNX Runtime, 1 thread, batch 1"]


def test_charts_are_plain_records_without_a_network() -> None:
    points = size_points([make_report(SCORES, {})])
    chart = accuracy_chart(points, "params", "parameters", ["baseline", "peer1", "peer2", "peer3"], "network")
    assert [p["network"] for p in chart["data"]["values"]] == ["baseline", "peer1", "peer2", "peer3"]
    assert chart["layer"][0]["data"]["values"] == [{"params": p["params"], "top1": p["top1"]} for p in points[1:]]
    lines = line_chart({"a": [(1, 0.5)], "b": [(1, 0.25), (2, 0.75)]}, ["a", "b"], "ω", ".2f", level=0.5)
    assert lines["layer"][2]["data"]["values"] == [{"epoch": 1, "n0": 0.5, "n1": 0.25}, {"epoch": 2, "n1": 0.75}]
    assert "url" not in json.dumps([chart, lines])
    assert width_bars(make_report(SCORES, None))[1] == {
        "stage": "stage1", "who": "baseline", "number": "b", "mean": 6.0, "least": 4, "most": 8, "layers": "8, 4",
    }  # fmt: skip


def test_tables_leave_out_what_no_row_has() -> None:
    rows = all_rows([make_report(SCORES, {})])
    html = row_table(rows, several=False)
    assert html.count("<tr>") == 1 + len(rows) and "paid out" not in html and ">run<" not in html
    assert ">run<" in row_table(rows, several=True)
    assert scenario_table(rows, several=False) == ""
    rows[0]["scenarios"] = {"server": {"latency_bound_ms": 5.0, "rate_per_s": None, "failed_rate_per_s": 10.0}}
    rows[1]["scenarios"] = {"offline": {"samples_per_s": 1234.0, "n": 3, "valid": False}}
    shown = scenario_table(rows, several=False)
    assert ">none<" in shown and ">1,234*<" in shown and "single stream" not in shown


def test_notes_are_told_once() -> None:
    report = make_report(SCORES, {})
    assert report.bench is not None
    report.bench["notes"] = ["the machine was busy"]
    for row in report.bench["rows"]:
        row["notes"] = ["p99 is weak", *(["slow"] if row["peer"] == 1 else [])]
    assert all_notes(report, several=False) == ["the machine was busy", "all: p99 is weak", "peer1: slow"]


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    words = {section.key: " ".join(section.words) for section in all_sections([make_report(SCORES, None)])}
    assert "'wmlc bench --run runs/run' measures latency" in words["accuracy"]
    assert "has no runs/run/metrics.jsonl" in words["training"] and "metrics.jsonl" in words["weights"]
    assert "'wmlc bench --run runs/run --profile' makes one" in words["layers"]
    assert "'wmlc bench --scenario" in words["scenarios"]


def test_nothing_in_a_record_can_leave_its_place() -> None:
    assert json.loads(script_json({"a": NASTY})) == {"a": NASTY}
    assert not set("<>&") & set(script_json({"a": NASTY}))
    report = make_report(SCORES, {}, name=NASTY, config={"settings": {"data_root": NASTY}, "command": NASTY})
    assert report.bench is not None
    for row in report.bench["rows"]:
        row["notes"] = [NASTY]
    report.bench["rows"][1]["name"] = NASTY
    page = make_page([report])
    scripts = re.findall(r"<script.*?</script>", page, re.DOTALL)
    assert len(scripts) == 3 and page.count("</script") == 3
    assert "<img src=x" not in page
    assert "default-src 'none'" in page and "unsafe-eval" not in page


def test_a_report_is_not_overwritten_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_report([Run(tmp_path)], out, force=False)
    with pytest.raises(InputError, match="is not finished"):
        write_report([Run(tmp_path)], out, force=True)
    assert out.read_text() == "mine"
    empty = tmp_path / "directory"
    empty.mkdir()
    with pytest.raises(InputError, match="is a directory"):
        write_report([Run(tmp_path)], empty, force=True)


def test_a_damaged_bench_is_refused(tmp_path: Path, run: Run) -> None:
    damaged = Run(tmp_path / "run")
    damaged.root.mkdir()
    for file in (run.family, run.config):
        shutil.copy(file, damaged.root)
    assert read_reports([damaged])[0].bench is None
    write_json(damaged.bench, {"rows": [1]})
    with pytest.raises(InputError, match="holds no rows; bench again with 'wmlc bench --run"):
        read_reports([damaged])
    with pytest.raises(InputError, match="named once"):
        read_reports([run, run])


@pytest.fixture(scope="module")
def full_run(benched_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of `benched_run` whose bench has a second cell, scenarios, and a layer profile of every network."""
    full = Run(tmp_path_factory.mktemp("full") / "full")
    shutil.copytree(benched_run.root, full.root)
    bench = json.loads(full.bench.read_text())
    bench["rows"] += [{**copy.deepcopy(row), "batch": 8} for row in bench["rows"]]
    for row in bench["rows"]:
        row["latency_ms"]["p50"] *= row["batch"]
        p50 = row["latency_ms"]["p50"]
        row["p50_interval"] = {"low": 0.9 * p50, "high": 1.1 * p50}
        row["scenarios"] = {
            "offline": {"samples_per_s": 1000 / p50, "n": 100, "valid": True},
            "server": {"latency_bound_ms": 20.0, "rate_per_s": 500 / p50 if row["peer"] else None,
                       "failed_rate_per_s": 600 / p50, "p50_ms": p50, "p99_ms": 19.0, "n": 100},
        }  # fmt: skip
    bench["profiles"] = [
        {"engine": "ort", "threads": bench["rows"][0].get("threads", 1), "batch": 1, "peer": peer, "precision": "fp32",
         "name": f"peer{peer}" if peer else "baseline", "layers": [
             {"layer": f"stage{i}.conv", "op": "Conv", "ms": 0.1 * i / (1 + peer), "channels": [16, 16 - peer],
              "macs": 4096 - peer, "bytes": 100, "intensity": 8.0} for i in range(1, 6)]}
        for peer in (0, 1, 2)
    ]  # fmt: skip
    write_json(full.bench, bench)
    return full


@pytest.fixture(scope="module")
def report_file(full_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report([full_run], out, force=False)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield chromium
        chromium.close()


def open_page(browser: Any, file: Path, **how: Any) -> tuple[Any, list[str]]:
    """The page once all its charts are drawn, and a list of what went wrong in it, filled as it happens."""
    page = browser.new_context(viewport={"width": how.pop("width", 1280), "height": 900}, **how).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.context.on(
        "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
    )
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", timeout=120_000)
    return page, wrong


@pytest.fixture(scope="module")
def opened(browser: Any, report_file: Path) -> Iterator[tuple[Any, list[str]]]:
    page, wrong = open_page(browser, report_file, color_scheme="light")
    yield page, wrong
    assert wrong == []
    page.context.close()


def test_every_section_draws(opened: tuple[Any, list[str]]) -> None:
    page, wrong = opened
    assert page.eval_on_selector_all("section", "all => all.map(one => one.id)") == list(SECTIONS)
    drawn = page.eval_on_selector_all(
        "figure[data-chart]",
        "all => all.map(one => [one.dataset.chart, one.querySelectorAll('.plot svg .role-mark > *').length])",
    )
    assert {name for name, _ in drawn} == CHARTS
    assert all(marks > 0 for _, marks in drawn), drawn
    assert "One training run of resnet20 on digits gave 2 networks" in page.inner_text("h1")
    assert "benched with" in page.inner_text("#environment")
    assert wrong == []


def test_hovering_tells_the_numbers(opened: tuple[Any, list[str]], full_run: Run) -> None:
    page, _ = opened
    row = read_reports([full_run])[0].rows[1]
    latency = page.locator("[data-chart=accuracy-over-latency]")
    latency.locator(".mark-symbol.role-mark path").nth(1).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    told = tip.inner_text()
    assert row["name"] in told and f"{row['top1']:.2f} %" in told and f"{row['latency_ms']['p50']:.3g} ms" in told
    page.locator("[data-chart=peer-weights] .plot").scroll_into_view_if_needed()
    box = page.locator("[data-chart=peer-weights] .plot").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_function("document.querySelector('#vg-tooltip-element').textContent.includes('epoch')")
    assert "peer1" in tip.inner_text() and "peer2" in tip.inner_text()


def test_a_drop_down_changes_the_cell(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    figure = page.locator("[data-chart=accuracy-over-latency]")
    before = figure.locator(".plot").inner_html()
    options = figure.locator("option").all_inner_texts()
    assert [option.rsplit(", ", 1)[1] for option in options] == ["batch 1", "batch 8"]
    figure.locator("select").select_option(index=1)
    page.wait_for_function(
        "before => document.querySelector('[data-chart=accuracy-over-latency] .plot').innerHTML !== before", arg=before
    )
    figure.locator(".mark-symbol.role-mark path").first.wait_for()


@pytest.mark.parametrize("press", ["click", "Enter"])
def test_headers_sort_the_table(opened: tuple[Any, list[str]], press: str) -> None:
    page, _ = opened
    header = page.locator("#table th", has_text="p50, ms")
    column = page.eval_on_selector_all("#table th", "all => all.findIndex(one => one.innerText.includes('p50, ms'))")
    orders = []
    for _ in range(2):
        header.locator("button").click() if press == "click" else header.locator("button").press("Enter")
        cells = page.locator(f"#table tbody td:nth-child({column + 1})").all_inner_texts()
        orders.append((header.get_attribute("aria-sort"), [float(cell.replace(",", "")) for cell in cells]))
    up, down = dict(orders)["ascending"], dict(orders)["descending"]
    assert up == sorted(up) and down == sorted(up, reverse=True) and len(set(up)) > 1
    assert page.locator("#table th[aria-sort=none]").count() == page.locator("#table th").count() - 1


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_chart_is_saved_as_a_file(opened: tuple[Any, list[str]], kind: str, start: bytes) -> None:
    page, _ = opened
    assert page.locator(f"figure [data-save={kind}]").count() == len(CHARTS)
    with page.expect_download() as waiting:
        page.locator(f"[data-chart=layers] [data-save={kind}]").click()
    assert waiting.value.suggested_filename == f"layers.{kind}"
    assert Path(waiting.value.path()).read_bytes().startswith(start)


def test_a_phone_has_no_sideways_scroll(browser: Any, report_file: Path) -> None:
    page, wrong = open_page(browser, report_file, width=375)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator(".plot svg").count() == len(CHARTS) and wrong == []
    page.context.close()


def test_dark_is_dark_and_paper_is_white(browser: Any, report_file: Path) -> None:
    page, wrong = open_page(browser, report_file, color_scheme="dark")
    first = page.locator("figure[data-chart]").first
    assert page.get_attribute("html", "data-drawn") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert "rgb(21, 24, 28)" in first.locator(".plot svg").get_attribute("style")
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-drawn=light]")
    assert "rgb(255, 255, 255)" in first.locator(".plot svg").get_attribute("style")
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not first.locator(".plot").is_visible() and first.locator("img.print").is_visible()
    assert first.locator("img.print").evaluate("image => image.naturalWidth") >= 700
    assert wrong == []
    page.context.close()


def test_several_runs_share_a_page(browser: Any, full_run: Run, run: Run, tmp_path: Path) -> None:
    write_report([full_run, run], tmp_path / "two.html", force=False)
    page, wrong = open_page(browser, tmp_path / "two.html")
    assert page.inner_text("h1") == "2 runs compared"
    assert page.locator(".headlines dt").all_inner_texts() == ["full", "run"]
    assert "run was not benched yet" in page.inner_text("#accuracy")
    assert page.locator("[data-chart=accuracy-over-parameters] .role-legend-label text").all_text_contents() == [
        "full",
        "run",
    ]
    assert page.locator("figure[data-chart^=widths]").count() == 2
    assert {*page.locator("#table tbody td:first-child").all_inner_texts()} == {"full", "run"}
    assert wrong == []
    page.context.close()
