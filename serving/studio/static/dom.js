// Elements, messages, dialogs: what every page needs.

/**
 * The element there, which the template promises.
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {any}
 */
export const $ = (selector, root = document) => root.querySelector(selector);

/**
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {any[]}
 */
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/**
 * Make an element. What people typed goes in as text, so it is never markup.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `on…` is a listener, false and null leave one out
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/**
 * An icon of the page's sprite.
 * @param {string} name
 */
export function icon(name) {
  const made = $(`svg.icon`).cloneNode(true);
  $("use", made).setAttribute("href", `#i-${name}`);
  return made;
}

/**
 * Say how things stand, politely: each state once, never each tick.
 * @param {string} text
 * @param {string} [where]
 */
export function say(text, where = "#status") {
  const line = $(where);
  if (line && line.textContent !== text) line.textContent = text;
}

let alarmEnd = 0;

/**
 * Say what went wrong, now. An empty text takes it away.
 * @param {string} text
 */
export function alarm(text) {
  clearTimeout(alarmEnd);
  $("#alert").textContent = text;
  if (text) alarmEnd = setTimeout(() => alarm(""), 12000);
}

/**
 * Run `work` while the button says what it does; what fails is told. Pressed again meanwhile, nothing happens.
 * @param {HTMLElement | null} button
 * @param {string} label
 * @param {() => Promise<void>} work
 */
export async function busy(button, label, work) {
  if (button?.getAttribute("aria-busy") === "true") return;
  const before = button ? [...button.childNodes] : [];
  button?.setAttribute("aria-busy", "true");
  button?.replaceChildren(label);
  alarm("");
  try {
    await work();
  } catch (error) {
    alarm(error instanceof Error ? error.message : String(error));
  } finally {
    button?.removeAttribute("aria-busy");
    if (button?.textContent === label) button.replaceChildren(...before);
  }
}

/** @type {"mouse" | "touch" | "key"} */
let lastInput = "mouse";
addEventListener("pointerdown", (event) => (lastInput = event.pointerType === "mouse" ? "mouse" : "touch"), true);
addEventListener("keydown", () => (lastInput = "key"), true);

/** What the person acted with last. */
export const input = () => lastInput;

/** Whether keys mean letters just now. @param {any} target */
export const typing = (target) => target.matches?.("textarea, input:not([type=radio], [type=checkbox])") ?? false;

/** @param {string} id */
export function open(id) {
  const dialog = $(`dialog#${id}`);
  if (!dialog || dialog.open) return;
  dialog.dispatchEvent(new CustomEvent("opening"));
  dialog.showModal();
}

/** The theme, dialogs and `?`. */
export function wire() {
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const tell = () => $("#theme").setAttribute("aria-pressed", String(dark()));
  $("#theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // for this page only, then
    }
    tell();
  });
  tell();
  addEventListener("click", (event) => {
    const target = /** @type {any} */ (event.target);
    const opener = target.closest?.("[data-opens]");
    if (opener) open(opener.dataset.opens);
    if (target.closest?.("[data-closes]") || target.matches?.("dialog")) target.closest("dialog").close();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "?" && !typing(event.target) && !$("dialog[open]")) open("help");
  });
}
