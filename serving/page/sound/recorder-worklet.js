/* Runs on the audio thread: one channel of 16-bit samples in packets, and how loud each was. */

const PACKET = 2048;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.packet = new Int16Array(PACKET);
    this.filled = 0;
    this.peak = 0;
  }

  process([channels]) {
    if (!channels.length) return true;
    for (let n = 0; n < channels[0].length; n++) {
      let sample = 0;
      for (const channel of channels) sample += channel[n] / channels.length;
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.packet[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled === PACKET) {
        this.port.postMessage({ packet: this.packet, peak: this.peak }, [this.packet.buffer]);
        this.packet = new Int16Array(PACKET);
        this.filled = this.peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
