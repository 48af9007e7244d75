// Microphone and loudspeaker of one talk, in one audio context, so that the browser's echo canceller knows what is played.

export const RATE = 24000;

export class SoundError extends Error {}

export class Sound {
  // on.frame(Float32Array of 1920), on.figures({level, drops, underruns}), on.state(running), on.devices(message)
  constructor(on) {
    this.on = on;
    this.given = {};
    this.muted = false;
  }

  // To be called from a click: a context made before one stays silent.
  async open(wishes) {
    this.wishes = wishes;
    this.makeContext({ sampleRate: RATE });
    let resumed = this.context.resume().catch(() => {});
    await this.openMicrophone();
    try {
      await this.build();
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      // Older Firefox connects a microphone only to a context of its own rate; the worklets then resample.
      this.context.onstatechange = null;
      this.context.close().catch(() => {});
      this.makeContext({});
      resumed = this.context.resume().catch(() => {});
      await this.build();
    }
    this.chooseLoudspeaker(wishes.loudspeaker);
    // Resuming may wait for a tap that never comes; the page asks for one.
    await Promise.race([resumed, new Promise((done) => setTimeout(done, 300))]);
    this.on.state(this.running);
  }

  // Worklets and connections of a context.
  async build() {
    try {
      for (const file of ["resample.js", "capture.js", "playback.js"]) {
        await this.context.audioWorklet.addModule(new URL(file, import.meta.url));
      }
    } catch {
      throw new SoundError("The server does not answer. Is it still running?");
    }
    const mono = { channelCount: 1, channelCountMode: "explicit" };
    this.playback = new AudioWorkletNode(this.context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.playback.port.onmessage = ({ data }) => this.on.figures(data);
    this.playback.connect(this.context.destination);
    this.capture = new AudioWorkletNode(this.context, "capture", { ...mono, numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.on.frame(this.muted ? data.fill(0) : data);
    this.connect();
  }

  get running() {
    return this.context?.state === "running";
  }

  get delay() {
    return (this.context?.outputLatency || 0) + (this.context?.baseLatency || 0);
  }

  makeContext(rate) {
    try {
      this.context = new AudioContext({ ...rate, latencyHint: "interactive" });
    } catch {
      this.context = new AudioContext({ latencyHint: "interactive" });
    }
    this.context.onstatechange = () => this.on.state(this.running);
  }

  async openMicrophone() {
    const { microphone, echo, noise, gain } = this.wishes;
    const audio = {
      channelCount: 1, echoCancellation: echo, noiseSuppression: noise, autoGainControl: gain,
      ...(microphone ? { deviceId: { exact: microphone } } : {}),
    };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      if (error.name === "OverconstrainedError" && microphone) {
        this.wishes.microphone = "";
        return this.openMicrophone();
      }
      throw new SoundError(MICROPHONE[error.name] ?? `The microphone cannot be used: ${error.message}.`);
    }
    const [track] = this.stream.getAudioTracks();
    this.given = track.getSettings?.() ?? {};
    track.onended = () => this.reopen("The microphone went away; another one is used.");
  }

  connect() {
    this.source?.disconnect();
    this.source = this.context.createMediaStreamSource(this.stream);
    this.source.connect(this.capture);
  }

  // The talk goes on with whatever microphone there is now.
  async reopen(message) {
    if (!this.context || this.context.state === "closed") return;
    this.stop();
    try {
      await this.openMicrophone();
      this.connect();
      this.on.devices(message);
    } catch (error) {
      this.on.devices(error.message);
    }
  }

  async change(wishes) {
    const before = this.wishes;
    this.wishes = { ...wishes };
    this.chooseLoudspeaker(wishes.loudspeaker);
    const same = ["microphone", "echo", "noise", "gain"].every((name) => before[name] === wishes[name]);
    if (!same) await this.reopen("The microphone has been changed.");
  }

  async chooseLoudspeaker(id) {
    try {
      await this.context.setSinkId?.(id || "");
    } catch {
      this.on.devices("That loudspeaker cannot be used; the usual one is.");
    }
  }

  play(samples) {
    this.playback?.port.postMessage(samples, [samples.buffer]);
  }

  clear() {
    this.playback?.port.postMessage("clear");
  }

  resume() {
    return this.context?.resume();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
  }

  close() {
    this.stop();
    if (this.context) this.context.onstatechange = null;
    this.context?.close().catch(() => {});
    this.context = null;
  }
}

const MICROPHONE = {
  NotAllowedError: "The browser may not use the microphone. Allow it in the address bar or in the system's privacy settings, then try again.",
  SecurityError: "The browser may not use the microphone. Allow it in the address bar or in the system's privacy settings, then try again.",
  NotFoundError: "No microphone was found. Connect one, then try again.",
  NotReadableError: "The microphone is in use by another program, or does not answer. Close what uses it, then try again.",
  AbortError: "The microphone did not start. Try again.",
};
