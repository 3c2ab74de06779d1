/** The service's API: the key, requests, and errors in words. */

import { serverSentEvents } from "./events.js";

const STORED = "api-key";

/** The API key, of this tab only: it is never in an address, a cookie or the storage of the browser. */
export const apiKey = {
  get: () => sessionStorage.getItem(STORED),
  set: (key) => sessionStorage.setItem(STORED, key),
  forget: () => sessionStorage.removeItem(STORED),
};

/** What went wrong, in words; ``retryAfter`` in seconds where the service gave it. */
export class ServiceError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const WORDS = {
  401: "The service does not know this API key.",
  403: "This key may not do that.",
  413: "The request is too large.",
  429: "The service is busy, or this key has used up its rate.",
  503: "The service is not ready.",
};

async function errorOf(answer) {
  const document = await answer.json().catch(() => null);
  const told = document?.error?.message;
  const words = WORDS[answer.status] ?? "The service could not do that.";
  const waited = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  return new ServiceError(typeof told === "string" ? `${words} It says: ${told}` : `${words} (HTTP ${answer.status})`, {
    status: answer.status,
    retryAfter: Number.isFinite(waited) ? Math.ceil(waited) : null,
  });
}

async function answerTo(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = apiKey.get();
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached.");
  }
  if (!answer.ok) throw await errorOf(answer);
  return answer;
}

/** What a GET answers. */
export async function read(path, signal = undefined) {
  return (await answerTo(path, { signal })).json();
}

/** The events of a generation, each as ``{name, data}``. An error that is not about one picture is thrown. */
export async function* generation(request, signal) {
  const answer = await answerTo("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(request),
    signal,
  });
  try {
    for await (const { name, data } of serverSentEvents(answer.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (name === "error" && event.index === undefined) throw new ServiceError(event.error?.message ?? "The service broke off.");
      yield { name, data: event };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServiceError) throw error;
    throw new ServiceError("The connection to the service broke.");
  }
}
