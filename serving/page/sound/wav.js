/* PCM WAV files as blobs: read by the window, so that a song of ten minutes is never in memory at once. */

export const RATE_HZ = 44100;
const HEADER_BYTES = 44;
const BLOCK = 2 ** 19;

/** One stem: 16-bit samples inside a blob. */
export class Track {
  constructor(blob, { start, channels, rate_hz, frames }) {
    Object.assign(this, { blob, start, channels, rate_hz, frames });
  }

  get duration_s() { return this.frames / this.rate_hz; }

  /** The samples of `count` frames from frame `from`, fewer at the end: a Float32Array a channel. */
  async read(from, count) {
    const bytes = 2 * this.channels, last = Math.min(this.frames, from + count);
    if (from >= last) return [];
    const packed = new Int16Array(await this.blob.slice(this.start + from * bytes, this.start + last * bytes).arrayBuffer());
    return Array.from({ length: this.channels }, (_, c) => {
      const samples = new Float32Array(last - from);
      for (let n = 0, at = c; n < samples.length; n++, at += this.channels) samples[n] = packed[at] / 32768;
      return samples;
    });
  }
}

/** The track in a WAV blob; throws what a musician can read. */
export async function openWav(blob) {
  const view = new DataView(await blob.slice(0, 65536).arrayBuffer());
  const tag = at => String.fromCharCode(...new Uint8Array(view.buffer, at, 4));
  if (view.byteLength < HEADER_BYTES || tag(0) !== "RIFF" || tag(8) !== "WAVE") throw new Error("this is not a WAV file");
  let format = null;
  for (let at = 12; at + 8 <= view.byteLength;) {
    const size = view.getUint32(at + 4, true);
    if (tag(at) === "fmt ") format = { bits: view.getUint16(at + 22, true), channels: view.getUint16(at + 10, true), rate_hz: view.getUint32(at + 12, true) };
    if (tag(at) === "data") {
      if (format?.bits !== 16) throw new Error("only WAV files of 16 bits are played");
      const start = at + 8, bytes = Math.min(size, blob.size - start);
      return new Track(blob, { start, channels: format.channels, rate_hz: format.rate_hz, frames: Math.floor(bytes / (2 * format.channels)) });
    }
    at += 8 + size + (size & 1);
  }
  throw new Error("this WAV file has no samples");
}

/** Interleaved 16-bit samples of these channels. */
export function pack(channels) {
  const packed = new Int16Array(channels[0].length * channels.length);
  channels.forEach((samples, c) => {
    for (let n = 0, at = c; n < samples.length; n++, at += channels.length) packed[at] = Math.max(-32768, Math.min(32767, Math.round(samples[n] * 32768)));
  });
  return packed;
}

/** A WAV blob around parts that `pack` made. */
export function wavOf(parts, { channels, rate_hz }) {
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0), view = new DataView(new ArrayBuffer(HEADER_BYTES));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt "); view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); view.setUint16(22, channels, true); view.setUint32(24, rate_hz, true);
  view.setUint32(28, rate_hz * channels * 2, true); view.setUint16(32, channels * 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, bytes, true);
  return new Blob([view.buffer, ...parts], { type: "audio/wav" });
}

/** Any file that the browser can decode, as a WAV blob of 44.1 kHz; decoded whole, but only while this runs. */
export async function toWav(blob) {
  const decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: Math.min(2, decoded.numberOfChannels) }, (_, c) => decoded.getChannelData(c)), parts = [];
  for (let from = 0; from < decoded.length; from += BLOCK) parts.push(pack(channels.map(samples => samples.subarray(from, from + BLOCK))));
  return wavOf(parts, { channels: channels.length, rate_hz: RATE_HZ });
}

/** The loudest sample in each of `count` equal parts of a track, 0 to 1. */
export async function peaksOf(track, count = 1200) {
  const peaks = new Float32Array(Math.min(count, Math.max(1, track.frames)));
  for (let from = 0; from < track.frames; from += BLOCK)
    for (const samples of await track.read(from, BLOCK))
      for (let n = 0; n < samples.length; n++) {
        const part = Math.floor((from + n) * peaks.length / track.frames), loud = Math.abs(samples[n]);
        if (loud > peaks[part]) peaks[part] = loud;
      }
  return peaks;
}

/** Two tracks at these gains as one stereo WAV blob, turned down where it would clip: what the faders let hear. */
export async function mixdown(tracks, gains) {
  const heard = tracks.map((track, i) => ({ track, gain: gains[i] })).filter(({ gain }) => gain > 0);
  const frames = Math.max(...tracks.map(track => track.frames));
  const mixed = async from => {
    const sum = [0, 1].map(() => new Float32Array(Math.min(BLOCK, frames - from)));
    for (const { track, gain } of heard) {
      const read = await track.read(from, BLOCK);
      if (read.length) sum.forEach((samples, c) => { const added = read[c % read.length]; for (let n = 0; n < added.length; n++) samples[n] += gain * added[n]; });
    }
    return sum;
  };
  let peak = 0;
  for (let from = 0; from < frames; from += BLOCK) for (const samples of await mixed(from)) for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
  const turn = peak > 0.999 ? 0.999 / peak : 1, parts = [];
  for (let from = 0; from < frames; from += BLOCK) parts.push(pack((await mixed(from)).map(samples => samples.map(sample => sample * turn))));
  return wavOf(parts, { channels: 2, rate_hz: RATE_HZ });
}
