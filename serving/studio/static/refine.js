// What should change: the critique, what is made of it, and the next round.

import { newId, send } from "./api.js";
import { $, $$, busy, h } from "./dom.js";
import { forget, keep, keys, recall, record } from "./outbox.js";
import { address, base, forgetRedo, state, visit } from "./tree.js";

/**
 * @typedef {{prompt: string, before: string, changed: string[], action: string, notice: string|null,
 *   truncated: string[], warnings: string[]}} Refinement
 * @typedef {{critique: string, keep: string[], change: string[], axes: Record<string, boolean>, strength: string,
 *   locked: boolean, base: string|null, refinement: Refinement|null, words: string, at: number,
 *   intent: {body: string, round_id: string, event_id: string}|null}} Draft
 */

const DAYS = 86_400_000;
const key = `draft:${state.round.round_id}`;

/** @type {Draft} */
export const draft = {
  critique: "",
  keep: [],
  change: [],
  axes: {},
  strength: "0.6",
  locked: false,
  base: null,
  refinement: null,
  words: "",
  intent: null,
  ...recall(key),
  at: Date.now(),
};

export const save = () => keep(key, draft);

for (const old of keys("draft:")) if (recall(old)?.at < Date.now() - 60 * DAYS) forget(old);

/** Whether there is something to think about before drawing. */
const said = () => draft.critique.trim() !== "" || draft.change.length > 0;

/** Put the draft into the page, as it was before a reload. */
export function showDraft() {
  $("#critique").value = draft.critique;
  $("#locked").checked = draft.locked;
  for (const one of $$("[name=strength]")) one.checked = one.value === draft.strength;
  for (const wish of $$(".wish")) {
    const { part, axis } = wish.dataset;
    for (const button of $$("button", wish)) {
      const kind = button.dataset.wish;
      const on = axis ? draft.axes[axis] === (kind === "yes") : (kind === "keep" ? draft.keep : draft.change).includes(part);
      button.setAttribute("aria-pressed", String(on));
    }
  }
  if (draft.refinement) showRefinement(draft.refinement);
}

/** The button says what comes next. */
export function showNext() {
  const from = base(draft);
  $("#from").hidden = from === null;
  $("#refine-title label").textContent = from === null ? "What should the picture show instead?" : "What should change?";
  if ($("#next").getAttribute("aria-busy") === "true") return;
  $("#next").textContent = said() ? "Next round" : from === null ? "Four new ones" : "More like this";
}

export function wireDraft() {
  $("#critique").addEventListener("input", () => {
    draft.critique = $("#critique").value;
    save();
    showNext();
  });
  $("#words").addEventListener("input", () => {
    draft.words = $("#words").value;
    save();
    showDiff();
  });
  $("#locked").addEventListener("change", () => ((draft.locked = $("#locked").checked), save()));
  for (const one of $$("[name=strength]")) {
    one.addEventListener("change", () => ((draft.strength = one.value), save()));
  }
  for (const button of $$(".wish button")) button.addEventListener("click", () => wish(button));
}

/** @param {HTMLElement} button pressed, or pressed again to take it back */
function wish(button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  const { part = "", axis } = /** @type {HTMLElement} */ (button.closest(".wish")).dataset;
  const kind = button.dataset.wish;
  if (axis) {
    delete draft.axes[axis];
    if (on) draft.axes[axis] = kind === "yes";
  } else {
    draft.keep = draft.keep.filter((one) => one !== part);
    draft.change = draft.change.filter((one) => one !== part);
    if (on) (kind === "keep" ? draft.keep : draft.change).push(part);
  }
  save();
  showDraft();
  showNext();
}

const critique = () => ({ critique: draft.critique.trim(), keep: draft.keep, change: draft.change, axes: draft.axes });

/**
 * Ask what would be drawn; or draw at once where nothing was said.
 * @param {(view: string) => void} show
 */
export async function next(show) {
  if (!said()) return draw($("#next"), state.round.prompt, null);
  await busy($("#next"), "Finding the words …", async () => {
    const parents = { parent_round_id: state.round.round_id, parent_candidate_id: base(draft) };
    const path = `/v1/dialogues/${state.tree.dialogue_id}/refinements`;
    /** @type {Refinement} */
    const made = await send("POST", path, { ...parents, ...critique() });
    draft.refinement = made;
    draft.words = made.prompt;
    save();
    showRefinement(made);
    if (made.action !== "ask" && made.action !== "answer") return show("diff");
    const own = h("button", { type: "button", class: "plain", onclick: () => ownWords(show) }, "Write the words myself");
    $("#ask").replaceChildren(h("p", {}, made.notice ?? "Say it in other words."), own);
    $("#ask").hidden = false;
    $("#critique").focus();
  });
  showNext();
}

