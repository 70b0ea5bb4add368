// What people did, kept in the browser until the studio has it. One key each, so tabs do not overwrite one another;
// sent twice, an event counts once.

import { Failed, newId, once, passing } from "./api.js";
import { alarm, input, say } from "./dom.js";

const VERSION = "studio-1";
/** @type {Map<string, string>} */
const memory = new Map(); // where the browser stores nothing

/** @param {string} key @param {any} value */
export function keep(key, value) {
  const text = JSON.stringify(value);
  try {
    localStorage.setItem(key, text);
  } catch {
    memory.set(key, text);
  }
}

/** @param {string} key @returns {any} null: nothing kept */
export function recall(key) {
  try {
    return JSON.parse(localStorage.getItem(key) ?? memory.get(key) ?? "null");
  } catch {
    return null;
  }
}

/** @param {string} key */
export function forget(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // was never there
  }
}

/** Everything but the theme. */
export function forgetAll() {
  for (const key of keys("")) if (key !== "theme") forget(key);
}

/** @param {string} prefix @returns {string[]} */
export function keys(prefix) {
  let stored = /** @type {string[]} */ ([]);
  try {
    stored = Object.keys(localStorage);
  } catch {
    // only what is in memory
  }
  return [...new Set([...stored, ...memory.keys()])].filter((key) => key.startsWith(prefix));
}

const channel = new BroadcastChannel("studio");
/** @type {Set<() => void>} */
const listeners = new Set();
channel.addEventListener("message", () => listeners.forEach((listener) => listener()));

/** Tell other tabs that something changed. */
export const tellOthers = () => channel.postMessage("changed");
/** @param {() => void} listener called when another tab changed something */
export const onOthers = (listener) => listeners.add(listener);

let number = 0;

/**
 * Write down what somebody did; it is sent at once, or as soon as that works.
 * @param {{presentation_id: string, kind: string, target?: string[], event_id?: string, [more: string]: any}} event
 * @returns {any} the event
 */
export function record(event) {
  const sent = {
    event_id: newId(),
    target: [],
    client_at: new Date().toISOString(),
    input: input(),
    client_version: VERSION,
    ...event,
  };
  const at = String(Date.now()).padStart(15, "0");
  keep(`event:${at}:${String(number++).padStart(6, "0")}:${sent.event_id}`, sent);
  flush();
  return sent;
}

export const pending = () => keys("event:").length > 0;

/** @type {Promise<boolean> | null} */
let sending = null;
let again = 0;
let wait = 1;

/** Send what is kept, oldest first. Resolves to whether nothing is left. */
export function flush() {
  clearTimeout(again);
  sending ??= sendAll().finally(() => (sending = null));
  return sending;
}

async function sendAll() {
  let some = false;
  for (let left = keys("event:").sort(); left.length; left = keys("event:").sort()) {
    const event = recall(left[0]);
    try {
      if (event) await once("POST", "/v1/events", event);
      some = true;
    } catch (error) {
      const failed = /** @type {Failed} */ (error);
      if (passing(failed.status) || failed.status === 401) {
        say("Not saved yet. It is kept here and sent as soon as the studio answers.", "#saving");
        wait = Math.min(wait * 2, 30);
        again = setTimeout(flush, 1000 * wait);
        return false;
      }
      if (failed.status !== 404) alarm(failed.message); // 404: of somebody who had everything deleted
    }
    forget(left[0]);
  }
  wait = 1;
  say("", "#saving");
  if (some) tellOthers();
  return true;
}

addEventListener("online", () => flush());
