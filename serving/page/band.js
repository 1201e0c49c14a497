/* The form: asks the service for a band, shows how far it is, and what went wrong in words. */

import { accompany, key, models, Refusal } from "./client.js";
import { $, announce, clock, say } from "./dom.js";

const MOST_CANDIDATES = 8;
const MOST_TRIES = 20;
const BUSY = { 429: "You have as many bands in work as this service allows one caller.", 503: "The service is busy." };
const FULL_SHARE = 0.25; // how often a screen reader hears of the progress

export class BandForm {
  #vocal = null;
  #working = null;
  #waiting = 0;
  #tries = 0;
  #models = [];

  /** `played({zip, seed, model, fit, fits, elapsed_s, vocal})` is called with each answer. */
  constructor({ played }) {
    this.played = played;
    $("candidates").querySelector(".segments").append(...Array.from({ length: MOST_CANDIDATES }, (_, i) => segment(i + 1)));
    $("band").onsubmit = event => { event.preventDefault(); this.#tries = 0; this.ask(); };
    $("cancel").onclick = () => this.#working?.abort(new DOMException("cancelled", "AbortError"));
    $("retry").onclick = () => this.ask();
    $("give-up").onclick = () => { this.#quiet(); $("go").focus(); };
    $("key").onchange = () => { key.set($("key").value); this.look(); };
  }

  set vocal(vocal) {
    this.#vocal = vocal;
    $("go").disabled = !vocal || this.#working !== null;
  }

  get limit_s() { return this.#models.length ? Math.min(...this.#models.map(model => model.max_duration_s)) : 600; }

  set seed(seed) {
    $("seed").value = seed;
    $("seed").focus();
  }

  /** What models there are, and whether that is known now; asks for a key where one is wanted. */
  async look() {
    try {
      this.#models = await models();
    } catch (fault) {
      if (fault.status !== 401) return false; // asleep or busy: it is asked again
      this.#wantKey(); // with it, it is asked again
      return true;
    }
    const chosen = $("model").value;
    $("model").replaceChildren(new Option("the service's own", ""), ...this.#models.map(({ id }) => new Option(id, id, false, id === chosen)));
    $("model-field").hidden = this.#models.length < 2;
    const [{ default_steps, default_guidance }] = this.#models;
    $("steps").placeholder = default_steps;
    $("guidance").placeholder = default_guidance;
    return true;
  }

  async ask() {
    if (!this.#vocal || this.#working) return;
    this.#quiet();
    const vocal = this.#vocal, working = this.#working = new AbortController(), start = performance.now();
    const fields = { candidates: document.forms.band.elements.candidates.value, model: $("model-field").hidden ? "" : $("model").value };
    for (const name of ["seed", "steps", "guidance"]) fields[name] = $(name).value;
    this.#busy(true);
    const progress = new Progress(start);
    try {
      const answer = await accompany({ vocal, fields, signal: working.signal, told: told => progress.tell(told) });
      await this.played({ ...answer, vocal, elapsed_s: (performance.now() - start) / 1000 });
    } catch (fault) {
      this.#refused(fault);
    } finally {
      progress.stop();
      this.#working = null;
      this.#busy(false);
    }
  }

  #busy(on) {
    $("go").disabled = on || !this.#vocal;
    const focused = document.activeElement;
    $("cancel").hidden = !on;
    $("work").hidden = !on;
    // The keyboard stays where the work is.
    if (on && focused === $("go")) $("cancel").focus();
    if (!on && (focused === $("cancel") || focused === document.body)) $("go").focus({ preventScroll: true });
  }

  #quiet() {
    clearInterval(this.#waiting);
    say($("problem"), "");
    $("again").hidden = true;
  }

  #refused(fault) {
    if (fault.name === "AbortError") return announce("Cancelled");
    if (!(fault instanceof Refusal)) return say($("problem"), `The answer cannot be played: ${fault.message}`);
    if (fault.status === 401) {
      say($("problem"), key.get() ? "This key is not known to the service." : "This service asks for a key.");
      return this.#wantKey();
    }
    if (fault.status in BUSY && ++this.#tries < MOST_TRIES) return this.#wait(fault);
    say($("problem"), fault.message);
    if (fault.status === 0 || fault.status >= 500) { $("again").hidden = false; $("give-up").hidden = true; }
  }

  /** Busy: counts down what the service said, then asks again unless told otherwise. */
  #wait(fault) {
    const until = performance.now() + 1000 * (fault.retryAfter_s ?? 5);
    const tick = () => {
      const left_s = Math.ceil((until - performance.now()) / 1000);
      if (left_s <= 0) return this.ask();
      // Said to a screen reader once, counted for the eye.
      $("problem").firstElementChild.textContent = `${left_s} s`;
    };
    $("problem").replaceChildren(`${BUSY[fault.status]} It is asked again in `, document.createElement("span"), ".");
    $("problem").hidden = false;
    $("again").hidden = $("give-up").hidden = false;
    tick();
    this.#waiting = setInterval(tick, 250);
  }

  #wantKey() {
    $("key-field").hidden = false;
    $("key").focus();
  }
}

function segment(count) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "candidates", value: count, checked: count === 1, defaultChecked: count === 1 });
  const text = Object.assign(document.createElement("span"), { textContent: count });
  label.append(input, text);
  return label;
}

/** The bar and its line of words. */
class Progress {
  #spoken = null;
  #told = { state: "sending", share: 0 };

  constructor(start) {
    this.start = start;
    this.ticking = setInterval(() => this.show(), 500);
    this.show();
  }

  tell(told) {
    this.#told = told;
    this.show();
  }

  show() {
    const { state, share, steps_done, steps, queue_position } = this.#told, bar = $("progress");
    let text = "The band is playing", part = null;
    if (state === "sending") [text, part] = ["Sending the vocal", share];
    else if (state === "queued") text = queue_position ? `Waiting, place ${queue_position} in the queue` : "Waiting for its turn";
    else if (state === "done") [text, part] = ["Bringing it over", 1];
    else if (state === "running" && steps) [text, part] = [steps_done < steps ? `The band is playing, step ${steps_done} of ${steps}` : "Listening to how it fits", steps_done / steps];
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
    $("progress-text").textContent = `${text}, ${clock((performance.now() - this.start) / 1000)}`;
    const spoken = `${state}${state === "running" && part !== null ? Math.floor(part / FULL_SHARE) : ""}`;
    if (spoken !== this.#spoken && state !== "unknown") announce(text);
    this.#spoken = spoken;
  }

  stop() { clearInterval(this.ticking); }
}
