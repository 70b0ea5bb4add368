// The four pictures: how they come in, and how one is picked.

import { $, $$, h, icon } from "./dom.js";
import { record } from "./outbox.js";
import { state } from "./tree.js";

const NUMBERS = ["no", "one", "two", "three", "four"];

export const inputs = () => $$("#grid input:not(:disabled)");

/** A picture's number, which is its place; 0: of another round. @param {string} id */
export const numberOf = (id) => state.round.candidates.findIndex((one) => one.candidate_id === id) + 1;

/** How a round stands, in words. @param {import("./tree.js").Round} round */
export function told(round) {
  const total = round.candidates.length;
  if (round.status === "queued") {
    if (!round.position) return "Next in line.";
    return round.position === 1 ? "One other round is drawn first." : `${round.position} other rounds are drawn first.`;
  }
  if (round.status === "running") return `Drawing ${NUMBERS[total] ?? total} pictures.`;
  const ready = round.candidates.filter((one) => one.state === "ready").length;
  const hidden = round.candidates.filter((one) => one.state === "blocked").length;
  if (!ready) return "";
  const words = NUMBERS[ready] ?? String(ready);
  const parts = [`${words[0].toUpperCase()}${words.slice(1)} ${ready === 1 ? "picture is" : "pictures are"} ready.`];
  if (hidden) parts.push(`${hidden} hidden by the safety filter.`);
  return parts.join(" ");
}

/** Show what there is of a round that is being drawn. @param {import("./tree.js").Round} round */
export function showDrawing(round) {
  $("#progress").value = round.progress;
  for (const one of round.candidates) {
    const tile = $(`[data-candidate="${one.candidate_id}"]`);
    const frame = tile && $(".frame", tile);
    if (!frame) continue;
    tile.dataset.state = one.state;
    const source = one.picture ?? one.preview;
    if (source) {
      const image = $("img", frame) ?? frame.appendChild(h("img", { alt: "", width: 512, height: 512 }));
      image.classList.toggle("preview", !one.picture);
      if (image.getAttribute("src") !== source) image.setAttribute("src", source);
    } else if (one.message && !$(".why", frame)) {
      const shape = icon(one.state === "blocked" ? "hidden" : "broken");
      frame.replaceChildren(h("span", { class: "why" }, shape, h("span", {}, one.message)));
    }
  }
}

/** What each picture was said to be, next to its number. @param {string|null} base */
export function showChoice(base) {
  const { choice } = state.round;
  for (const input of inputs()) {
    const good = choice?.kind === "tie_good" && choice.target.includes(input.value);
    if (input.type === "radio") input.checked = input.value === base;
    const said = $(".said", input.closest(".tile"));
    said.textContent =
      choice?.kind === "accept" && input.value === base
        ? "this is it"
        : input.value === base
          ? good
            ? "good, your pick"
            : "your pick"
          : good
            ? "good"
            : "";
  }
}

/** Marking several: circles become boxes, and back. @param {boolean} several */
export function markSeveral(several) {
  for (const input of inputs()) {
    input.type = several ? "checkbox" : "radio";
    input.checked = false;
  }
}

let shownAt = performance.now();
/** From now on somebody looks at finished pictures. */
export const seen = () => (shownAt = performance.now());

/**
 * What somebody says of the pictures shown. It replaces what they said before, except that comparisons stand.
 * @param {"pick"|"tie_good"|"all_bad"|"accept"} kind
 * @param {string[]} target
 */
export function choose(kind, target) {
  const { choice, presentation } = state.round;
  if (!presentation) return;
  const same = choice?.kind === kind && choice.target.join() === target.join();
  if (same) return;
  const agrees = kind === "accept" && (choice?.kind === "tie_good" || choice?.target[0] === target[0]);
  const event = record({
    presentation_id: presentation.presentation_id,
    kind,
    target,
    dwell_ms: Math.round(performance.now() - shownAt),
    ...(choice && choice.kind !== "pair" && !agrees ? { supersedes: choice.event_id } : {}),
  });
  state.round.choice = { event_id: event.event_id, kind, target };
}

/** Take the last choice back. */
export function retract() {
  const { choice, presentation } = state.round;
  if (!choice || !presentation) return;
  record({ presentation_id: presentation.presentation_id, kind: "retract", supersedes: choice.event_id });
  state.round.choice = null;
}

/** Arrow keys move among the pictures without picking; Enter picks, as Space does. @param {KeyboardEvent} event */
export function move(event) {
  const all = inputs();
  const at = all.indexOf(document.activeElement);
  if (at < 0) return;
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    all[at].click();
  }
  const columns = getComputedStyle($("#grid .grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step) return;
  event.preventDefault();
  all[at + step]?.focus();
}
