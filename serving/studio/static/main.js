// The start page: say what to draw, agree or not, take everything back.

import { send } from "./api.js";
import { $, $$, busy, say, wire } from "./dom.js";
import { flush, forgetAll, keep } from "./outbox.js";

wire();
flush();

const form = $("#begin");
const words = $("#say");

/** The server made the ids; other words are another intention. */
const intent = { words: "", dialogue_id: form.dialogue_id.value, round_id: form.round_id.value };

form.addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const prompt = words.value.trim();
  if (!prompt) return words.focus();
  if (intent.words && intent.words !== prompt) {
    Object.assign(intent, { dialogue_id: crypto.randomUUID(), round_id: crypto.randomUUID() });
  }
  intent.words = prompt;
  busy($("button", form), "Starting …", async () => {
    const { dialogue_id, round_id } = intent;
    const begun = await send("POST", "/v1/dialogues", { dialogue_id, round_id, prompt, locale: navigator.language });
    keep("arrived", true);
    location.assign(begun.url);
    await new Promise(() => {});
  });
});

words.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

for (const example of $$(".example")) {
  example.addEventListener("click", () => {
    words.value = example.textContent;
    words.focus();
  });
}

$("#consent").addEventListener("change", async () => {
  const train = $("#consent").checked;
  $("#consent").disabled = true;
  await busy(null, "", async () => {
    await send("PUT", "/v1/me/consent", { train });
    say(train ? "On. Thank you; turn it off at any time." : "Off. Your pictures and words stay yours alone.", "#consent-said");
  });
  const { consent } = await send("GET", "/v1/me").catch(() => ({ consent: { train: !train } }));
  $("#consent").checked = consent.train;
  $("#consent").disabled = false;
});

$("#leave-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  busy($("#leave-form .danger"), "Deleting …", async () => {
    await send("DELETE", "/v1/me", { confirm: "delete" });
    forgetAll();
    location.replace("/");
    await new Promise(() => {});
  });
});

addEventListener("pageshow", (event) => event.persisted && location.reload());
