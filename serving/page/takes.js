/* The list of takes: hear, name, keep, save, remove. What a take does is told by whoever made the list. */

import { $, clock, pressed } from "./dom.js";

/** What composed bands reach on songs that nothing was trained on (model/weights/README.md): the mark on each bar. */
const COMPOSED = { harmony: 0.79, rhythm: 0.48, overall: 0.53 };
const SCORES = [["Harmony", "harmony"], ["Rhythm", "rhythm"], ["Overall", "overall"]];

/** How a score compares with that of composed bands. */
export function inWords(value, name) {
  if (value === null || value === undefined) return "not heard";
  const share = value / COMPOSED[name];
  return share >= 0.9 ? "tight" : share >= 0.6 ? "good" : share >= 0.3 ? "loose" : "off";
}

export class TakeList {
  #items = new Map();

  /** `doing` answers hear, keep, rename, saveMix, saveBand, saveStems, reuse, remove; each gets the take. */
  constructor(doing) { this.doing = doing; }

  add(take) {
    const item = $("take").content.firstElementChild.cloneNode(true), part = name => item.querySelector(name);
    item.dataset.take = take.id;
    part(".name").value = take.name;
    part(".name").onchange = () => {
      take.name = part(".name").value.trim() || take.name;
      this.doing.rename(take);
      this.show(take);
    };
    part(".name").onkeydown = event => {
      if (event.key === "Escape") part(".name").value = take.name;
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault(); // else Enter presses the button that has the focus by then
      part(".hear").focus();
    };
    part(".about").textContent = about(take);
    part(".scores").append(...SCORES.map(([title, name]) => score(title, name, take.fit?.[name])));
    const clicks = { hear: "hear", keep: "keep", "save-mix": "saveMix", "save-band": "saveBand", "save-stems": "saveStems", reuse: "reuse", remove: "remove" };
    for (const [name, what] of Object.entries(clicks)) part(`.${name}`).onclick = () => this.doing[what](take);
    this.#items.set(take.id, item);
    this.show(take);
    $("list").prepend(item);
    this.#hint();
  }

  /** The state of a take that may have changed. */
  show(take, { heard = null, before = null } = {}) {
    const item = this.#items.get(take.id), part = name => item.querySelector(name);
    pressed(part(".keep"), take.kept);
    part(".keep span").textContent = take.kept ? "Kept" : "Keep";
    part(".name").value = take.name;
    part(".name").setAttribute("aria-label", `Name of ${take.name}`);
    const named = { hear: "Hear", keep: "Keep", "save-mix": "Save the mix of", "save-band": "Save the band of", "save-stems": "Save the stems of", reuse: "Use the seed of", remove: "Delete" };
    for (const [name, what] of Object.entries(named)) part(`.${name}`).setAttribute("aria-label", `${what} ${take.name}`);
    if (heard === null) return;
    pressed(part(".hear"), heard);
    item.classList.toggle("heard", heard);
    item.classList.toggle("before", before);
  }

  remove(take) {
    const item = this.#items.get(take.id), next = item.nextElementSibling ?? item.previousElementSibling;
    const focused = item.contains(document.activeElement);
    item.remove();
    this.#items.delete(take.id);
    if (focused) (next?.querySelector(".hear") ?? $("choose")).focus();
    this.#hint();
  }

  #hint() { $("takes-hint").textContent = this.#items.size ? "keep those to come back to; the mark on a bar: composed bands" : "each band that is played for your vocal comes here"; }

  /** The ids as they stand, newest first. */
  get order() { return [...$("list").children].map(item => item.dataset.take); }
}

function about({ seed, model, vocalName, duration_s, elapsed_s, fits }) {
  const best = fits?.length > 1 ? `best of ${fits.length} (${fits.map(fit => fit.overall?.toFixed(2) ?? "–").join(", ")})` : "";
  return [`seed ${seed}`, best, `${vocalName}, ${clock(duration_s)}`, `${model} in ${elapsed_s.toFixed(1)} s`].filter(Boolean).join(" · ");
}

function score(title, name, value) {
  const shown = value === null || value === undefined ? "–" : value.toFixed(2), row = document.createElement("div");
  const [term, number, words, bar, fill] = ["dt", "dd", "dd", "dd", "i"].map(tag => document.createElement(tag));
  term.textContent = title;
  number.textContent = shown;
  number.className = "number";
  words.textContent = inWords(value, name);
  words.className = "words";
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true"); // the number and the words say it
  fill.style.setProperty("--score", value ?? 0);
  bar.style.setProperty("--composed", COMPOSED[name]);
  bar.title = `the line: composed bands, ${COMPOSED[name]}`;
  bar.append(fill);
  row.append(term, number, words, bar);
  return row;
}
