// One talk over a socket: bare samples both ways, words, figures. A lost connection is made again.

const HANDSHAKE = 0, AUDIO = 1, TEXT = 2, METADATA = 4, ERROR = 5;
const BACKLOG = 6; // frames kept while connecting
const PATIENCE = 8000, GIVE_UP = 30000;
const decoder = new TextDecoder();

export class Talk {
  // on.state(name, sentence), on.sound(Float32Array), on.text(piece), on.figures(object), on.latency(seconds)
  constructor(url, token, on) {
    this.url = url;
    this.token = token;
    this.on = on;
    this.over = false;
    this.tries = 0;
    this.resumed = false;
    this.connect();
  }

  connect() {
    this.open = this.agreed = false;
    this.said = null;
    this.waiting = [];
    this.sent = []; // when each frame left
    this.frames = this.answered = this.unheard = this.unread = this.unsent = 0;
    this.heard = performance.now();
    this.socket = new WebSocket(this.url, this.token ? ["moshi", `token.${this.token}`] : []);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => typeof data !== "string" && this.receive(new Uint8Array(data));
    this.socket.onclose = (event) => this.closed(event);
    this.socket.onopen = () => this.resumed || this.on.state("preparing");
    if (!this.resumed) this.on.state("connecting", "Connecting…");
    clearInterval(this.watch);
    this.watch = setInterval(() => this.look(), 1000);
  }

  receive(bytes) {
    if (this.over) return;
    this.heard = performance.now();
    const payload = bytes.subarray(1);
    switch (bytes[0]) {
      case HANDSHAKE: return this.begin();
      case AUDIO: return this.sound(payload);
      case TEXT: return this.on.text(decoder.decode(payload));
      case METADATA: return this.told(JSON.parse(decoder.decode(payload)));
      case ERROR: return this.error(decoder.decode(payload));
    }
  }

  begin() {
    if (!this.agreed) return this.fail("This server cannot send plain sound to a page. Use the page that comes with it.");
    this.open = true;
    this.tries = 0;
    this.lost = 0;
    this.on.state("talking", this.resumed ? "Connected again. Moshi begins a new conversation." : "");
    for (const frame of this.waiting) this.transmit(frame);
    this.waiting = [];
  }

  told(fields) {
    if (fields.audio === "pcm_s16le") this.agreed = true;
    // Until the model's delays have passed, what is heard is not answered.
    if ("first" in fields) this.answered = fields.first;
    if (fields.figures) {
      this.unheard = fields.figures.dropped;
      this.unread = fields.figures.unread;
      this.on.figures(fields.figures);
    }
  }

  error(sentence) {
    this.said = sentence;
    if (!this.open) this.on.state("waiting", sentence);
  }

  sound(payload) {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const samples = new Float32Array(payload.byteLength >> 1);
    for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
    const asked = this.sent[Math.min(this.answered++ + this.unheard + this.unread, this.frames - 1) % 256];
    if (asked) this.on.latency((performance.now() - asked) / 1000);
    this.on.sound(samples);
  }

  send(frame) {
    if (this.open) return this.transmit(frame);
    this.waiting.push(frame);
    if (this.waiting.length > BACKLOG) this.waiting.shift();
  }

  transmit(frame) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    // A network that does not take it: what is old is worth nothing.
    if (this.socket.bufferedAmount > 96000) return void this.unsent++;
    const message = new DataView(new ArrayBuffer(1 + 2 * frame.length));
    message.setUint8(0, AUDIO);
    for (let i = 0; i < frame.length; i++) {
      message.setInt16(1 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(frame[i] * 32767))), true);
    }
    this.socket.send(message.buffer);
    this.sent[this.frames++ % 256] = performance.now();
  }

  // Frames lost on the way to the model and back.
  get dropped() {
    return this.unheard + this.unread + this.unsent;
  }

  // A network that is gone closes nothing.
  look() {
    if (this.open && performance.now() - this.heard > PATIENCE) {
      this.socket.onclose = null;
      this.socket.close();
      this.closed({ code: 1006 });
    }
  }

  closed({ code }) {
    clearInterval(this.watch);
    if (this.over) return;
    const wasOpen = this.open || this.resumed;
    this.open = false;
    if (code === 1000) return this.finish("ended", this.said ?? "The server has ended the talk.");
    if (code === 1001 || code === 1011) return this.fail(this.said ? `${capital(this.said)}.` : "The server has stopped.");
    if (!wasOpen) return this.ask();
    this.lost ||= performance.now();
    if (performance.now() - this.lost > GIVE_UP) return this.fail("The connection was lost and could not be made again.");
    this.resumed = true;
    this.on.state("lost", "Connection lost. Trying again…");
    this.retry = setTimeout(() => this.connect(), Math.min(4000, 400 * 2 ** this.tries++));
  }

  // Why a socket was refused is told to an ordinary request alone.
  async ask() {
    const url = new URL(this.url), headers = this.token ? { authorization: `Bearer ${this.token}` } : {};
    url.protocol = url.protocol.replace("ws", "http");
    let reason = this.said;
    try {
      const answer = await fetch(url, { headers });
      if ([400, 401, 403, 503].includes(answer.status)) reason = capital((await answer.text()).trim());
    } catch {
      // It is gone.
    }
    if (!this.over) this.fail(reason ?? UNREACHABLE);
  }

  fail(sentence) {
    this.finish("failed", sentence.replace(/\.\.$/, "."));
  }

  finish(state, sentence) {
    this.stop();
    this.on.state(state, sentence);
  }

  stop() {
    this.over = true;
    clearInterval(this.watch);
    clearTimeout(this.retry);
    this.socket.close(1000);
  }
}

const UNREACHABLE = "The server does not answer. Is it still running?";
const capital = (text) => text[0].toUpperCase() + text.slice(1);
