// The talk as it was, kept by the browser: the user left, Moshi right, and the words with their times.

const RATE = 24000, PIECE = RATE * 10;

export class Recording {
  constructor() {
    this.left = new Side();
    this.right = new Side();
    this.pieces = []; // the browser may keep blobs on disk
    this.samples = 0;
  }

  get seconds() {
    return this.left.length / RATE;
  }

  heard(frame) {
    this.left.add(frame);
    if (this.left.length - this.samples > 2 * PIECE) {
      this.pieces.push(this.piece(PIECE));
      this.samples += PIECE;
      for (const side of [this.left, this.right]) side.forget(PIECE);
    }
  }

  said(samples) {
    // It lies where it was heard, and what was lost on the way is silence here too.
    const behind = this.left.length - this.right.length - samples.length;
    if (behind > (this.right.length ? RATE : 0)) this.right.add(new Float32Array(behind));
    this.right.add(samples);
  }

  // The next `count` samples of both sides; one that is shorter ends in silence.
  piece(count) {
    const both = new Int16Array(2 * count);
    this.left.copy(count, both, 0);
    this.right.copy(count, both, 1);
    return new Blob([both]);
  }

  // It may be asked for amid a talk, which goes on as if it had not been.
  wav() {
    const rest = Math.max(this.left.length, this.right.length) - this.samples;
    const size = (this.samples + rest) * 4;
    const header = new DataView(new ArrayBuffer(44));
    const text = (at, word) => [...word].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
    text(0, "RIFF");
    header.setUint32(4, 36 + size, true);
    text(8, "WAVEfmt ");
    [[16, 16], [24, RATE], [28, RATE * 4]].forEach(([at, value]) => header.setUint32(at, value, true));
    [[20, 1], [22, 2], [32, 4], [34, 16]].forEach(([at, value]) => header.setUint16(at, value, true));
    text(36, "data");
    header.setUint32(40, size, true);
    return new Blob([header, ...this.pieces, this.piece(rest)], { type: "audio/wav" });
  }
}

class Side {
  constructor() {
    this.length = 0;
    this.chunks = []; // what has not been forgotten
  }

  add(samples) {
    this.chunks.push(samples.slice());
    this.length += samples.length;
  }

  copy(count, both, channel) {
    let at = 0;
    for (const chunk of this.chunks) {
      for (let i = 0; i < chunk.length && at < count; i++, at++) both[2 * at + channel] = Math.max(-1, Math.min(1, chunk[i])) * 32767;
    }
  }

  forget(count) {
    const kept = this.chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    if (kept < count) this.add(new Float32Array(count - kept));
    while (count > 0) {
      const chunk = this.chunks.shift();
      if (chunk.length > count) this.chunks.unshift(chunk.subarray(count));
      count -= chunk.length;
    }
  }
}

// Words as subtitles: a line for each phrase, each word with its own time.
export function subtitles(words) {
  const phrases = [];
  for (const word of words) {
    const last = phrases.at(-1)?.at(-1);
    if (!last || word.start - last.end > 0.8 || phrases.at(-1).length > 11) phrases.push([]);
    phrases.at(-1).push(word);
  }
  const cue = (phrase) => {
    const [first, ...rest] = phrase;
    const text = [first.text, ...rest.map((w) => `<${stamp(w.start)}><c> ${escape(w.text)}</c>`)].join("");
    return `${stamp(first.start)} --> ${stamp(Math.max(phrase.at(-1).end, first.start + 0.2))}\n<v Moshi>${text}`;
  };
  return ["WEBVTT", ...phrases.map(cue)].join("\n\n") + "\n";
}

const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

function stamp(seconds) {
  const ms = Math.round(seconds * 1000);
  const part = (value, digits) => String(Math.floor(value)).padStart(digits, "0");
  return `${part(ms / 3600000, 2)}:${part((ms / 60000) % 60, 2)}:${part((ms / 1000) % 60, 2)}.${part(ms % 1000, 3)}`;
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
