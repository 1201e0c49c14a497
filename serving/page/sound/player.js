/* Vocal and band on one clock. Windows of both are read from their files a few seconds ahead and scheduled to the frame,
   so a long song costs no memory, and another take can go on at the same place without a gap. */

import { RATE_HZ } from "./wav.js";

export const LANES = ["vocal", "band"];
/** A fader at its lower end is silent. */
export const LOWEST_DB = -48;
const WINDOW = 2 * RATE_HZ;
const AHEAD = 6 * RATE_HZ;
const FADE_S = 0.02;
const LEAD_S = 0.05;
const SAFE_S = 0.01;

/** One deck (`{vocal, band}`, tracks; band may be null) playing from one place, until it is released. */
class Run {
  constructor(context, deck, buses, loop) {
    Object.assign(this, { context, deck, loop, over: false, filling: false, sources: new Set() });
    this.frames = framesOf(deck);
    this.fades = LANES.map((lane, i) => {
      const fade = new GainNode(context, { gain: 0 });
      fade.connect(buses[i]);
      return fade;
    });
  }

  /** Reads what comes first; nothing is scheduled yet. */
  async prepare(from) {
    this.next = from;
    this.first = await this.#read(from);
  }

  /** Song frame `place` sounds at frame `at` of the context's clock; frame 0 of the song, unrolled when it loops, at `origin`. */
  begin(at, place) {
    this.origin = at - place;
    this.#schedule(this.next, this.first);
    this.next += Math.min(WINDOW, this.frames - this.next);
    this.first = null;
    for (const { gain } of this.fades) gain.setValueAtTime(0, at / RATE_HZ).linearRampToValueAtTime(1, at / RATE_HZ + FADE_S);
  }

  /** The frame of the song at this frame of the clock. */
  place(at) {
    const unrolled = Math.max(0, at - this.origin);
    return this.loop ? unrolled % this.frames : Math.min(unrolled, this.frames);
  }

  async fill() {
    if (this.filling) return;
    this.filling = true;
    while (!this.over && this.next < this.context.currentTime * RATE_HZ - this.origin + AHEAD && (this.loop || this.next < this.frames)) {
      const from = this.next, place = from % this.frames;
      const buffers = await this.#read(place);
      if (!this.over) this.#schedule(from, buffers);
      this.next += Math.min(WINDOW, this.frames - place);
    }
    this.filling = false;
  }

  release(at_s) {
    this.over = true;
    for (const { gain } of this.fades) gain.cancelScheduledValues(at_s).setValueAtTime(1, at_s).linearRampToValueAtTime(0, at_s + FADE_S);
    for (const source of this.sources) source.stop(at_s + FADE_S + 0.01);
  }

  /** A buffer a lane; null where it has no sound there. */
  async #read(from) {
    const windows = await Promise.all(LANES.map(lane => this.deck[lane]?.read(from, WINDOW) ?? []));
    return windows.map(channels => {
      if (!channels.length) return null;
      const buffer = new AudioBuffer({ length: channels[0].length, numberOfChannels: channels.length, sampleRate: RATE_HZ });
      channels.forEach((samples, c) => buffer.copyToChannel(samples, c));
      return buffer;
    });
  }

  /** What is late is cut, not moved: both lanes stay on their frames. */
  #schedule(unrolled, buffers) {
    const at = this.origin + unrolled, late = Math.max(0, Math.ceil((this.context.currentTime + SAFE_S) * RATE_HZ) - at);
    buffers.forEach((buffer, i) => {
      if (!buffer || late >= buffer.length) return;
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.fades[i]);
      source.onended = () => { source.disconnect(); this.sources.delete(source); };
      this.sources.add(source);
      source.start((at + late) / RATE_HZ, late / RATE_HZ);
    });
  }
}

const framesOf = deck => deck ? Math.max(...LANES.map(lane => deck[lane]?.frames ?? 0)) : 0;

/** Transport, faders and meters. Events: `state` (plays or not, loops or not), `place` (moved while it stood), `mix`. */
export class Player extends EventTarget {
  #run = null;
  #turn = 0;
  #ticking = 0;
  #standing = 0;

