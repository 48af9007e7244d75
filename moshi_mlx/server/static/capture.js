// The microphone's end of the audio thread: frames of 80 ms at 24 kHz, each posted as it fills.

const FRAME = 1920;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, 24000);
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
  }

  process([input]) {
    const channels = input.length;
    if (!channels) return true;
    let mono = input[0];
    if (channels > 1) {
      mono = mono.map((_, i) => input.reduce((sum, channel) => sum + channel[i], 0) / channels);
    }
    const samples = this.resampler.process(mono);
    for (let at = 0; at < samples.length; ) {
      const part = samples.subarray(at, at + FRAME - this.filled);
      this.frame.set(part, this.filled);
      this.filled += part.length;
      at += part.length;
      if (this.filled === FRAME) {
        this.port.postMessage(this.frame, [this.frame.buffer]);
        this.frame = new Float32Array(FRAME);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
