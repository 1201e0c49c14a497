/* The microphone, uncompressed and without the browser's processing for calls. */

import { RATE_HZ, wavOf } from "./wav.js";

export class Recorder {
  #parts = null;

  /** `heard(peak, recorded_s)` is called about twenty times a second while the microphone is open. */
  constructor(heard) {
    this.heard = heard;
    this.stream = null;
  }

  get open() { return this.stream !== null; }
  get recording() { return this.#parts !== null; }

  /** Throws the browser's own error when the microphone is refused or missing. */
  async start(deviceId) {
    this.close();
    const wanted = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    if (deviceId) wanted.deviceId = { exact: deviceId };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.stream = stream;
    this.context = new AudioContext({ sampleRate: RATE_HZ });
    try {
      await this.#listen(stream);
    } catch (fault) {
      if (fault.name !== "NotSupportedError") throw fault;
      // Some browsers give a microphone only to a context of its own rate; the recording is resampled when it is used.
      await this.context.close();
      this.context = new AudioContext();
      await this.#listen(stream);
    }
  }

  async #listen(stream) {
    await this.context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    const capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => {
      if (this.stream !== stream) return;
      this.#parts?.push(data.packet);
      this.heard(data.peak, this.#parts ? this.#parts.length * data.packet.length / this.context.sampleRate : 0);
    };
    this.context.createMediaStreamSource(stream).connect(capture);
  }

  /** The inputs to choose from, and the one in use; named only once the microphone was allowed. */
  async inputs() {
    const devices = await navigator.mediaDevices.enumerateDevices(), used = this.stream?.getAudioTracks()[0].getSettings().deviceId;
    return devices.filter(device => device.kind === "audioinput").map(({ deviceId, label }) => ({ deviceId, label, used: deviceId === used }));
  }

  record() { this.#parts = []; }

  /** What was recorded since `record`, as WAV. */
  stop() {
    const parts = this.#parts;
    this.#parts = null;
    return wavOf(parts, { channels: 1, rate_hz: this.context.sampleRate });
  }

  close() {
    this.#parts = null;
    this.stream?.getTracks().forEach(track => track.stop());
    this.stream = null;
    this.context?.close();
    this.context = null;
  }
}
