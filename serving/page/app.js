/* The page: what the parts do for each other, and the keyboard. */

import { BandForm } from "./band.js";
import { ready } from "./client.js";
import { $, announce, clock, download, notice } from "./dom.js";
import { Player } from "./sound/player.js";
import { Stage } from "./stage.js";
import { forget, keep, keptTakes } from "./store.js";
import { TakeList } from "./takes.js";
import { VocalCard } from "./vocal.js";
import { mixdown, openWav, peaksOf } from "./sound/wav.js";
import { entriesOf } from "./sound/zip.js";

const LETTERS = "backline-letters";
const takes = new Map();
let heard = null, before = null, made = 0;

export const player = new Player();
const stage = new Stage(player);
const band = new BandForm({ played });
const vocalCard = new VocalCard({ used: usedVocal, limit_s: () => band.limit_s });
const list = new TakeList({ hear, keep: toggleKept, rename, saveMix, saveBand, saveStems, reuse, remove });

/** A new vocal is heard at once, alone. */
function usedVocal(vocal) {
  player.pause();
  band.vocal = vocal;
  heard = before = null;
  player.load({ vocal: vocal.track, band: null });
  player.seek(0);
  stage.present({ title: `${vocal.name}, ${clock(vocal.track.duration_s)}`, peaks: { vocal: vocal.peaks } });
  mark();
}

async function played({ zip, seed, model, fit, fits, elapsed_s, vocal }) {
  const record = {
    id: `${Date.now()}-${seed}`, name: `Take ${++made}`, zip, seed, model, fit, fits, elapsed_s, kept: false,
    vocalName: vocal.name, vocal: vocal.blob, duration_s: vocal.track.duration_s, at: Date.now(),
  };
  const take = await opened(record);
  list.add(take);
  announce(`${take.name} is here. Fit ${fit?.overall?.toFixed(2) ?? "unknown"}.`);
  await hear(take);
  // The keyboard goes on to what one wants next, unless it is busy elsewhere.
  if (document.activeElement.matches("body, #go, #cancel")) $("play").focus({ preventScroll: true });
  $("stage").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

/** A take with its tracks and waveforms, from what is kept of it. */
async function opened(record) {
  const stems = await entriesOf(record.zip);
  const deck = { vocal: await openWav(stems.get("vocal.wav")), band: await openWav(stems.get("accompaniment.wav")) };
  const peaks = record.peaks ?? { vocal: await peaksOf(deck.vocal), band: await peaksOf(deck.band) };
  const take = { ...record, deck, peaks };
  takes.set(take.id, take);
  return take;
}

/** Goes on with this take at the same place; a take that is heard already plays or pauses. */
async function hear(take) {
  if (heard === take) return stage.toggle();
  before = heard ?? (before === take ? null : before);
  heard = take;
  mark();
  stage.present({ title: `${take.name}, seed ${take.seed}`, peaks: take.peaks });
  await player.load(take.deck);
}

function mark() {
  for (const take of takes.values()) list.show(take, { heard: take === heard, before: take === before });
  $("compare").disabled = !before;
  $("compare").textContent = before ? `${heard?.name ?? "vocal"} / ${before.name}` : "A / B";
  $("compare").setAttribute("aria-label", before ? `Compare: go to ${before.name}` : "Compare with the take heard before");
}

const compare = () => { if (before) { hear(before); announce(heard.name); } };

const stored = ({ deck, ...record }) => record;

async function toggleKept(take) {
  take.kept = !take.kept;
  try {
    await (take.kept ? keep(stored(take)) : forget(take.id));
  } catch (fault) {
    take.kept = !take.kept;
    notice(`${take.name} cannot be kept: ${fault.message}`);
  }
  list.show(take);
}

async function rename(take) {
  if (take.kept) await keep(stored(take));
  mark();
  if (take === heard) $("now").textContent = `${take.name}, seed ${take.seed}`;
}

async function remove(take) {
  if (take === heard) { player.pause(); heard = null; }
  if (take === before) before = null;
  takes.delete(take.id);
  list.remove(take);
  mark();
  if (take.kept) await forget(take.id);
  notice(`${take.name} is deleted.`, "Undo", async () => {
    takes.set(take.id, take);
    if (take.kept) await keep(stored(take));
    list.add(take);
    mark();
  });
}

const file = take => take.name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "take";

async function saveMix(take) {
  notice(`Mixing ${take.name} as the faders stand.`);
  const lanes = ["vocal", "band"];
  download(await mixdown(lanes.map(lane => take.deck[lane]), lanes.map(lane => player.gain(lane))), `${file(take)}-mix.wav`);
}

function saveBand(take) { download(take.deck.band.blob, `${file(take)}-band.wav`); }
function saveStems(take) { download(take.zip, `${file(take)}-stems.zip`); }
function reuse(take) { band.seed = take.seed; }

const keys = {
  " ": () => stage.toggle(),
  ArrowLeft: () => stage.move(-5),
  ArrowRight: () => stage.move(5),
  Home: () => player.seek(0),
};
const letters = {
  m: () => stage.switch("vocal", "muted"), s: () => stage.switch("vocal", "solo"),
  M: () => stage.switch("band", "muted"), S: () => stage.switch("band", "solo"),
  l: () => player.repeat(!player.loop), x: compare, k: () => { if (heard) toggleKept(heard); },
  r: () => $("record").click(), "?": () => $("shortcuts").showModal(),
};
for (let n = 1; n <= 9; n++) letters[n] = () => { const id = list.order[n - 1]; if (id && takes.get(id) !== heard) hear(takes.get(id)); };

document.addEventListener("keydown", event => {
  const at = event.target, writes = at.matches("input:not([type=range], [type=radio], [type=checkbox]), select, textarea");
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || writes || $("shortcuts").open) return;
  // A control keeps the keys that it answers itself.
  const own = { " ": "button, summary, a, input", ArrowLeft: "input", ArrowRight: "input", Home: "input" }[event.key];
  const act = own !== undefined ? (at.matches(own) && !(event.key === " " && at.type === "range") ? null : keys[event.key]) : $("letters").checked ? letters[event.key] : null;
  if (!act) return;
  event.preventDefault();
  act();
});

$("compare").onclick = compare;
$("help").onclick = () => $("shortcuts").showModal();
$("letters").checked = localStorage.getItem(LETTERS) !== "off";
$("letters").onchange = () => localStorage.setItem(LETTERS, $("letters").checked ? "on" : "off");

let known = false; // what models there are
async function watch() {
  const now = await ready();
  $("service").className = now ? "ready" : "off";
  $("service").textContent = now ? "ready" : "not ready";
  known = now && (known || await band.look());
  setTimeout(watch, known ? 15000 : 2000);
}
watch();

/** Kept takes bring their vocal along: the next take can be played at once. */
async function restore() {
  for (const record of (await keptTakes()).sort((one, other) => one.at - other.at)) {
    list.add(await opened(record));
    made = Math.max(made, Number(/^Take (\d+)$/.exec(record.name)?.[1] ?? 0));
  }
  const newest = takes.get(list.order[0]);
  if (!newest) return;
  band.vocal = { blob: newest.vocal, name: newest.vocalName, track: newest.deck.vocal, peaks: newest.peaks.vocal };
  vocalCard.name(`${newest.vocalName}, ${clock(newest.duration_s)}`);
  await hear(newest);
}
restore().catch(fault => notice(`Kept takes cannot be read in this browser: ${fault.message}`));