/** Begin with the words as they are. @param {(view: string) => void} show */
export function ownWords(show) {
  draft.words ||= state.round.prompt;
  $("#words").value = draft.words;
  showDiff();
  show("diff");
  $("#words").focus();
}

/** @param {Refinement} made */
function showRefinement(made) {
  $("#words").value = draft.words;
  const told = [];
  if (made.notice) told.push(made.notice);
  if (made.truncated.length) {
    told.push(`Too long for one picture. These words would be left out: “${made.truncated.join(", ")}”.`);
  }
  told.push(...made.warnings);
  $("#told").replaceChildren(...told.map((text) => h("p", { class: "note" }, text)));
  showDiff();
}

function showDiff() {
  const pieces = difference(state.round.prompt, draft.words).flatMap(([kind, text]) => {
    if (kind === "same") return [text];
    const ear = h("span", { class: "sr" }, kind === "old" ? "[out: " : "[new: ");
    const word = h(kind === "old" ? "del" : "ins", {}, ear, text.trim(), h("span", { class: "sr" }, "]"));
    return text.startsWith(" ") ? [" ", word] : [word];
  });
  $("#diff").replaceChildren(...pieces);
}

/**
 * Word by word, commas apart, by the longest common subsequence; neighbours of a kind are one piece.
 * @param {string} before
 * @param {string} after
 * @returns {["same"|"old"|"new", string][]}
 */
export function difference(before, after) {
  const tokens = (/** @type {string} */ text) => (text.trim().replace(/\s+/g, " ").match(/ ?[^\s,;]+| ?[,;]/g) ?? []).slice(0, 600);
  const [old, now] = [tokens(before), tokens(after)];
  const common = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      common[i][j] = old[i] === now[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  /** @type {["same"|"old"|"new", string][]} */
  const pieces = [];
  const add = (/** @type {"same"|"old"|"new"} */ kind, /** @type {string} */ word) => {
    const last = pieces.at(-1);
    if (last?.[0] === kind) last[1] += word;
    else pieces.push([kind, word]);
  };
  let [i, j] = [0, 0];
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) add("same", (i++, now[j++]));
    else if (i < old.length && (j === now.length || common[i + 1][j] >= common[i][j + 1])) add("old", old[i++]);
    else add("new", now[j++]);
  }
  return pieces;
}

/**
 * Have the next round drawn. The same intention has the same id, also after a reload: it is drawn once.
 * @param {HTMLElement} button
 * @param {string} prompt
 * @param {Refinement|null} made
 */
export async function draw(button, prompt, made) {
  const from = base(draft);
  await order(button, {
    parent_round_id: state.round.round_id,
    parent_candidate_id: from,
    prompt,
    prompt_refined: made?.prompt ?? "",
    ...critique(),
    notice: made?.notice ?? null,
    truncated: made && made.prompt === prompt ? made.truncated : [],
    strength: from ? Number(draft.strength) : null,
    locked: from !== null && draft.locked,
  });
}

/** The same once more, after it was stopped or failed. @param {HTMLElement} button */
export async function again(button) {
  const one = state.round;
  await order(button, {
    parent_round_id: one.parent_round_id ?? one.round_id,
    parent_candidate_id: one.parent_candidate_id,
    prompt: one.prompt,
    prompt_refined: one.prompt_refined,
    critique: one.critique,
    keep: one.keep,
    change: one.change,
    axes: one.axes,
    notice: one.notice,
    truncated: one.truncated,
    strength: one.strength,
    locked: one.locked,
  });
}

/** @param {HTMLElement} button @param {any} request a round without its id */
async function order(button, request) {
  const body = JSON.stringify(request);
  if (draft.intent?.body !== body) draft.intent = { body, round_id: newId(), event_id: newId() };
  const { round_id, event_id } = draft.intent;
  save();
  await busy(button, "Starting …", async () => {
    await send("POST", `/v1/dialogues/${state.tree.dialogue_id}/rounds`, { ...request, round_id });
    tell(request, event_id);
    forget(key);
    forgetRedo();
    visit(address(round_id));
    await new Promise(() => {}); // until the page goes, nothing can be pressed twice
  });
}

/** What the round was asked for with is also a word on the pictures. @param {any} request @param {string} event_id */
function tell(request, event_id) {
  const presentation_id = state.round.presentation?.presentation_id;
  if (!presentation_id || request.parent_round_id !== state.round.round_id) return;
  const target = request.parent_candidate_id ? [request.parent_candidate_id] : [];
  if (request.critique || Object.keys(request.axes).length) {
    const text = request.critique ? { text: request.critique } : {};
    record({ event_id, presentation_id, kind: "critique", target, body: request.axes, ...text });
  } else if (!request.parent_candidate_id && request.prompt === state.round.prompt) {
    record({ event_id, presentation_id, kind: "regenerate" });
  }
}
