// Sorting and filtering for the tables of the ledger. Without it they are plain tables.
"use strict";

const VERDICTS = ["holds", "holds-in-part", "does-not-hold", "could-not-be-run-here"];

function verdictOf(row) {
  return VERDICTS.findIndex((name) => row.classList.contains(`verdict-${name}`));
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const last = table.tHead.rows[0].cells.length - 1;
  const key = (row) => column === 0 ? Number(row.dataset.place)
    : column === last ? verdictOf(row)
    : row.cells[column].innerText.toLowerCase();
  const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.dataset.place - b.dataset.place);
  const rows = [...body.rows].sort(order);
  body.append(...(descending ? rows.reverse() : rows));
}

function makeSortable(table) {
  const cells = [...table.tHead.rows[0].cells];
  cells.forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent.trim();
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = cell.getAttribute("aria-sort") === "ascending";
      cells.forEach((other) => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

function makeFilters(tables) {
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  const bar = document.createElement("div");
  bar.className = "ledger-filters";
  bar.innerHTML =
    '<label>Show <select><option value="">every verdict</option></select></label>' +
    '<label>with the words <input type="search"></label><output></output>';
  const [choice, words, count] = ["select", "input", "output"].map((tag) => bar.querySelector(tag));
  VERDICTS.forEach((name) => choice.append(new Option(name.replaceAll("-", " "), name)));
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (choice.value && !row.classList.contains(`verdict-${choice.value}`))
        || !wanted.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} claims`;
  };
  bar.addEventListener("input", apply);
  (tables[0].closest(".pst-scrollable-table-container") ?? tables[0]).before(bar);
  apply();
}

const tables = [...document.querySelectorAll("table.ledger")];
for (const table of tables) {
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  [...table.tBodies[0].rows].forEach((row, place) => {
    row.dataset.place = place;
    [...row.cells].forEach((cell, column) => { cell.dataset.label = names[column]; });
    for (const more of row.querySelectorAll(".ledger-more")) {
      const details = document.createElement("details");
      const summary = document.createElement("summary");
      summary.textContent = `${more.children.length} more`;
      details.append(summary);
      more.replaceWith(details);
      details.append(more);
    }
  });
  makeSortable(table);
}
if (tables.length) makeFilters(tables);
