/* The card of the vocal: drop, choose or record one. */

import { $, clock, say } from "./dom.js";
import { Recorder } from "./sound/recorder.js";
import { openWav, peaksOf, toWav } from "./sound/wav.js";

const SERVER_READS = /\.(wav|flac|mp3|ogg|oga)$/i;
const INPUT = "backline-input";
const QUIET_DB = -40, LOUD_DB = -1;

/** `used({blob, name, track, peaks})` is called with each new vocal; `limit_s()` is the longest that the service takes. */
export class VocalCard {
  constructor({ used, limit_s }) {
    Object.assign(this, { used, limit_s, loudest: 0, uses: 0 });
    this.recorder = new Recorder((peak, recorded_s) => this.#heard(peak, recorded_s));
    $("choose").onclick = () => $("file").click();
    $("file").onchange = () => { const [file] = $("file").files; if (file) this.use(file, file.name); $("file").value = ""; };
    $("example").onclick = () => this.#example();
    $("record").onclick = () => this.booth(!this.recorder.open);
    $("leave").onclick = () => this.recorder.recording ? this.#begin() : this.booth(false);
    $("booth").onkeydown = event => { if (event.key === "Escape") { this.booth(false); $("record").focus(); } };
    $("roll").onclick = () => this.#roll();
    $("input").onchange = () => { localStorage.setItem(INPUT, $("input").value); this.#listen(); };
    this.#takeDrops();
  }

  /** Takes a file: the player gets it as WAV; the service gets it as it is, where it can read that. */
  async use(blob, name) {
    this.uses++;
    say($("vocal-problem"), "");
    let wav;
    try {
      wav = await toWav(blob);
    } catch {
      return say($("vocal-problem"), `${name} cannot be read as audio. Choose a WAV, FLAC, MP3, OGG, M4A or WebM file.`);
    }
    const track = await openWav(wav);
    if (!track.frames) return say($("vocal-problem"), `${name} holds no sound.`);
    if (track.duration_s > this.limit_s()) return say($("vocal-problem"), `${name} lasts ${clock(track.duration_s)}; this service takes up to ${clock(this.limit_s())}.`);
    const sent = SERVER_READS.test(name) ? { blob, name } : { blob: wav, name: `${name.replace(/\.\w+$/, "")}.wav` };
    this.used({ ...sent, track, peaks: await peaksOf(track) });
    this.name(`${name}, ${clock(track.duration_s)}`);
  }

  async #example() {
    const before = this.uses;
    say($("vocal-problem"), "");
    let example;
    try {
      const answer = await fetch("page/example.ogg");
      if (!answer.ok) throw new Error(answer.statusText);
      example = await answer.blob();
    } catch {
      return say($("vocal-problem"), "The example did not arrive. Is the service running?");
    }
    if (this.uses === before) await this.use(example, "example.ogg"); // else another vocal was chosen meanwhile
  }

  name(text) {
    say($("vocal-name"), text);
    $("vocal").classList.add("chosen");
    $("choose").textContent = "Another file";
  }

  /** Opens or closes the microphone. */
  async booth(open) {
    if (!open) {
      this.recorder.close();
      this.#rolling(false);
      $("booth").hidden = true;
      $("record").setAttribute("aria-expanded", "false");
      if (document.activeElement === document.body) $("record").focus();
      return;
    }
    await this.#listen();
  }

  async #listen() {
    say($("vocal-problem"), "");
    this.#rolling(false);
    try {
      await this.recorder.start(localStorage.getItem(INPUT));
    } catch (fault) {
      localStorage.removeItem(INPUT); // the chosen one may be unplugged
      this.booth(false);
      const remedy = window.isSecureContext ? "Allow it in the browser, or choose a file." : "Browsers lend it only to pages from this machine or over HTTPS.";
      return say($("vocal-problem"), `The microphone cannot be used (${fault.message}). ${remedy}`);
    }
    const inputs = await this.recorder.inputs();
    $("input").replaceChildren(...inputs.map(({ deviceId, label, used }, i) => new Option(label || `Microphone ${i + 1}`, deviceId, used, used)));
    $("booth").hidden = false;
    $("record").setAttribute("aria-expanded", "true");
    $("roll").focus();
  }

  async #roll() {
    if (!this.recorder.recording) return this.#begin();
    const wav = this.recorder.stop();
    this.#rolling(false);
    this.booth(false);
    $("record").focus();
    await this.use(wav, "recording.wav");
  }

  /** Starts, or starts over. */
  #begin() {
    this.loudest = 0;
    this.recorder.record();
    this.#rolling(true);
  }

  #rolling(on) {
    $("leave").textContent = on ? "Start over" : "Close";
    $("roll").textContent = on ? "Stop" : "Start recording";
    $("booth").classList.toggle("rolling", on);
    $("booth-clock").textContent = "0:00";
    $("booth-hint").classList.remove("problem");
    $("booth-hint").textContent = on ? "Recording." : "Sing as loud as you will, and look at the level.";
  }

  #heard(peak, recorded_s) {
    const db = Math.max(-60, 20 * Math.log10(peak || 1e-9));
    $("level").firstElementChild.style.setProperty("--level", (db + 60) / 60);
    $("level").classList.toggle("loud", db > LOUD_DB);
    $("level").setAttribute("aria-valuenow", db.toFixed(0));
    if (!this.recorder.recording) return;
    this.loudest = Math.max(this.loudest, peak);
    $("booth-clock").textContent = clock(recorded_s);
    const loudest_db = 20 * Math.log10(this.loudest || 1e-9);
    const hint = loudest_db > LOUD_DB ? "Too loud: it is distorted. Turn the input down and start over." : recorded_s > 3 && loudest_db < QUIET_DB ? "Hardly anything is heard. Is this the right microphone?" : "Recording.";
    if ($("booth-hint").textContent !== hint) $("booth-hint").textContent = hint;
    $("booth-hint").classList.toggle("problem", hint !== "Recording.");
    if (recorded_s >= this.limit_s() - 1) this.#roll();
  }

  #takeDrops() {
    const files = event => [...event.dataTransfer?.types ?? []].includes("Files");
    let inside = 0;
    const mark = change => { inside = change; $("drop").classList.toggle("over", inside > 0); };
    document.addEventListener("dragenter", event => { if (files(event)) { event.preventDefault(); mark(inside + 1); } });
    document.addEventListener("dragleave", event => { if (files(event)) mark(Math.max(0, inside - 1)); });
    document.addEventListener("dragover", event => { if (files(event)) event.preventDefault(); });
    document.addEventListener("drop", event => {
      if (!files(event)) return;
      event.preventDefault();
      mark(0);
      const [file] = event.dataTransfer.files;
      if (file) this.use(file, file.name);
    });
  }
}
