// The page of a round: which part of it is shown when, its buttons and its keys.

import { send, pause } from "./api.js";
import { $, $$, alarm, busy, open, say, typing, wire } from "./dom.js";
import * as grid from "./grid.js";
import { flush, forget, keep, onOthers, pending, recall, record, tellOthers } from "./outbox.js";
import { again, draft, draw, next, ownWords, save, showDraft, showNext, wireDraft } from "./refine.js";
import { follow } from "./sse.js";
import { base, goTo, redo, redoTarget, refresh, showHere, state, undo } from "./tree.js";

const OPEN = ["queued", "running"];
const PICKING = ["choose", "several", "refine"];
let view = $("#main").dataset.view;

/** What the round's state asks for. */
function natural() {
  const { round } = state;
  if (OPEN.includes(round.status)) return "wait";
  if (!round.presentation?.slots.length) return "stopped";
  if (round.choice?.kind === "accept") return "end";
  return round.choice ? "refine" : "choose";
}

/** @param {string} wanted */
function show(wanted) {
  const before = view;
  view = wanted;
  $("#main").dataset.view = view;
  for (const part of $$("[data-for]")) part.hidden = part.dataset.for !== view;
  if ((before === "several") !== (view === "several")) grid.markSeveral(view === "several");
  if (view === "diff") $("#diff-title").focus();
  if (view === "end" && before !== "end") $("#end-title").focus();
  paint();
}

/** What depends on the choice. */
function paint() {
  const from = base(draft);
  if (view !== "several") grid.showChoice(from);
  showNext();
  for (const link of [$("#download"), $("#download-end")]) {
    link.hidden = !from;
    if (from) link.href = `/v1/pictures/${from}?download=1`;
  }
  $("#accept").hidden = !from;
  $("#redo").disabled = !redoTarget();
  for (const one of $$("[data-does=compare]")) one.hidden = !((state.round.presentation?.slots.length ?? 0) > 1);
  const probe = $(".probe");
  if (probe) probe.hidden = recall(`probe:${state.round.round_id}`) === true;
}

/** Begin with what the server says; who was reading the difference still does. */
function settle() {
  const there = natural();
  const reading = draft.refinement && recall(`reading:${state.round.round_id}`) && ["choose", "refine"].includes(there);
  show(reading ? "diff" : there);
  showHere();
  say(there === "stopped" ? $("#stopped h2").textContent : grid.told(state.round));
}

/** @param {string} wanted remembered, for a reload */
function read(wanted) {
  if (wanted === "diff") keep(`reading:${state.round.round_id}`, true);
  else forget(`reading:${state.round.round_id}`);
  show(wanted);
}

// Picking

/** @param {string} id */
function pick(id) {
  const { choice } = state.round;
  if (choice?.kind === "tie_good" && choice.target.includes(id)) {
    draft.base = id; // all of these are good; this is the one to go on from
    save();
  } else {
    grid.choose("pick", [id]);
    say(`Picture ${grid.numberOf(id)} is picked.`);
  }
  $("#ask").hidden = true;
  read(natural());
  afterwards();
}

/** When the server has it, there may be a probe to show, and the strip changes. */
async function afterwards() {
  if ((await flush()) && (await refresh())) paint();
}

$("#grid").addEventListener("change", (/** @type {any} */ event) => {
  if (view === "several") $("#tie").disabled = grid.inputs().filter((one) => one.checked).length < 2;
  else pick(event.target.value);
});
$("#grid").addEventListener("keydown", grid.move);

$("#tie").addEventListener("click", () => {
  const good = grid.inputs().filter((one) => one.checked).map((one) => one.value);
  draft.base = good[0];
  save();
  grid.choose("tie_good", good);
  say("Noted. Go on from one of them.");
  show("refine");
  afterwards();
});

/** @param {number} number */
function press(number) {
  const input = grid.inputs().find((one) => one.dataset.number === String(number));
  if (!input) return;
  input.focus({ preventScroll: true });
  input.checked = view === "several" ? !input.checked : true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

function noneFits() {
  if (!state.round.presentation || !["choose", "refine"].includes(view)) return;
  grid.choose("all_bad", state.round.presentation.slots);
  say("Noted: none of these fits.");
  show("refine");
  $("#critique").focus();
  afterwards();
}

async function compare() {
  if (!state.round.presentation) return;
  const { compare: begin } = await import("./compare.js");
  begin(base(draft), () => {
    say("Noted.");
    show(natural());
    afterwards();
  });
}

// Buttons

/** @type {Record<string, (button: HTMLElement) => void>} */
const DOES = {
  several: () => show("several"),
  back: () => {
    read(natural());
    if (view === "refine") $("#critique").focus();
  },
  words: () => ownWords(show),
  compare,
  retract: (button) =>
    busy(button, "Taking it back …", async () => {
      grid.retract();
      await refresh();
      show(natural());
      say("Taken back. Which one comes closest?");
    }),
  reopen: (button) =>
    busy(button, "Opening …", async () => {
      const accepted = state.round.choice?.target ?? [];
      grid.retract();
      await refresh();
      if (!state.round.choice) grid.choose("pick", accepted);
      show(natural());
    }),
  "no-probe": () => {
    keep(`probe:${state.round.round_id}`, true);
    paint();
  },
};

addEventListener("click", (event) => {
  const target = /** @type {any} */ (event.target);
  const button = target.closest?.("[data-does]");
  if (button) DOES[button.dataset.does](button);
  const again = target.closest?.("[data-pick]");
  if (again) answerProbe(again.closest(".probe").dataset.presentation, again.dataset.pick);
  const there = target.closest?.("#strip a[data-round]");
  if (there && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    busy(null, "", () => goTo(there.dataset.round));
  }
});

/** @param {string} presentation_id @param {string} id */
function answerProbe(presentation_id, id) {
  record({ presentation_id, kind: "pick", target: [id] });
  $("#probe").replaceChildren();
  say("Thank you.");
}

$("#work").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const action = /** @type {any} */ (event.submitter)?.value;
  if (action === "all_bad") noneFits();
  else if (action === "accept") accept();
  else if (action === "next") next(read);
});

