// Follows a round that is being drawn: server-sent events, again after each cut, and asking every two seconds where
// they do not work. Each message is the whole round, so nothing is missed.

import { once } from "./api.js";

const OPEN = ["queued", "running"];

/**
 * @param {string} roundId
 * @param {{onRound: (round: any) => void, onAway: (away: boolean) => void}} told
 */
export function follow(roundId, { onRound, onAway }) {
  const url = `/v1/rounds/${roundId}`;
  let failures = 0;
  let over = false;

  /** @param {any} round */
  function take(round) {
    if (over) return;
    failures = 0;
    onAway(false);
    over = !OPEN.includes(round.status);
    onRound(round);
  }

  function listen() {
    const source = new EventSource(`${url}/events`);
    source.addEventListener("round", (event) => take(JSON.parse(event.data)));
    source.addEventListener("end", () => source.close());
    source.onerror = () => {
      source.close();
      if (over) return;
      failures += 1;
      onAway(failures > 1);
      setTimeout(failures < 3 ? listen : ask, 300 * 2 ** failures);
    };
    addEventListener("pagehide", () => source.close(), { once: true });
  }

  async function ask() {
    try {
      take(await once("GET", url));
    } catch {
      onAway(true);
    }
    if (!over) setTimeout(ask, 2000);
  }

  listen();
}
