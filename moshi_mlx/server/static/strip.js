// The last seconds of both voices: the user's above the line, Moshi's below, time going by from right to left.

const BAR = 40, WIDTH = 3, PITCH = 6, KEPT = 700;

export class Strip {
  constructor(canvas) {
    this.canvas = canvas;
    this.bars = { you: [], moshi: [] };
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.colours = {};
    new ResizeObserver(() => this.size()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.size());
    this.size();
  }

  size() {
    const { clientWidth, clientHeight } = this.canvas, scale = devicePixelRatio || 1;
    this.canvas.width = clientWidth * scale;
    this.canvas.height = clientHeight * scale;
    this.scale = scale;
    const style = getComputedStyle(document.documentElement);
    for (const name of ["you", "moshi", "line"]) this.colours[name] = style.getPropertyValue(`--${name}`);
    this.draw();
  }

  // 80 ms of one side, to be heard `delay` ms from now. Bars follow each other like the sound does, not like its messages.
  add(side, samples, delay = 0) {
    const bars = this.bars[side], piece = samples.length / 2, due = performance.now() + delay - BAR;
    const next = bars.length ? bars.at(-1).at + BAR : due;
    const at = due - next > 400 ? due : next + Math.max(-0.3 * BAR, 0.05 * (due - next));
    for (const i of [0, 1]) bars.push({ at: at + i * BAR, level: level(samples.subarray(i * piece, (i + 1) * piece)) });
    if (bars.length > KEPT) bars.splice(0, bars.length - KEPT);
  }

  run(on) {
    this.running = on;
    if (on && !this.frame) this.tick();
  }

  tick() {
    this.frame = this.running ? requestAnimationFrame(() => this.tick()) : null;
    const now = performance.now();
    if (this.still.matches && now - (this.drawn ?? 0) < 1000) return;
    this.drawn = now;
    this.draw(now);
  }

  draw(now = this.last ?? performance.now()) {
    this.last = now;
    const context = this.canvas.getContext("2d");
    const { clientWidth: width, clientHeight: height } = this.canvas, middle = height / 2;
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const right = width - 24, left = Math.min(190, width * 0.3);
    // Silence is a row of dots.
    context.fillStyle = this.colours.line;
    const shift = this.running ? ((now / BAR) * PITCH) % PITCH : 0;
    for (let x = right - shift; x > left; x -= PITCH) {
      context.globalAlpha = Math.min(1, (x - left) / 120);
      context.fillRect(x, middle - 1, 2, 2);
    }
    for (const [side, sign] of [["you", -1], ["moshi", 1]]) {
      context.fillStyle = this.colours[side];
      for (const bar of this.bars[side]) {
        const x = right - ((now - bar.at) / BAR) * PITCH;
        if (x < left || x > right + 12 || bar.level < 0.03) continue;
        const tall = 2 + bar.level * (middle - 20);
        context.globalAlpha = Math.min(1, (x - left) / (width * 0.3));
        context.beginPath();
        context.roundRect(x, sign > 0 ? middle + 4 : middle - 4 - tall, WIDTH, tall, WIDTH / 2);
        context.fill();
      }
    }
    context.globalAlpha = 1;
  }
}

export function decibels(samples) {
  let power = 0;
  for (const x of samples) power += x * x;
  return Math.max(-60, 10 * Math.log10(power / Math.max(1, samples.length) + 1e-9));
}

export const share = (db) => Math.max(0, Math.min(1, (db + 54) / 48));
const level = (samples) => share(decibels(samples));
