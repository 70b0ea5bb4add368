// Two pictures next to one another, or under a slider. Loaded when it is first opened.

import { send } from "./api.js";
import { $, $$, alarm, h, open } from "./dom.js";
import { choose, numberOf } from "./grid.js";
import { record } from "./outbox.js";
import { state } from "./tree.js";

/** @type {string[]} */
let two = [];
let shownAt = 0;
let turn = 0;
let done = () => {};

const name = (/** @type {string} */ id) => (numberOf(id) ? `Picture ${numberOf(id)}` : "Before");
const image = (/** @type {string} */ id) => h("img", { src: `/v1/pictures/${id}`, alt: name(id), width: 512, height: 512 });

/**
 * @param {string|null} first the picture to begin with
 * @param {() => void} preferred called when somebody prefers one
 */
export function compare(first, preferred) {
  const slots = state.round.presentation?.slots ?? [];
  const before = state.round.parent_candidate_id;
  done = preferred;
  two = slots.length > 1 ? [first ?? slots[0], slots.find((one) => one !== (first ?? slots[0])) ?? ""] : [];
  if (slots.length === 1 && before) two = [before, slots[0]];
  if (two.length < 2) return alarm("There is only one picture; two are needed to compare.");
  const all = before ? [...slots, before] : slots;
  $("#compare-which").replaceChildren(
    ...all.map((id) =>
      h("button", { type: "button", "data-id": id, "aria-pressed": "false", "aria-label": name(id), onclick: () => take(id) }, thumb(id), numberOf(id) ? String(numberOf(id)) : "before"),
    ),
  );
  open("compare");
  show();
}

const thumb = (/** @type {string} */ id) => h("img", { src: `/v1/pictures/${id}`, alt: "", width: 64, height: 64 });

/** The newcomer takes the place of the one that was there longest. @param {string} id */
function take(id) {
  if (two.includes(id)) return;
  two = [two[1], id];
  show();
}

for (const one of $$("#compare [name=layout]")) one.addEventListener("change", show);

async function show() {
  const mine = ++turn;
  const layout = $("#compare [name=layout]:checked").value;
  for (const one of $$("#compare-which button")) one.setAttribute("aria-pressed", String(two.includes(one.dataset.id)));
  let slots = two;
  let presentation_id = null;
  if (two.every(numberOf)) {
    try {
      const viewport = `${innerWidth}x${innerHeight}`;
      const asked = { layout, pictures: two, viewport };
      const shown = await send("POST", `/v1/rounds/${state.round.round_id}/presentations`, asked, 3);
      if (mine !== turn) return;
      ({ slots, presentation_id } = shown);
    } catch (error) {
      return alarm(/** @type {Error} */ (error).message);
    }
  } else {
    slots = [...two].sort((one, other) => numberOf(one) - numberOf(other)); // before and after; nothing to vote on
  }
  shownAt = performance.now();
  const buttons = slots.map((id) =>
    presentation_id ? h("button", { type: "button", class: "second", onclick: () => prefer(presentation_id, id, slots) }, `${name(id)} is better`) : h("span", { class: "hint" }, name(id)),
  );
  $("#compare-stage").dataset.layout = layout;
  $("#compare-stage").replaceChildren(layout === "pair" ? h("div", { class: "pair" }, ...slots.map((id, at) => h("figure", {}, image(id), buttons[at]))) : slider(slots, buttons));
}

/** @param {string[]} slots @param {Node[]} buttons */
function slider(slots, buttons) {
  const over = h("div", { class: "over" }, image(slots[0]), image(slots[1]));
  const range = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": `How much of ${name(slots[0])} is shown` });
  const at = () => over.style.setProperty("--at", `${range.value}%`);
  range.addEventListener("input", at);
  over.append(range);
  at();
  return h("div", { class: "slide" }, over, h("div", { class: "row" }, ...buttons));
}

/** @param {string} presentation_id @param {string} id @param {string[]} slots */
function prefer(presentation_id, id, slots) {
  const other = slots.find((one) => one !== id) ?? "";
  const dwell_ms = Math.round(performance.now() - shownAt);
  const event = record({ presentation_id, kind: "pair", target: [id, other], dwell_ms });
  const { choice } = state.round;
  if (choice?.kind === "pick" && choice.target[0] === other) choose("pick", [id]);
  else if (!choice || choice.kind === "pair") state.round.choice = { event_id: event.event_id, kind: "pair", target: [id, other] };
  $("dialog#compare").close();
  done();
}
