/** A picture on its stage: veiled while it should be, with its heat map and its unguided counterpart where there are such. */

import { element, freshId } from "./elements.js";
import { slider } from "./slider.js";

const SMALL = 200;

function image(b64, alt) {
  const picture = element("img", { src: `data:image/png;base64,${b64}`, alt });
  picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth < SMALL), { once: true });
  return picture;
}

/** A button that unblurs a layer, and blurs it again. */
function veilOf(layer, what, place) {
  layer.classList.add("veiled");
  const button = element("button", { type: "button", class: `veil ${place}`, "aria-pressed": "false" }, `Unblur ${what}`);
  button.addEventListener("click", () => {
    const veiled = layer.classList.toggle("veiled");
    button.setAttribute("aria-pressed", String(!veiled));
  });
  return button;
}

function choices(names, select) {
  const group = freshId("view");
  const options = names.map(([value, text], place) => {
    const id = `${group}-${value}`;
    const radio = element("input", { type: "radio", name: group, id, value, checked: place === 0, change: () => select(value) });
    return element("span", {}, radio, element("label", { for: id }, text));
  });
  return element("fieldset", { class: "choices" }, element("legend", { class: "unseen" }, "What to look at"), options);
}

/**
 * The stage of one picture.
 *
 * ``heat`` and ``unguided`` are PNGs in base64, or missing. ``objection`` says what picture and heat map are, if they
 * are to be blurred at first; an unguided picture always is.
 */
export function pictureStage({ picture, alt, heat, unguided, objection }) {
  const plain = image(picture, alt);
  const warm = heat ? image(heat, `Heat map: where guidance acted. ${alt}`) : null;
  const guided = element("div", { class: "layer" }, plain, warm);
  const stage = element("div", { class: "stage" }, guided);
  const other = unguided ? element("div", { class: "layer unguided" }, image(unguided, `Unguided. ${alt}`)) : null;
  if (other) stage.append(other, veilOf(other, "unguided", "left"));
  if (objection) stage.append(veilOf(guided, objection, "right"));
  const handle = other ? slider(stage) : null;

  const show = (view) => {
    stage.dataset.view = view;
    plain.hidden = view === "heat";
    if (warm) warm.hidden = view !== "heat";
    for (const part of [other, handle, stage.querySelector(".veil.left")]) if (part) part.hidden = view !== "compare";
  };
  show("picture");
  const views = [["picture", "Picture"], ...(warm ? [["heat", "Heat map"]] : []), ...(other ? [["compare", "Before and after"]] : [])];
  return element("div", { class: "looking" }, stage, handle, views.length > 1 ? choices(views, show) : null);
}
