/** What the filters said of a picture, as a table: one group of rows for each filter. */

import { element, scrollable } from "./elements.js";
import { duration, figure, score as scored } from "./words.js";

function outcome(verdict) {
  if (!verdict.flagged) return "not flagged";
  return verdict.shadow ? "flagged (shadow: recorded only)" : "flagged";
}

function row(category, score, threshold) {
  const above = typeof threshold === "number" && score >= threshold;
  return element(
    "tr",
    { class: above ? "above" : null },
    element("th", { scope: "row" }, category),
    element("td", {}, scored(score)),
    element("td", {}, figure(threshold)),
    element("td", {}, above ? "reached" : typeof threshold === "number" ? "below" : "–"),
  );
}

function group(verdict) {
  const title = `${verdict.filter} ${verdict.version ?? ""}`.trim();
  const rows = Object.entries(verdict.scores ?? {}).map(([name, score]) => row(name, score, verdict.thresholds?.[name]));
  const reason = verdict.reason ? element("tr", {}, element("td", { colspan: 4, class: "reason" }, verdict.reason)) : null;
  return element(
    "tbody",
    {},
    element(
      "tr",
      { class: "filter" },
      element(
        "th",
        { scope: "rowgroup", colspan: 4 },
        `${title} · `,
        element("span", { class: verdict.flagged ? "outcome flagged" : "outcome" }, outcome(verdict)),
        element("span", { class: "seconds" }, ` · ${duration(verdict.seconds)}`),
      ),
    ),
    reason,
    rows,
  );
}

/** The table, or a sentence where no filter looked. */
export function verdictTable(verdicts) {
  if (!verdicts?.length) return element("p", { class: "note" }, "No filter gave a verdict.");
  const heads = ["Category", "Score", "Threshold", "Result"].map((name) => element("th", { scope: "col" }, name));
  const table = element(
    "table",
    { class: "verdicts" },
    element("caption", {}, "Verdicts of the filters"),
    element("thead", {}, element("tr", {}, heads)),
    verdicts.map(group),
  );
  return scrollable("Verdicts of the filters", table);
}
