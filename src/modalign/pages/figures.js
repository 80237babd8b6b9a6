"use strict";
const text = { labelColor: "var(--muted)", titleColor: "var(--muted)", titleFontWeight: "normal" };
const font = getComputedStyle(document.body).fontFamily;
const config = {
  background: "transparent", font, view: { stroke: null },
  axis: { ...text, gridColor: "var(--grid)", domainColor: "var(--front)", tickColor: "var(--front)",
    labelFontSize: 12, titleFontSize: 12, labelOverlap: true, labelSeparation: 6, tickCount: 6 },
  axisY: { domain: false, ticks: false }, axisX: { grid: false },
  text: { fill: "var(--ink)", fontSize: 12 },
  style: {
    points: { filled: true, size: 75, strokeWidth: 1.6, opacity: 1 },
    small: { filled: true, size: 45, strokeWidth: 1.6, opacity: 1 },
    dots: { filled: true, size: 24, opacity: 0.45 },
    parts: { height: 14 },
    lines: { strokeWidth: 2, opacity: 0.8, aria: false },
    bars: { strokeWidth: 2.2, opacity: 0.5, aria: false },
    rules: { color: "var(--muted)", strokeDash: [3, 3], strokeWidth: 1.5 },
    front: { color: "var(--front)", strokeDash: [6, 4], interpolate: "step-after", aria: false },
    band: { color: "var(--accent-soft)", opacity: 1, aria: false },
    ring: { filled: false, color: "var(--accent)", size: 360, strokeWidth: 2.5, opacity: 1, aria: false },
    labels: { aria: false },
  },
};
// Names beside points are placed by Vega's label transform, which Vega-Lite has no words for.
const patch = (spec) => {
  const labels = spec.marks.find((mark) => mark.name === "labels_marks");
  if (labels) {
    const { text: { signal } } = labels.encode.update;
    labels.from = { data: "points_marks" };
    labels.clip = true; // a label without a place must not count into the width that fits
    labels.encode.update = { text: { signal: signal.replaceAll("datum[", "datum.datum[") },
      fill: { value: "var(--ink)" }, fontSize: { value: 12 } };
    labels.transform = [{ type: "label", size: { signal: "[max(width, 1), max(height, 1)]" }, padding: 0,
      avoidMarks: spec.marks.map((mark) => mark.name).filter((name) => /^(points|bars|front)_/.test(name)), anchor: ["right", "top", "bottom", "left", "top-right",
        "bottom-right", "top-left", "bottom-left"], offset: [4, 4, 4, 4, 2, 2, 2, 2] }];
  }
  return spec;
};
// Arrow keys walk from point to point, + and - zoom, 0 shows everything again.
const walk = (host, view) => {
  const said = host.parentElement.appendChild(document.createElement("p"));
  said.className = "said";
  said.setAttribute("role", "status");
  let place = -1;
  const zoom = (factor) => {
    for (const axis of ["x", "y"]) {
      const scale = view.scale(axis);
      const name = { x: "at", y: "value" }[axis];
      if (!scale?.invert) continue; // named rows
      const log = scale.type === "log";
      const [a, b] = scale.domain().map((end) => (log ? Math.log(end) : end));
      const [middle, half] = [(a + b) / 2, ((b - a) / 2) * factor];
      const ends = [middle - half, middle + half].map((end) => (log ? Math.exp(end) : end));
      view.signal(`zoom_${name}`, factor ? ends : null);
    }
    view.runAsync();
  };
  host.addEventListener("keydown", (event) => {
    const points = [...host.querySelectorAll(":is(.points_marks, .parts_marks) [aria-label]")];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const factor = { "+": 0.5, "-": 2, 0: 0 }[event.key];
    if (factor !== undefined) zoom(factor);
    if (step && points.length) {
      for (const point of points) point.classList.remove("at");
      place = (place + step + points.length) % points.length;
      points[place].classList.add("at");
      said.textContent = points[place].getAttribute("aria-label");
    }
    if (step || factor !== undefined) event.preventDefault();
  });
};
for (const figure of document.querySelectorAll("figure")) {
  const views = [];
  const boxes = [...figure.querySelectorAll(".legend input")];
  const toggle = (view) => {
    const hidden = boxes.filter((box) => !box.checked).map((box) => box.value);
    return view.signal("hidden", hidden).runAsync();
  };
  for (const box of boxes) box.addEventListener("change", () => views.forEach(toggle));
  for (const host of figure.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(host.dataset.spec).textContent);
    const options = { actions: false, ast: true, renderer: "svg", config, patch, mode: "vega-lite" };
    vegaEmbed(host, spec, options).then(async ({ view }) => {
      host.tabIndex = 0;
      host.setAttribute("role", "application");
      host.setAttribute("aria-label", `${spec.description} Arrow keys read the points.`);
      views.push(view);
      walk(host, view);
      await toggle(view);
      document.documentElement.dataset.drawn = Number(document.documentElement.dataset.drawn ?? 0) + 1;
    });
  }
}
