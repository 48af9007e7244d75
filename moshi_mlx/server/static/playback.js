// The loudspeaker's end of the audio thread: a buffer just long enough for what network and model are late.
// It starts at 100 ms, grows by what was missing when it ran dry, and gives time back in Moshi's pauses.

const START = 0.1, LONGEST_HOLD = 0.3, MOST = 0.4, SPARE = 0.06, FADE = 0.005;
const SHRINK_SECONDS = 1, REPORT_SECONDS = 0.5, SILENCE = 0.004;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(24000, sampleRate);
    this.ring = new Float32Array(sampleRate * 4);
    this.fade = Math.round(FADE * sampleRate);
    this.drops = this.underruns = this.reported = 0;
    this.clear();
    this.port.onmessage = ({ data }) => (data === "clear" ? this.clear() : this.write(data));
  }

  clear() {
    this.read = this.written = 0;
    this.hold = START * sampleRate;
    this.playing = this.begun = false;
    this.missing = 0;
    this.low = Infinity;
    this.watched = this.excess = 0;
    this.faded = 0; // samples of the fade-in done
  }

  get level() {
    return this.written - this.read;
  }

  at(position) {
    return this.ring[position % this.ring.length];
  }

  write(samples) {
    for (const x of this.resampler.process(samples)) this.ring[this.written++ % this.ring.length] = x;
    if (this.level > MOST * sampleRate) this.skip(Math.round(this.level - this.hold));
  }

  // Leave out samples: the end of what was to come fades into what comes now.
  skip(count) {
    const from = this.read;
    // Silence that is left out is nothing lost.
    for (let i = 0; i < count; i++) if (Math.abs(this.at(from + i)) > SILENCE) this.drops += 1 / sampleRate;
    this.read += count;
    for (let i = 0; i < this.fade && i < this.level; i++) {
      const share = i / this.fade, to = (this.read + i) % this.ring.length;
      this.ring[to] = share * this.ring[to] + (1 - share) * this.at(from + i);
    }
  }

  process(_, [[out]]) {
    const n = out.length;
    if (!this.playing && this.level >= this.needed) this.start();
    if (this.playing && this.level < n) this.runDry();
    if (this.playing) this.play(out);
    else if (this.begun && this.level < n) this.missing += n;
    this.report(n);
    return true;
  }

  // What was missing once will be missing again.
  get needed() {
    return Math.min(LONGEST_HOLD * sampleRate, this.hold + this.missing);
  }

  start() {
    this.hold = this.needed;
    this.playing = this.begun = true;
    this.missing = this.faded = this.watched = 0;
    this.low = Infinity;
  }

  runDry() {
    this.underruns++;
    this.playing = false;
  }

  play(out) {
    this.giveBack();
    let peak = 0;
    for (let i = 0; i < out.length; i++) {
      const gain = this.faded < this.fade ? this.faded++ / this.fade : 1;
      out[i] = gain * this.at(this.read++);
      peak = Math.max(peak, Math.abs(out[i]));
    }
    this.quiet = peak < SILENCE;
    // The last block before silence would end in a click.
    if (this.level < out.length) for (let i = 0; i < out.length; i++) out[i] *= 1 - i / out.length;
    this.low = Math.min(this.low, this.level);
    this.watched += out.length;
    if (this.watched > SHRINK_SECONDS * sampleRate) {
      this.excess = Math.max(0, Math.round(this.low - SPARE * sampleRate));
      if (this.excess) this.hold = Math.max(START * sampleRate, this.hold - this.excess / 4);
      this.low = Infinity;
      this.watched = 0;
    }
  }

  giveBack() {
    if (!this.quiet || this.excess < this.fade) return;
    const count = Math.min(this.excess, 2 * this.fade, this.level - 2 * this.fade);
    if (count <= 0) return;
    this.skip(count);
    this.excess -= count;
  }

  report(n) {
    this.reported += n;
    if (this.reported < REPORT_SECONDS * sampleRate) return;
    this.reported = 0;
    this.port.postMessage({ level: this.level / sampleRate, drops: this.drops, underruns: this.underruns });
  }
}

registerProcessor("playback", Playback);
