/** The audit, for operators: what was done with which request, the newest first. */

import { read } from "./api.js";
import { announce, byId, element } from "./elements.js";
import { clearProblem, showProblem } from "./problems.js";
import { counted, score as scored } from "./words.js";

const PAGE = 25;
const ACTIONS = ["none", "flag", "black", "blur", "pixelate", "replace", "drop", "block", "failed", "refused"];

const KINDS = { image: "picture", review: "review" };

let next = null;

function verdictWords({ verdicts, failed }) {
  if (failed) return [element("span", {}, failed.message)];
  if (!verdicts?.length) return ["none"];
  return verdicts.map((verdict) => {
    const top = Object.entries(verdict.scores ?? {}).sort(([, a], [, b]) => b - a)[0];
    const highest = top ? ` (${top[0]} ${scored(top[1])})` : "";
    return element("span", { class: verdict.flagged ? "verdict flagged" : "verdict" }, `${verdict.filter}: ${verdict.flagged ? "flagged" : "passed"}${highest}`);
  });
}

function cell(name, ...content) {
  return element("td", { role: "cell", "data-name": name }, ...content);
}

function row(record) {
  const time = new Date(record.time);
  return element(
    "tr",
    { role: "row" },
    cell("Time", element("time", { datetime: time.toISOString() }, time.toLocaleString())),
    cell("Kind", KINDS[record.kind] ?? record.kind),
    cell("Action", element("span", { class: `act act-${record.action}` }, record.action)),
    cell("Policy", record.policy ?? "–"),
    cell("Key", record.key ?? "–"),
    cell("Verdicts", ...verdictWords(record)),
    cell("Hash", element("code", {}, record.prompt_sha256 ?? record.picture_sha256 ?? "–")),
  );
}

async function load(more) {
  clearProblem();
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (byId("action-filter").value) query.set("action", byId("action-filter").value);
  if (more && next !== null) query.set("before", String(next));
  try {
    const page = await read(`/v1/audit?${query}`);
    const rows = page.data.map(row);
    if (more) byId("record-rows").append(...rows);
    else byId("record-rows").replaceChildren(...rows);
    next = page.next_before ?? null;
    byId("older-records").hidden = next === null;
    byId("no-records").hidden = byId("record-rows").childElementCount > 0;
    announce(`${counted(rows.length, "record")} loaded.`);
  } catch (error) {
    showProblem(error, () => load(more));
  }
}

/** Loads the newest records. */
export function showHistory() {
  return load(false);
}

/** Makes the view work. */
export function listen() {
  byId("action-filter").append(element("option", { value: "" }, "all"), ...ACTIONS.map((name) => element("option", { value: name }, name)));
  byId("action-filter").addEventListener("change", () => load(false));
  byId("refresh-history").addEventListener("click", () => load(false));
  byId("older-records").addEventListener("click", () => load(true));
}
