"use strict";
// Pictures are shown by a click or a key, and hidden by the next one or by Escape. What is shown before holds no more than a few pixels.
const tiles = Array.from(document.querySelectorAll("button.tile"));
function show(tile, shown) {
  const picture = tile.querySelector("img");
  if (!picture.dataset.veiled) picture.dataset.veiled = picture.src;
  picture.src = shown ? picture.dataset.clear : picture.dataset.veiled;
  tile.setAttribute("aria-pressed", String(shown));
}
for (const tile of tiles) {
  tile.addEventListener("click", () => show(tile, tile.getAttribute("aria-pressed") !== "true"));
}
for (const button of document.querySelectorAll("button[data-all]")) {
  button.addEventListener("click", () => {
    for (const tile of button.closest("section").querySelectorAll("button.tile")) show(tile, button.dataset.all === "show");
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const tile of tiles) show(tile, false);
});
// Arrow keys move between the pictures of a grid.
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  const tile = event.target.closest && event.target.closest("button.tile");
  const step = steps[event.key];
  if (!tile || !step) return;
  const cell = tile.closest("td");
  const row = cell.parentElement.parentElement.rows[cell.parentElement.sectionRowIndex + step[0]];
  const next = row && row.cells[cell.cellIndex + step[1]];
  const target = next && next.querySelector("button.tile");
  if (target) { target.focus(); event.preventDefault(); }
});