function accept() {
  const from = base(draft);
  if (!from) return;
  grid.choose("accept", [from]);
  show("end");
  say("There it is.");
  afterwards();
}

$("#undo").addEventListener("click", (/** @type {Event} */ event) => {
  event.preventDefault();
  busy(null, "", undo);
});
$("#redo").addEventListener("click", () => busy(null, "", redo));
$("#draw").addEventListener("click", () => {
  if (!draft.words.trim()) return alarm("Say what to draw.");
  forget(`reading:${state.round.round_id}`);
  draw($("#draw"), draft.words, draft.refinement);
});
$("#again").addEventListener("click", () => again($("#again")));
$("#cancel").addEventListener("click", () =>
  busy($("#cancel"), "Stopping …", async () => {
    await send("POST", `/v1/rounds/${state.round.round_id}/cancel`);
    await pause(0.3);
  }),
);
for (const link of [$("#download"), $("#download-end")]) {
  link.addEventListener("click", () => {
    const from = base(draft);
    const seen = state.round.presentation;
    if (from && seen) record({ presentation_id: seen.presentation_id, kind: "download", target: [from] });
  });
}

// Sharing and reporting

function showShare() {
  $("#share-off").hidden = state.tree.share !== null;
  $("#share-link").hidden = state.tree.share === null;
  $("#share-url").value = state.tree.share ? location.origin + state.tree.share : "";
}

const shareUrl = () => `/v1/dialogues/${state.tree.dialogue_id}/share`;

$("dialog#share").addEventListener("opening", () => {
  say("", "#share-said");
  showShare();
});
$("#share-on").addEventListener("click", () =>
  busy($("#share-on"), "Making a link …", async () => {
    const made = await send("POST", shareUrl());
    state.tree.share = made.url;
    showShare();
    const end = new Date(made.expires_at).toLocaleDateString("en", { day: "numeric", month: "long", year: "numeric" });
    say(`The link works until ${end}.`, "#share-said");
    $("#share-copy").focus();
  }),
);
$("#share-copy").addEventListener("click", async () => {
  $("#share-url").select();
  try {
    await navigator.clipboard.writeText($("#share-url").value);
    say("Copied.", "#share-said");
  } catch {
    say("Press Ctrl+C to copy it.", "#share-said");
  }
});
$("#share-end").addEventListener("click", () =>
  busy($("#share-end"), "Ending …", async () => {
    await send("DELETE", shareUrl());
    state.tree.share = null;
    showShare();
    say("The link no longer works.", "#share-said");
    $("#share-on").focus();
  }),
);

$("#report-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const reason = $("[name=reason]:checked", form).value;
  const text = $("#report-text").value.trim();
  const from = reason === "wrongly_hidden" ? null : base(draft);
  const presentation_id = state.round.presentation?.presentation_id;
  if (presentation_id) {
    const more = text ? { text } : {};
    record({ presentation_id, kind: "report", target: from ? [from] : [], body: { reason }, ...more });
  }
  form.reset();
  $("dialog#report").close();
  say("Thank you. Your report is on its way.");
});

// Keys

addEventListener("keydown", (event) => {
  if ($("dialog[open]") || event.altKey) return;
  const { key } = event;
  if (event.ctrlKey || event.metaKey) {
    if (key === "Enter") goOn(event);
    else if (key.toLowerCase() === "z" && !typing(event.target)) {
      event.preventDefault();
      busy(null, "", event.shiftKey ? redo : undo);
    }
  } else if (key === "Escape" && ["diff", "several"].includes(view)) DOES.back(document.body);
  else if (typing(event.target)) return;
  else if (key >= "1" && key <= "4" && PICKING.includes(view)) press(Number(key));
  else if (key === "0") noneFits();
  else if (key.toLowerCase() === "c" && PICKING.includes(view)) compare();
});

/** @param {KeyboardEvent} event */
function goOn(event) {
  event.preventDefault();
  if (view === "refine") next(read);
  else if (view === "diff") $("#draw").click();
  else if (view === "several") $("#tie").click();
  else if (view === "choose") say("Pick a picture first: press 1 to 4.");
  else if (view === "stopped") $("#again").click();
}

$("#prompt").addEventListener("click", () => $("#prompt").classList.toggle("whole"));

// From the first paint on

wire();
wireDraft();
showDraft();
settle();
if (recall("arrived")) {
  forget("arrived");
  $("#prompt").focus({ preventScroll: true });
}
if (view === "wait") {
  follow(state.round.round_id, {
    onRound: async (round) => {
      Object.assign(state.round, round);
      grid.showDrawing(round);
      if (OPEN.includes(round.status)) return say(grid.told(round));
      while (!(await refresh())) await pause(1);
      grid.seen();
      settle();
      tellOthers();
    },
    onAway: (away) => say(away ? "The connection is away. Drawing goes on; trying again …" : "", "#saving"),
  });
}
if (pending()) afterwards();

async function catchUp() {
  if (document.hidden || view === "wait" || $("dialog[open]")) return;
  const before = JSON.stringify(state.round.choice);
  if (!(await refresh())) return;
  if (before !== JSON.stringify(state.round.choice)) show(natural());
  else paint();
}
onOthers(catchUp);
addEventListener("visibilitychange", catchUp);
addEventListener("pageshow", (event) => event.persisted && catchUp());
