// Talks to the studio. What is sent carries an id made once, so it can be sent again until there is an answer.

export class Failed extends Error {
  /**
   * @param {string} message in plain words
   * @param {number} status of HTTP; 0: no answer
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const newId = () => crypto.randomUUID();

/** Whether the same request may succeed later. @param {number} status */
export const passing = (status) => status === 0 || status === 429 || status >= 502;

const AWAY = "The studio does not answer. Nothing is lost; try again in a moment.";

/**
 * One request, once.
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @returns {Promise<any>} the answer's JSON; raises Failed, with `wait` in seconds where the server asks for it
 */
export async function once(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      keepalive: path === "/v1/events", // what was done last gets there although the page goes
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Failed(AWAY, 0);
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const told = answer?.error?.message;
  const message = told ? told[0].toUpperCase() + told.slice(1) + (/[.!?]$/.test(told) ? "" : ".") : AWAY;
  const failed = new Failed(message, response.ok ? 0 : response.status);
  throw Object.assign(failed, { wait: Number(response.headers.get("Retry-After")) || 0 });
}

/**
 * A request, again under the same ids while the network or the server is away: about 20 seconds.
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @param {number} [tries]
 */
export async function send(method, path, body, tries = 6) {
  for (let turn = 1; ; turn++) {
    try {
      return await once(method, path, body);
    } catch (error) {
      const failed = /** @type {Failed & {wait?: number}} */ (error);
      if (turn >= tries || !passing(failed.status)) throw failed;
      await pause(Math.max(failed.wait ?? 0, Math.min(0.4 * 2 ** turn, 8)));
    }
  }
}

/** @param {number} seconds */
export const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
