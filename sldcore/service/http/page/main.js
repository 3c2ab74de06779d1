/** Starts the page: who asks, what they may ask for, and which view is shown. */

import { apiKey, read } from "./api.js";
import { byId } from "./elements.js";
import * as generating from "./generate.js";
import * as history from "./history.js";
import { clearProblem, showProblem } from "./problems.js";

let operator = false;

function showView() {
  const view = operator && location.hash === "#history" ? "history" : "generate";
  for (const name of ["generate", "history"]) byId(name).hidden = name !== view;
  for (const link of byId("views").children) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "history") history.showHistory();
}

function askForKey() {
  for (const name of ["generate", "history", "views", "caller"]) byId(name).hidden = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function start() {
  clearProblem();
  try {
    const caller = await read("/v1/me");
    const [policies, models] = await Promise.all([read("/v1/policies"), read("/v1/models")]);
    generating.offer({ caller, policies: policies.data, models: models.data });
    operator = caller.operator;
    byId("key-form").hidden = true;
    byId("views").hidden = !operator;
    byId("caller").hidden = !apiKey.get();
    byId("caller-name").textContent = apiKey.get() ? `Key: ${caller.id}` : "";
    showView();
  } catch (error) {
    const tried = apiKey.get() !== null;
    if (error.status !== 401) showProblem(error, start);
    else {
      apiKey.forget();
      askForKey();
      if (tried) showProblem(error);
    }
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key").value = "";
  start();
});
byId("forget-key").addEventListener("click", () => {
  apiKey.forget();
  location.reload();
});
window.addEventListener("hashchange", showView);
generating.listen();
history.listen();
start();
