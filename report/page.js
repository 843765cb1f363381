"use strict";

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const PAPER = 700; // pixels that a chart is wide in print

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 40rem)");
const { themes, shapes, charts } = JSON.parse(document.getElementById("drawn").textContent);
const figures = [...document.querySelectorAll("figure[data-chart]")];
const views = new Map();
let queue = Promise.resolve(); // one drawing after another

function theme(colours, columns) {
  return {
    background: colours.page,
    padding: { left: 4, top: 4, right: 14, bottom: 4 },
    font: FONT,
    view: { stroke: null },
    range: { category: [colours.baseline, ...colours.networks], symbol: shapes },
    title: { color: colours.ink, subtitleColor: colours.quiet, font: FONT, subtitleFont: FONT, fontSize: 14, fontWeight: 600 },
    text: { color: colours.ink, font: FONT },
    rule: { color: colours.ink },
    axis: {
      labelColor: colours.quiet, titleColor: colours.quiet, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400,
      gridColor: colours.grid, domainColor: colours.grid, tickColor: colours.grid, labelFont: FONT, titleFont: FONT,
    },
    axisX: { grid: false, labelFlush: false, labelOverlap: true, labelSeparation: 8 },
    legend: {
      orient: "top", direction: "horizontal", columns, labelColor: colours.ink, labelFontSize: 12, symbolSize: 90,
      labelFont: FONT, offset: 8, labelLimit: 220,
    },
  };
}

function chosen(figure) {
  const select = figure.querySelector("select");
  return charts[figure.dataset.chart][select ? Number(select.value) : 0];
}

function embed(place, spec, config) {
  return window.vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config });
}

async function draw(figure) {
  views.get(figure)?.finalize();
  const columns = narrow.matches ? 3 : 0;
  const result = await embed(figure.querySelector(".plot"), chosen(figure).spec, theme(dark.matches ? themes.dark : themes.light, columns));
  views.set(figure, result);
}

// A chart as it is printed and saved: light, titled, as wide as paper.
async function onPaper(figure) {
  const { label, spec } = chosen(figure);
  const width = figure.classList.contains("wide") ? 1.2 * PAPER : PAPER;
  const title = { text: figure.querySelector("h3").textContent, subtitle: label, anchor: "start", offset: 12 };
  const size = { width, autosize: { type: "fit-x", contains: "padding" } };
  return embed(document.createElement("div"), { ...spec, ...size, title }, theme(themes.light, 0));
}

// Made beforehand, because printing waits for nobody.
async function drawPrint(figure) {
  const result = await onPaper(figure);
  const svg = await result.view.toSVG();
  figure.querySelector("img.print").src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  result.finalize();
}

async function drawAll() {
  document.documentElement.removeAttribute("data-drawn");
  for (const figure of figures) await draw(figure);
  document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
}

async function save(figure, kind) {
  const result = await onPaper(figure);
  const link = document.createElement("a");
  link.href = await result.view.toImageURL(kind, kind === "png" ? 2 : 1);
  link.download = `${figure.dataset.chart}.${kind}`;
  link.click();
  result.finalize();
}

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [row.cells[column].dataset.sort, row]);
  const numeric = keyed.every(([key]) => key === "" || !Number.isNaN(Number(key)));
  keyed.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured stays below
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
    return up ? order : -order;
  });
  body.append(...keyed.map(([, row]) => row));
}

function later(work) {
  queue = queue.then(work).catch(console.error); // what one chart throws stops no other
}

for (const figure of figures) {
  for (const button of figure.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => save(figure, button.dataset.save));
  }
  figure.querySelector("select")?.addEventListener("change", () => {
    later(() => draw(figure));
    later(() => drawPrint(figure));
  });
}
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
dark.addEventListener("change", () => later(drawAll));
narrow.addEventListener("change", () => later(drawAll));

later(drawAll);
for (const figure of figures) later(() => drawPrint(figure));
later(() => {
  document.documentElement.dataset.ready = "yes";
});
