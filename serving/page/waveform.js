/* One lane's waveform: drawn once in each colour; what has been played is the second drawing, cut at the playhead by CSS. */

const BAR = 3, GAP = 1;

export class Waveform {
  #peaks = null;

  constructor(host) {
    this.host = host;
    this.canvases = ["ahead", "played"].map(name => Object.assign(document.createElement("canvas"), { className: name }));
    host.append(...this.canvases);
    new ResizeObserver(() => this.draw()).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(peaks) {
    this.#peaks = peaks;
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = this.host;
    for (const canvas of this.canvases) {
      canvas.width = clientWidth * ratio;
      canvas.height = clientHeight * ratio;
      if (!this.#peaks || !clientWidth) continue;
      const paint = canvas.getContext("2d"), bars = Math.floor(clientWidth / (BAR + GAP)), loudest = Math.max(1e-3, ...this.#peaks);
      paint.scale(ratio, ratio);
      paint.fillStyle = getComputedStyle(canvas).color;
      for (let bar = 0; bar < bars; bar++) {
        const from = Math.floor(bar * this.#peaks.length / bars), to = Math.max(from + 1, Math.floor((bar + 1) * this.#peaks.length / bars));
        let peak = 0;
        for (let i = from; i < to; i++) peak = Math.max(peak, this.#peaks[i]);
        const height = Math.max(2, peak / loudest * clientHeight * 0.94);
        paint.beginPath();
        paint.roundRect(bar * (BAR + GAP), (clientHeight - height) / 2, BAR, height, 1.5);
        paint.fill();
      }
    }
  }
}
