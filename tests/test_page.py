"""The report's page in a browser: it draws, tells, sorts, saves, prints, and fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from made import made_bench, made_epoch, made_family, made_layer, made_profile, made_row, made_run, made_settings

from wmlc.records import Bench, Scenario
from wmlc.report.page import write_report
from wmlc.report.runs import read_bench
from wmlc.run import Run

SECTIONS = ("accuracy", "training", "weights", "widths", "layers", "scenarios", "table", "environment")
CHARTS = {
    "accuracy-over-latency", "accuracy-over-parameters", "accuracy-over-macs", "top1-curves", "loss-curves",
    "peer-weights", "widths", "layers", "server-rate", "offline-rate",
}  # fmt: skip
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


def full_bench() -> Bench:
    """Three networks in two cells, with scenarios, and a layer profile of each."""
    rows = []
    for batch in (1, 8):
        for peer, p50 in ((0, 2.0), (1, 1.1), (2, 1.6)):
            found = {
                "offline": Scenario(valid=True, samples_per_s=1000 / p50, n=100),
                "server": Scenario(valid=True, latency_bound_ms=20.0, rate_per_s=500 / p50 if peer else None,
                                   failed_rate_per_s=600 / p50, p50_ms=p50, p99_ms=19.0, n=100),
            }  # fmt: skip
            rows.append(made_row(peer, p50 * batch, (1.2, 1.3, 1.4), batch=batch, scenarios=found, top1=90.0 - peer,
                                 params=10_000 - 3_000 * peer, macs=1000 - 200 * peer))  # fmt: skip
    profiles = [
        made_profile(peer, [
            made_layer(f"stage{i}.conv", 0.1 * i / (1 + peer), macs=4096 - peer, channels=(16, 16 - peer))
            for i in range(1, 6)
        ])
        for peer in (0, 1, 2)
    ]  # fmt: skip
    return made_bench(rows, profiles=profiles)


def written(root: Path, top1: Sequence[float], bench: Bench | None) -> Run:
    settings = made_settings(top1, data="digits", epochs=3)
    epochs = [
        made_epoch(epoch, [score + epoch for score in top1], peer_weights=[0.5 - 0.1 * epoch, 0.5 + 0.1 * epoch])
        for epoch in (1, 2, 3)
    ]
    return made_run(root, settings, made_family(top1, settings=settings), epochs=epochs, bench=bench,
                    baseline_epochs=[made_epoch(epoch, [80.0 + epoch]) for epoch in (1, 2, 3)])  # fmt: skip


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with all that a page can show."""
    return written(tmp_path_factory.mktemp("runs") / "full", (80.0, 85.0), full_bench())


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
    row = read_bench(full_run).rows[1]
    latency = page.locator("[data-chart=accuracy-over-latency]")
    latency.locator(".mark-symbol.role-mark path").nth(1).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    told = tip.inner_text()
    assert (
        row.latency_ms and row.name in told and f"{row.top1:.2f} %" in told and f"{row.latency_ms.p50:.3g} ms" in told
    )
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


def test_several_runs_share_a_page(browser: Any, full_run: Run, tmp_path: Path) -> None:
    run = written(tmp_path / "run", (70.0, 75.0), None)
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
