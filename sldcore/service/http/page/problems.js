/** One place for what went wrong, with the time until it is worth trying again. */

import { byId, element } from "./elements.js";

let countdown = 0;

/** Takes the message away. */
export function clearProblem() {
  clearInterval(countdown);
  byId("problem").replaceChildren();
}

/** Shows an error; with ``again``, a button that does it again, once the service has said that it may be tried. */
export function showProblem(error, again = null) {
  clearProblem();
  const box = element("div", { class: "problem" }, element("p", {}, error.message));
  if (again) box.append(retry(error.retryAfter ?? 0, again));
  byId("problem").append(box);
  box.scrollIntoView({ block: "nearest" });
}

function retry(seconds, again) {
  const button = element("button", { type: "button", click: again, disabled: seconds > 0 }, "Try again");
  const left = element("span", { role: "timer", class: "note" });
  let remaining = seconds;
  const say = () => {
    left.textContent = remaining > 0 ? `possible in ${remaining} s` : "";
    button.disabled = remaining > 0;
    if (remaining <= 0) clearInterval(countdown);
  };
  countdown = setInterval(() => {
    remaining -= 1;
    say();
  }, 1000);
  say();
  return element("div", { class: "row" }, button, left);
}
