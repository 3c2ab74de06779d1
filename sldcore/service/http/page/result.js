/** The card of one picture: from its first step to what became of it. */

import { curvePlots } from "./curves.js";
import { element, freshId } from "./elements.js";
import { pictureStage } from "./picture.js";
import { verdictTable } from "./verdicts.js";
import { duration, figure, happened, hasPicture, objection } from "./words.js";

function fact(name, ...value) {
  return [element("dt", {}, name), element("dd", {}, ...value)];
}

function facts(entry) {
  const { safety } = entry;
  const rows = typeof safety.rows === "number" ? `${safety.rows}` : null;
  const plain = typeof safety.plain_rows === "number" ? ` (unguided: ${safety.plain_rows})` : "";
  return element(
    "dl",
    { class: "facts" },
    fact("Policy", `${safety.policy} `, element("code", {}, safety.policy_digest)),
    fact("Seed", String(entry.seed ?? "random")),
    fact("Attempts", String(safety.attempts ?? 1)),
    rows ? fact("Denoiser rows", rows + plain) : null,
    typeof safety.seconds === "number" ? fact("Time", duration(safety.seconds)) : null,
  );
}

function concepts(trace) {
  if (!trace?.length) return null;
  const heads = ["Concept", "Steps acted", "Largest norm", "Mean relevance"].map((name) => element("th", { scope: "col" }, name));
  const rows = trace.map((each) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, each.concept),
      [String(each.steps_applied), figure(each.max_norm), figure(each.mean_relevance)].map((text) => element("td", {}, text)),
    ),
  );
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows));
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "What each concept did" }, table);
}

function guidance(safety) {
  const parts = [concepts(safety.trace), curvePlots(safety.curves)].filter((part) => part !== null);
  return parts.length ? element("details", { class: "guidance" }, element("summary", {}, "What guidance did"), parts) : null;
}

function absent(words, reason) {
  return element("div", { class: "absent" }, element("h3", {}, words.heading), element("p", {}, reason || words.why));
}

function fate(words, reason) {
  return [element("h3", { class: `fate ${words.tone}` }, words.heading), element("p", {}, reason || words.why)];
}

/** A card; ``step``, ``partial``, ``finish`` and ``fail`` say how its picture fares, ``open`` whether it is still awaited. */
export class Card {
  constructor(prompt, index, count) {
    this.prompt = prompt;
    this.open = true;
    this.name = count > 1 ? `Picture ${index + 1} of ${count}` : "Picture";
    const id = freshId("picture");
    this._bar = element("progress", { id, max: 1 });
    this._label = element("label", { for: id }, `${this.name}: waiting`);
    this._stage = element("div", { class: "stage empty" });
    this.node = element("article", { class: "card waiting", "aria-label": this.name, "aria-busy": "true" }, this._stage, this._label, this._bar);
  }

  step({ step, total, attempt = 1 }) {
    this._bar.max = total;
    this._bar.value = step;
    const again = attempt > 1 ? `, pass ${attempt}` : ""; // another attempt, or the unguided picture
    this._label.textContent = `${this.name}: step ${step} of ${total}${again}`;
  }

  partial({ b64_json: b64 }) {
    const alt = `${this.name}, not finished`;
    this._stage.replaceChildren(element("img", { src: `data:image/png;base64,${b64}`, alt, class: "unfinished" }));
  }

  finish(entry) {
    const { safety } = entry;
    const words = happened(safety);
    const alt = `${this.name} for the prompt: ${this.prompt}`;
    const shown = hasPicture(entry);
    const looking = shown
      ? pictureStage({ picture: entry.b64_json, alt, heat: safety.heat_b64, unguided: safety.unguided_b64, objection: objection(safety) })
      : absent(words, safety.reason);
    this._close(
      looking,
      shown ? fate(words, safety.reason) : null,
      facts(entry),
      verdictTable(safety.verdicts),
    );
    this.node.append(...[guidance(safety)].filter((part) => part !== null));
    return words.heading;
  }

  fail(message) {
    this._close(absent({ heading: "No picture" }, message));
  }

  _close(looking, ...details) {
    this.open = false;
    this.node.classList.remove("waiting");
    this.node.removeAttribute("aria-busy");
    const about = element("div", { class: "about" }, details);
    this.node.replaceChildren(details.length ? element("div", { class: "sides" }, looking, about) : looking);
  }
}
