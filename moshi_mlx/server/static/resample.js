// Any rate to any other, a piece at a time: a windowed sinc whose state is kept between pieces.
// A script of the audio thread's global scope, since not every browser lets worklets import modules.

const ZERO_CROSSINGS = 16;

class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.cutoff = Math.min(1, to / from) * 0.94;
    this.reach = Math.ceil(ZERO_CROSSINGS / this.cutoff);
    this.kept = new Float32Array(this.reach); // silence before the first sample
    this.at = this.reach; // of the next output sample, in input samples from the beginning of `kept`
  }

  process(input) {
    if (this.step === 1) return input;
    const x = new Float32Array(this.kept.length + input.length);
    x.set(this.kept);
    x.set(input, this.kept.length);
    const count = Math.max(0, Math.ceil((x.length - this.reach - this.at) / this.step));
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++, this.at += this.step) out[i] = this.sample(x, this.at);
    const done = Math.max(0, Math.min(x.length, Math.floor(this.at) - this.reach));
    this.kept = x.slice(done);
    this.at -= done;
    return out;
  }

  sample(x, at) {
    const first = Math.ceil(at - this.reach), last = Math.floor(at + this.reach);
    let sum = 0;
    for (let k = Math.max(0, first); k <= last && k < x.length; k++) {
      const t = (at - k) * this.cutoff;
      const window = 0.5 + 0.5 * Math.cos((Math.PI * (at - k)) / (this.reach + 1));
      sum += x[k] * window * (Math.abs(t) < 1e-9 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t));
    }
    return sum * this.cutoff;
  }
}

globalThis.Resampler = Resampler;
