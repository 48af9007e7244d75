// Pieces of words become whole ones: a word is whole when the next begins, or when nothing came for a while.

const PAUSE = 500;

export class Words {
  constructor(element, clock) {
    this.element = element;
    this.clock = clock; // seconds since the talk began
    this.spoken = []; // {text, start, end}
    this.piece = "";
  }

  begin() {
    this.paragraph();
    this.spoken = [];
  }

  paragraph() {
    this.flush();
    const last = this.element.lastElementChild;
    if (!last || last.textContent) this.element.append(document.createElement("p"));
  }

  feed(text) {
    clearTimeout(this.timer);
    for (const [i, part] of text.replace(/\n/g, " ").split(" ").entries()) {
      if (i) this.flush();
      if (!part) continue;
      if (!this.piece) this.start = this.clock();
      this.piece += part;
      this.end = this.clock() + 0.08;
    }
    this.timer = setTimeout(() => this.flush(), PAUSE);
  }

  flush() {
    clearTimeout(this.timer);
    if (!this.piece) return;
    const paragraph = this.element.lastElementChild;
    const word = document.createElement("span");
    word.textContent = (paragraph.textContent ? " " : "") + this.piece;
    paragraph.append(word);
    this.spoken.push({ text: this.piece, start: this.start, end: this.end });
    this.piece = "";
  }
}
