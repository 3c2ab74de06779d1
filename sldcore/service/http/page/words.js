/** What happened to a picture, in words. */

const SHOWN = { none: "Shown", flag: "Flagged, shown" };
const CHANGED = { blur: "Flagged, shown blurred", pixelate: "Flagged, shown pixelated", replace: "Withheld, replaced" };

const WHY = {
  none: "No filter objects to it.",
  flag: "A filter flagged it. The policy shows it all the same, and says so.",
  black: "A filter flagged it, and the policy withholds it.",
  drop: "A filter flagged it, and the policy drops it.",
  blur: "A filter flagged it, and the policy shows it blurred.",
  pixelate: "A filter flagged it, and the policy shows it pixelated.",
  replace: "A filter flagged it, and the policy shows something else in its place.",
  block: "It could not be reviewed in full, so it is not shown.",
};

/** A heading, a sentence and a tone (``good``, ``warn`` or ``stop``) for what was done with a picture. */
export function happened(safety) {
  const { action, unreviewed } = safety;
  if (unreviewed) {
    return { heading: "Shown unreviewed", why: "A part of its review failed, and the policy allows that.", tone: "warn" };
  }
  const heading = SHOWN[action] ?? CHANGED[action] ?? "Withheld";
  const tone = action === "none" ? "good" : action === "flag" ? "warn" : "stop";
  return { heading, why: WHY[action] ?? "It is not shown.", tone };
}

/** What the picture that was sent is, if it is to be blurred until asked for; null otherwise. */
export function objection(safety) {
  if (safety.withheld) return null;
  return safety.flagged ? "flagged" : safety.unreviewed ? "unreviewed" : null;
}

/** Whether there is something to look at: a black picture says less than the reason. */
export function hasPicture(entry) {
  return Boolean(entry.b64_json) && (!entry.safety.withheld || entry.safety.action in CHANGED);
}

/** A number for people, or a dash. */
export function figure(value, digits = 3) {
  return typeof value === "number" ? String(Number(value.toPrecision(digits))) : "–";
}

/** A score for people: what is next to nothing is said to be so. */
export function score(value) {
  return value > 0 && value < 0.001 ? "< 0.001" : figure(value);
}

/** Seconds for people. */
export function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  return seconds < 1 ? `${Math.max(Math.round(seconds * 1000), 1)} ms` : `${seconds.toFixed(1)} s`;
}

/** "1 picture", "3 pictures". */
export function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
