/** The form, one running request, and its results. */

import { generation } from "./api.js";
import { announce, byId, element } from "./elements.js";
import { clearProblem, showProblem } from "./problems.js";
import { Card } from "./result.js";
import { counted } from "./words.js";

const KEPT = 12;
const PARTIALS = 2;

let running = null;

function numberOf(id) {
  const { value } = byId(id);
  return value === "" ? undefined : Number(value);
}

function asked() {
  return {
    model: byId("model").value || undefined,
    prompt: byId("prompt").value,
    n: numberOf("n") ?? 1,
    size: byId("size").value || undefined,
    steps: numberOf("steps"),
    seed: numberOf("seed"),
    policy: byId("policy").value || undefined,
    unguided: byId("unguided").checked || undefined,
    stream: true,
    progress: true,
    explain: true,
    partial_images: PARTIALS,
  };
}

function run(request) {
  const cards = Array.from({ length: request.n }, (_, index) => new Card(request.prompt, index, request.n));
  const section = element(
    "section",
    { class: "run" },
    element("h2", {}, element("q", {}, request.prompt)),
    element("div", { class: "cards" }, cards.map((card) => card.node)),
  );
  const results = byId("results");
  byId("nothing-yet").hidden = true;
  results.prepend(section);
  for (const old of [...results.querySelectorAll(".run")].slice(KEPT)) old.remove();
  section.scrollIntoView({ block: "nearest" });
  return cards;
}

/** A request of which nothing was begun leaves no results behind. */
function withdraw(cards) {
  cards[0].node.closest(".run").remove();
  byId("nothing-yet").hidden = byId("results").querySelector(".run") !== null;
}

/** Says a quarter at a time, and each new pass: a word for every step would drown the rest. */
function narrator() {
  let told = 0;
  let passes = 1;
  return ({ step, total, attempt = 1 }) => {
    const quarter = Math.floor((4 * step) / total);
    if (attempt > passes) {
      passes = attempt;
      told = quarter;
      announce(`Pass ${attempt} runs.`);
    } else if (quarter > told && quarter < 4) {
      told = quarter;
      announce(`${quarter * 25} % of the steps are done.`);
    }
  };
}

async function follow(request, cards, signal) {
  const narrate = narrator();
  const fates = [];
  for await (const { name, data } of generation(request, signal)) {
    const card = cards[data.index ?? 0];
    if (!card?.open) continue;
    if (name === "image_generation.progress") {
      card.step(data);
      narrate(data);
    } else if (name === "image_generation.partial_image") {
      card.partial(data);
    } else if (name === "image_generation.completed") {
      fates.push(card.finish(data));
    } else if (name === "error") {
      card.fail(data.error.message);
    }
  }
  for (const card of cards) if (card.open) card.fail("The service ended its answer before this picture was there.");
  announce(`${counted(fates.length, "picture")} finished: ${fates.join("; ")}.`);
}

function busy(state) {
  byId("start").setAttribute("aria-disabled", String(state));
  const cancel = byId("cancel");
  if (!state && document.activeElement === cancel) byId("start").focus();
  cancel.hidden = !state;
}

async function generate() {
  if (running) return;
  clearProblem();
  const request = asked();
  running = new AbortController();
  busy(true);
  announce(`Generating ${counted(request.n, "picture")}.`);
  const cards = run(request);
  try {
    await follow(request, cards, running.signal);
  } catch (error) {
    const cancelled = running.signal.aborted;
    if (error.status) withdraw(cards);
    for (const card of cards) if (card.open) card.fail(cancelled ? "Cancelled." : error.message);
    if (cancelled) announce("Cancelled.");
    else showProblem(error, () => byId("request-form").requestSubmit());
  } finally {
    running = null;
    busy(false);
  }
}

function describePolicy(policies) {
  const chosen = policies.find(({ name }) => name === byId("policy").value);
  byId("policy-description").textContent = chosen?.description ?? "";
  byId("policy-digest").textContent = chosen?.digest ?? "";
}

function describeModel(models) {
  const chosen = models.find(({ id }) => id === byId("model").value);
  byId("size").replaceChildren(...(chosen?.sizes ?? []).map((size) => element("option", {}, size)));
  byId("steps").placeholder = String(chosen?.steps ?? "");
  byId("steps").max = String(chosen?.max_steps ?? "");
}

/** Fills the form with what this caller may ask for. */
export function offer({ caller, policies, models }) {
  byId("policy").replaceChildren(...policies.map(({ name }) => element("option", { value: name }, name)));
  if (caller.default_policy) byId("policy").value = caller.default_policy;
  byId("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  byId("n").max = String(caller.limits?.pictures ?? "");
  byId("unguided-choice").hidden = !caller.operator;
  describePolicy(policies);
  describeModel(models);
  byId("policy").onchange = () => describePolicy(policies);
  byId("model").onchange = () => describeModel(models);
}

/** Makes the form work. */
export function listen() {
  byId("request-form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  byId("request-form").addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
  byId("cancel").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("request-form").requestSubmit();
  });
}
