// The dialogue as the server sees it. The page is rendered there; after a change it is fetched again, and the parts
// that differ are put in place.

import { send } from "./api.js";
import { $, $$ } from "./dom.js";
import { flush, forget, keep, recall, tellOthers } from "./outbox.js";

/**
 * @typedef {{candidate_id: string, idx: number, state: "waiting"|"ready"|"blocked"|"failed", message: string|null,
 *   picture: string|null, preview: string|null}} Candidate
 * @typedef {{event_id: string, kind: string, target: string[]}} Choice
 * @typedef {{round_id: string, parent_round_id: string|null, parent_candidate_id: string|null, depth: number,
 *   prompt: string, prompt_refined: string, critique: string, keep: string[], change: string[],
 *   axes: Record<string, boolean>, notice: string|null, truncated: string[], strength: number|null, locked: boolean,
 *   status: string, position: number, progress: number, candidates: Candidate[],
 *   presentation: {presentation_id: string, slots: string[]}|null, choice: Choice|null}} Round
 * @typedef {{dialogue_id: string, head: string, status: string, share: string|null, rounds: Round[]}} Tree
 */

/** @type {{tree: Tree, round: Round}} */
export const state = /** @type {any} */ ({});

const REGIONS = ["grid", "strip", "probe", "stopped"]; // what the server renders anew
/** @type {Map<string, string>} */
const rendered = new Map();

/** Read what a page says. @param {Document} [page] */
function read(page = document) {
  const { tree, shown } = JSON.parse($("#tree", page).textContent);
  state.tree = tree;
  state.round = tree.rounds.find((/** @type {Round} */ one) => one.round_id === shown);
  for (const id of REGIONS) rendered.set(id, $(`#${id}`, page).innerHTML);
}

read();

/** @param {string} roundId */
export const address = (roundId) => `/d/${state.tree.dialogue_id}/r/${roundId}`;

/**
 * Have the page as it is now. Does nothing while what was done here is not with the server yet.
 * @returns {Promise<boolean>} whether it worked
 */
export async function refresh() {
  if (!(await flush())) return false;
  let page;
  try {
    const response = await fetch(address(state.round.round_id));
    if (response.status === 404) location.reload(); // deleted elsewhere
    if (!response.ok) return false;
    page = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    return false;
  }
  const before = new Map(rendered);
  read(page);
  for (const id of REGIONS) {
    if (before.get(id) !== rendered.get(id)) replace(id, $(`#${id}`, page));
  }
  return true;
}

/** Put a region in place; who stood in it stays where they were. @param {string} id @param {Element} made */
function replace(id, made) {
  const there = $(`#${id}`);
  const focused = /** @type {any} */ (there.contains(document.activeElement) ? document.activeElement : null);
  there.replaceChildren(...[...made.childNodes].map((node) => document.adoptNode(node)));
  if (focused) {
    const same = $$("input, a", there).find((one) => one.value === focused.value && one.href === focused.href);
    (same ?? $("#prompt")).focus({ preventScroll: true });
  }
}

/** Scroll the strip, not the page, to where we are. */
export function showHere() {
  const [box, here] = [$("#strip .scroll"), $("#strip [aria-current]")];
  if (!box) return;
  const [outer, inner] = [box.getBoundingClientRect(), here.getBoundingClientRect()];
  box.scrollLeft += inner.left - outer.left - (outer.width - inner.width) / 2;
  box.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
}

const redoKey = () => `redo:${state.tree.dialogue_id}`;

/** The round that redo leads to: the last one undone, else the newest that goes on from here. */
export function redoTarget() {
  const children = state.tree.rounds.filter((one) => one.parent_round_id === state.round.round_id);
  const undone = /** @type {string[]} */ (recall(redoKey()) ?? []);
  return children.find((one) => one.round_id === undone.at(-1)) ?? children.at(-1) ?? null;
}

export async function undo() {
  if (!state.round.parent_round_id) return;
  keep(redoKey(), [...(recall(redoKey()) ?? []), state.round.round_id].slice(-50));
  await goTo(state.round.parent_round_id);
}

export async function redo() {
  const there = redoTarget();
  if (!there) return;
  const undone = /** @type {string[]} */ (recall(redoKey()) ?? []);
  if (undone.at(-1) === there.round_id) keep(redoKey(), undone.slice(0, -1));
  await goTo(there.round_id);
}

export const forgetRedo = () => forget(redoKey());

/** Stand at another round. @param {string} roundId */
export async function goTo(roundId) {
  await send("PUT", `/v1/dialogues/${state.tree.dialogue_id}/head`, { round_id: roundId });
  visit(address(roundId));
}

/** Open a round's page; whoever reads by ear or by keys begins at its words. @param {string} url */
export function visit(url) {
  tellOthers();
  keep("arrived", true);
  location.assign(url);
}

/** What is picked or gone on from; null: nothing. @param {{base?: string|null}} draft */
export function base(draft) {
  const choice = state.round.choice;
  if (!choice || choice.kind === "all_bad") return null;
  if (choice.kind === "tie_good" && draft.base && choice.target.includes(draft.base)) return draft.base;
  return choice.target[0];
}
