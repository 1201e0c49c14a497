/* Where one listens: waveforms with one playhead, faders, transport. */

import { $, announce, clock, pressed, use } from "./dom.js";
import { LANES, LOWEST_DB } from "./sound/player.js";
import { Waveform } from "./waveform.js";

const STEP_S = 5, PAGE_S = 15;
const NAMES = { vocal: "Vocal", band: "Band" };

export class Stage {
  #lanes = {};

  constructor(player) {
    this.player = player;
    for (const lane of LANES) this.#lanes[lane] = this.#lane(lane);
    $("play").onclick = () => this.toggle();
    $("to-start").onclick = () => player.seek(0);
    $("loop").onclick = () => player.repeat(!player.loop);
    for (const event of ["state", "place", "mix"]) player.addEventListener(event, () => this.show());
    this.#drag();
    $("timeline").onkeydown = event => this.#key(event);
    this.show();
  }

  /** Shows the waveforms of what the player has loaded, and says what it is. */
  present({ title, peaks }) {
    $("now").textContent = title;
    for (const lane of LANES) {
      this.#lanes[lane].waveform.show(peaks[lane] ?? null);
      this.#lanes[lane].host.classList.toggle("empty", !peaks[lane]);
    }
    this.show();
  }

  toggle() { return this.player.playing ? this.player.pause() : this.player.play(); }

  move(by_s) { return this.player.seek(this.player.position_s + by_s); }

  switch(lane, what) {
    const on = !this.player.mix[lane][what];
    this.player.set(lane, { [what]: on });
    announce(`${NAMES[lane]} ${what === "muted" ? (on ? "muted" : "not muted") : (on ? "solo" : "not solo")}`);
  }

  show() {
    const { player } = this;
    $("play").disabled = !player.duration_s;
    $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
    use($("play"), player.playing ? "pause" : "play");
    pressed($("loop"), player.loop);
    for (const lane of LANES) {
      const { fader, db, mute, solo, host } = this.#lanes[lane], mix = player.mix[lane], words = inWords(mix.db);
      fader.value = mix.db;
      fader.setAttribute("aria-valuetext", words);
      db.textContent = words;
      pressed(mute, mix.muted);
      pressed(solo, mix.solo);
      host.classList.toggle("silent", player.gain(lane) === 0);
    }
    this.#place();
    if (player.playing) this.#frame();
    else for (const lane of LANES) this.#lanes[lane].meter.style.setProperty("--level", 0);
  }

  #frame = () => {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.#place();
      for (const lane of LANES) this.#lanes[lane].meter.style.setProperty("--level", meterShare(this.player.level(lane)));
      if (this.player.playing) this.#frame();
    });
  };

  #place() {
    const { position_s, duration_s } = this.player, text = `${clock(position_s)} / ${clock(duration_s)}`, slider = $("timeline");
    slider.style.setProperty("--played", duration_s ? Math.min(1, position_s / duration_s) : 0);
    if ($("clock").textContent === text) return;
    $("clock").textContent = text;
    slider.setAttribute("aria-valuemax", Math.round(duration_s));
    slider.setAttribute("aria-valuenow", Math.round(position_s));
    slider.setAttribute("aria-valuetext", `${clock(position_s)} of ${clock(duration_s)}`);
  }

  #lane(lane) {
    const box = document.querySelector(`.lane[data-lane=${lane}]`), host = document.querySelector(`.wave[data-lane=${lane}]`);
    box.append($("lane").content.cloneNode(true));
    const [name, fader, db, mute, solo, meter] = [".lane-name", ".fader", ".db", ".mute", ".solo", ".meter i"].map(found => box.querySelector(found));
    name.textContent = NAMES[lane];
    fader.setAttribute("aria-label", `${NAMES[lane]} level`);
    fader.oninput = () => this.player.set(lane, { db: Number(fader.value) });
    fader.ondblclick = () => this.player.set(lane, { db: 0 });
    mute.setAttribute("aria-label", `Mute the ${lane}`);
    mute.onclick = () => this.switch(lane, "muted");
    solo.setAttribute("aria-label", `Solo the ${lane}`);
    solo.onclick = () => this.switch(lane, "solo");
    return { fader, db, mute, solo, meter, host, waveform: new Waveform(host) };
  }

  #drag() {
    const slider = $("timeline");
    const go = event => {
      const { left, width } = slider.getBoundingClientRect();
      this.player.seek((event.clientX - left) / width * this.player.duration_s);
    };
    slider.onpointerdown = event => { if (event.button === 0) { slider.setPointerCapture(event.pointerId); go(event); } };
    slider.onpointermove = event => { if (slider.hasPointerCapture(event.pointerId)) go(event); };
  }

  #key(event) {
    const by = { ArrowLeft: -STEP_S, ArrowDown: -STEP_S, ArrowRight: STEP_S, ArrowUp: STEP_S, PageDown: -PAGE_S, PageUp: PAGE_S }[event.key];
    if (by) this.move(by);
    else if (event.key === "Home") this.player.seek(0);
    else if (event.key === "End") this.player.seek(this.player.duration_s);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

const inWords = db => db <= LOWEST_DB ? "silent" : `${db > 0 ? "+" : db < 0 ? "−" : ""}${Math.abs(db).toFixed(Number.isInteger(db) ? 0 : 1)} dB`;

/* −48 to 0 dB over the meter's width. */
const meterShare = level => Math.max(0, Math.min(1, 1 + 20 * Math.log10(level || 1e-9) / 48));
