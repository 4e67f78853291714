// Tables sort by a click on a header, and long ones filter; folded parts open for the printer.
const POWERS = { n: 1e-9, "µ": 1e-6, u: 1e-6, m: 1e-3, k: 1e3, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };
const NUMBER = /^[≈(*×\s]*([+−-]?)\s*((?:\d{1,3}(?:[,\u202f\u00a0]\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+|∞)\s*(\S*)/i;
const UNIT = /^([nµumkKMGT])(?:i?B|s|FLOPs?|FLOP\/s|MACs?|B\/s)\b/;

// The number at the beginning of a text, in SI units; NaN if there is none. What follows it, such as ± 3 %, is left out.
function numberOf(text) {
  const found = NUMBER.exec(text);
  if (!found) return NaN;
  const [, sign, digits, rest] = found;
  if (/^[×:]\d/.test(rest)) return NaN; // a size such as 3×3
  const size = digits === "∞" ? Infinity : Number(digits.replace(/[,\u202f\u00a0]/g, ""));
  const unit = UNIT.exec(rest);
  return (sign && sign !== "+" ? -1 : 1) * size * (unit ? POWERS[unit[1]] : 1);
}

// The order of two texts of a column. Texts are compared as numbers if all texts of the column begin with one.
function orderOf(texts) {
  const known = texts.filter((text) => text);
  if (known.length && known.every((text) => !Number.isNaN(numberOf(text)))) return (a, b) => numberOf(a) - numberOf(b) || 0;
  return new Intl.Collator("en", { numeric: true }).compare;
}

const textOf = (row, column) => (row.cells[column].dataset.full ?? row.cells[column].textContent).trim();

// Sort by a column: 1 is ascending, -1 is descending, 0 is the original order. Empty cells are last.
function sort(table, rows, column, direction) {
  const texts = new Map(rows.map((row) => [row, textOf(row, column)]));
  const order = orderOf([...texts.values()]);
  const compare = (a, b) => {
    const [one, other] = [texts.get(a), texts.get(b)];
    if (!one || !other) return !one - !other;
    return direction * order(one, other);
  };
  for (const row of direction ? [...rows].sort(compare) : rows) {
    const [first] = row.cells;
    if (first.dataset.full !== undefined) {
      first.dataset.nested ??= first.textContent;
      first.textContent = direction ? first.dataset.full : first.dataset.nested;
    }
    table.tBodies[0].append(row);
  }
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const word = { 1: "ascending", "-1": "descending", 0: "none" }[index === column ? direction : 0];
    head.setAttribute("aria-sort", word);
  });
}

function makeSortable(table, rows) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort: smallest first, largest first, original order";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: 1, ascending: -1, descending: 0 }[head.getAttribute("aria-sort")];
      sort(table, rows, column, next);
    });
  });
}

function makeFilterable(data, rows) {
  const size = data.querySelector(".size");
  const all = size.textContent;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "filter: words of a row";
  field.setAttribute("aria-label", `Filter the rows of the table ${data.querySelector(".table").getAttribute("aria-label")}`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((_, column) => textOf(row, column)).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    size.textContent = words.length ? `${shown} of ${all}` : all;
  });
  data.querySelector(".tools").prepend(field);
}

for (const data of document.querySelectorAll(".data")) {
  const table = data.querySelector("table");
  const rows = [...table.tBodies[0].rows];
  if (rows.length > 1) makeSortable(table, rows);
  if (data.dataset.filter) makeFilterable(data, rows);
}

// Mark the entry of the contents for the section that is being read.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const parts = [...links.keys()].map((anchor) => document.getElementById(anchor)).filter(Boolean);
function markCurrent() {
  const above = parts.filter((part) => part.getBoundingClientRect().top < 120);
  const current = above.length ? links.get(above[above.length - 1].id) : null;
  for (const link of links.values()) {
    if (link === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
document.addEventListener("scroll", () => requestAnimationFrame(markCurrent), { passive: true });
markCurrent();

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
