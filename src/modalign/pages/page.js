"use strict";
// Headings sort their table; empty keys stay last, rows of references below all others.
for (const button of document.querySelectorAll("th button[data-column]")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.children[Number(button.dataset.column)]?.dataset.key ?? "";
    const low = (row) => row.classList.contains("reference");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (low(a) !== low(b)) return low(a) - low(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = !isNaN(x) && !isNaN(y) ? Number(x) - Number(y) : x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...rows);
  });
}
// Entries are found by words and by the facets of their tags.
for (const list of document.querySelectorAll(".entries")) {
  const [search, facets] = [list.querySelector("input"), [...list.querySelectorAll("select")]];
  const entries = [...list.querySelectorAll(":scope > details")];
  const filter = () => {
    const fits = (tag) => {
      const own = JSON.parse(tag.dataset.facets);
      return facets.every((f) => !f.value || own[f.dataset.facet] === f.value);
    };
    for (const entry of entries) {
      const tags = [...entry.querySelectorAll(".tag")];
      for (const tag of tags) tag.hidden = !fits(tag);
      const found = entry.dataset.text.includes(search.value.trim().toLowerCase());
      entry.hidden = !found || tags.every((tag) => tag.hidden);
    }
    const shown = entries.filter((entry) => !entry.hidden).length;
    list.querySelector("[role=status]").textContent = `${shown} of ${entries.length}`;
  };
  for (const control of [search, ...facets]) control.addEventListener("input", filter);
  list.querySelector(".filters").hidden = false;
  filter();
}
// Dials show the outcome at their positions.
for (const card of document.querySelectorAll(".whatif")) {
  const dials = [...card.querySelectorAll("input")];
  const { values, outcomes } = JSON.parse(card.querySelector("script").textContent);
  const shown = card.querySelector("[role=status]");
  const show = () => {
    const [row, column] = dials.map((dial) => Number(dial.value));
    dials.forEach((dial, place) => {
      const text = values[place][dial.value];
      dial.setAttribute("aria-valuetext", text);
      dial.nextElementSibling.value = text;
    });
    const [name, ...sentences] = outcomes[row][column];
    shown.replaceChildren(...[name, ...sentences].map((text, place) => {
      const line = document.createElement("p");
      line.textContent = text;
      if (!place) line.className = "name";
      return line;
    }));
  };
  for (const dial of dials) dial.addEventListener("input", show);
  card.querySelector(".dials").hidden = false;
  show();
}
