"use strict";
// Colours of axes and legends follow the page, in the dark and in print: SVG takes `currentColor` from CSS.
const text = { labelColor: "currentColor", titleColor: "currentColor" };
const look = {
  background: "transparent",
  axis: { ...text, gridColor: "rgba(128,128,128,0.28)", domainColor: "rgba(128,128,128,0.7)", tickColor: "rgba(128,128,128,0.7)" },
  legend: text,
  header: text,
  text: { color: "currentColor" },
  style: { halo: { fill: "var(--paper)", stroke: "var(--paper)" } }, // around text that lies on lines
};
const narrow = matchMedia("(max-width: 800px)").matches;

function adapted(spec) {
  const config = { ...spec.config };
  for (const [name, value] of Object.entries(look)) {
    config[name] = typeof value === "object" ? { ...config[name], ...value } : value;
  }
  const result = { ...spec, config };
  if (narrow && result.hconcat) {
    result.vconcat = result.hconcat;
    delete result.hconcat;
  }
  if (narrow && result.concat) result.columns = 1;
  if (narrow && result.facet && result.columns) result.columns = 2;
  if (narrow) config.legend = { ...config.legend, columns: 1, labelLimit: 260 };
  return result;
}

async function draw(script) {
  const target = document.getElementById(script.dataset.chart);
  if (target.dataset.drawn) return;
  target.dataset.drawn = "pending";
  try {
    await vegaEmbed(target, adapted(JSON.parse(script.textContent)), {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: script.dataset.chart,
      tooltip: { theme: "custom" },
    });
    target.querySelector("summary")?.setAttribute("aria-label", "Save the chart as SVG or PNG");
    target.dataset.drawn = "yes";
  } catch (error) {
    target.dataset.drawn = "failed";
    target.textContent = `This chart can't be drawn: ${error}`;
  }
}

// The charts of a closed job are drawn when it is opened.
const charts = (root) => root.querySelectorAll("script[data-chart]");
for (const script of charts(document)) {
  if (!script.closest("details:not([open])")) draw(script);
}
for (const details of document.querySelectorAll("details.job")) {
  details.addEventListener("toggle", () => details.open && charts(details).forEach(draw));
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
  });
}

for (const select of document.querySelectorAll("select[data-filter]")) {
  select.addEventListener("change", () => {
    const rows = [...document.querySelectorAll(`#${select.dataset.filter} tbody tr`)];
    for (const row of rows) row.hidden = select.value !== "" && row.dataset.label !== select.value;
    select.closest("p").querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details[data-printed]")) details.open = true;
});
