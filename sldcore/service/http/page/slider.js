/** The handle of a before/after picture: a range input, so that keyboard, touch and screen readers have it for nothing. */

import { element, freshId } from "./elements.js";

/** A labelled range that sets ``--split`` of the stage: how much of it, from the left, the unguided picture covers. */
export function slider(stage) {
  const id = freshId("split");
  const range = element("input", { type: "range", id, min: 0, max: 100, step: 1, value: 50, class: "split" });
  const apply = () => {
    stage.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % unguided, ${100 - range.value} % guided`);
  };
  range.addEventListener("input", apply);
  apply();
  const ends = element("p", { class: "ends note", "aria-hidden": "true" }, element("span", {}, "Unguided"), element("span", {}, "Guided"));
  return element("div", { class: "slider" }, ends, element("label", { for: id, class: "unseen" }, "Share of the unguided picture"), range);
}