  constructor(context = null) {
    super();
    this.deck = null;
    this.loop = false;
    this.playing = false;
    this.mix = Object.fromEntries(LANES.map(lane => [lane, { db: 0, muted: false, solo: false }]));
    if (context) this.#wire(context);
  }

  get duration_s() { return framesOf(this.deck) / RATE_HZ; }

  get position_s() { return (this.#run ? this.#run.place(this.context.currentTime * RATE_HZ) : this.#standing) / RATE_HZ; }

  /** What a lane is multiplied by, after fader, mute and the other's solo. */
  gain(lane) {
    const { db, muted, solo } = this.mix[lane], other = LANES.some(name => name !== lane && this.mix[name].solo);
    return muted || (other && !solo) || db <= LOWEST_DB ? 0 : 10 ** (db / 20);
  }

  set(lane, change) {
    Object.assign(this.mix[lane], change);
    if (this.context) LANES.forEach((name, i) => this.buses[i].gain.setTargetAtTime(this.gain(name), this.context.currentTime, 0.012));
    this.#say("mix");
  }

  /** The loudest sample of a lane just now, 0 to 1, after its fader. */
  level(lane) {
    if (!this.#run) return 0;
    const meter = this.meters[LANES.indexOf(lane)], heard = this.heard ??= new Float32Array(meter.fftSize);
    meter.getFloatTimeDomainData(heard);
    return heard.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
  }

  /** Another deck, at the same place; without a gap when it is playing. */
  async load(deck) {
    this.deck = deck;
    if (this.playing) return this.#start(null);
    this.#standing = this.#standing < framesOf(deck) ? this.#standing : 0;
    this.#say("place");
  }

  async play() { if (this.duration_s && !this.playing) await this.#start(this.#standing); }

  pause() {
    if (!this.playing) return;
    this.#standing = Math.round(this.position_s * RATE_HZ);
    this.#halt();
  }

  async seek(seconds) {
    const place = Math.round(Math.max(0, Math.min(seconds, this.duration_s - 0.05)) * RATE_HZ);
    this.#standing = Math.max(0, place);
    if (this.playing) await this.#start(this.#standing);
    this.#say("place");
  }

  async repeat(loop) {
    this.loop = loop;
    this.#say("state");
    if (this.playing) await this.#start(null);
  }

  #say(name) { this.dispatchEvent(new Event(name)); }

  #wire(context) {
    this.context = context;
    this.buses = LANES.map(lane => new GainNode(context, { gain: this.gain(lane) }));
    this.meters = LANES.map(() => new AnalyserNode(context, { fftSize: 1024 }));
    this.buses.forEach((bus, i) => bus.connect(this.meters[i]).connect(context.destination));
  }

  /** Goes to `place`, or on where it is when that is null; the old run is faded into the new one. */
  async #start(place) {
    const turn = ++this.#turn;
    if (!this.context) this.#wire(new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" }));
    this.playing = true;
    if (this.context.state === "suspended") await this.context.resume();
    const run = new Run(this.context, this.deck, this.buses, this.loop), old = place === null ? this.#run : null;
    let from, now, at;
    do {
      from = place ?? (old ? Math.floor(old.place(this.context.currentTime * RATE_HZ)) : this.#standing);
      if (from >= run.frames) { from = 0; place = 0; }
      await run.prepare(from);
      if (turn !== this.#turn) return;
      now = Math.ceil((this.context.currentTime + LEAD_S) * RATE_HZ);
      at = place === null && old ? old.place(now) : from;
    } while (at < from || at - from > WINDOW / 2); // the song has begun anew, or reading took too long
    run.begin(now, at);
    this.#run?.release(now / RATE_HZ);
    this.#run = run;
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => this.#tick(), 250);
    this.#tick();
    this.#say("state");
  }

  #tick() {
    const run = this.#run;
    if (!run) return;
    if (!run.loop && run.place(this.context.currentTime * RATE_HZ) >= run.frames) {
      this.#standing = 0;
      this.#halt();
    } else run.fill();
  }

  #halt() {
    this.#turn++;
    clearInterval(this.#ticking);
    this.playing = false;
    this.#run?.release(this.context.currentTime);
    this.#run = null;
    // The sound card rests while nobody listens.
    setTimeout(() => { if (!this.playing) this.context?.suspend(); }, 200);
    this.#say("state");
    this.#say("place");
  }
}
