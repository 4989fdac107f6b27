// A video: the frame that is shown, the strip of all, and each word over time.

class Film {
  constructor(root, view, hold) {
    const number = Number(root.dataset.video);
    this.root = root;
    this.view = view;
    this.frames = DATA.stills.flatMap((still, i) => (still.video === number ? [i] : []));
    this.frame = root.querySelector(".frame");
    this.pane = new Pane(this.frame, view.column, this.frames[0]);
    this.thumbs = [...root.querySelectorAll(".thumb")];
    this.button = root.querySelector(".play");
    this.thumbs.forEach((thumb, i) => thumb.addEventListener("click", () => this.pick(i)));
    this.button.addEventListener("click", () => this.play(!this.timer));
    root.querySelector(".strip").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.pick(this.now + step);
      this.thumbs[this.now].focus();
    });
    this.rows = view.column.units.map(([text, start, stop, isWord], unit) => {
      if (!isWord) return null;
      const row = document.createElement("button"), name = document.createElement("bdi");
      const canvas = Object.assign(document.createElement("canvas"), { width: this.frames.length, height: 1 });
      const values = view.column.map(start, stop);
      const peaks = this.frames.map((still) => view.column.on(values, still));
      Object.assign(row, { type: "button", className: "time", tabIndex: -1 });
      name.className = "name";
      name.textContent = text;
      row.append(name, canvas);
      const best = peaks.indexOf(Math.max(...peaks));
      row.setAttribute("aria-label", `${text}: strongest at ${DATA.stills[this.frames[best]].label}`);
      row.addEventListener("pointerenter", () => view.hover(unit));
      row.addEventListener("pointerleave", () => view.hover(null));
      row.addEventListener("click", (event) => {
        const { left, width } = canvas.getBoundingClientRect(), share = (event.clientX - left) / width;
        hold(unit);
        this.isPicked = true;
        this.pick(event.detail && share >= 0 ? Math.min(this.frames.length - 1, Math.floor(share * this.frames.length)) : best);
      });
      return { row, canvas, peaks };
    });
    root.querySelector(".rows").append(...this.rows.filter(Boolean).map(({ row }) => row));
    this.turn(0);
  }

  pick(at) {
    this.turn(at);
    this.view.refresh();
  }

  // Show a frame, wrapping around at both ends; its map comes with the next drawing.
  turn(at) {
    this.now = (at + this.frames.length) % this.frames.length;
    const still = this.frames[this.now], image = this.frame.querySelector("img");
    if (image) image.src = this.thumbs[this.now].querySelector("img").src;
    this.frame.dataset.still = still;
    this.root.querySelector(".when").textContent = DATA.stills[still].label;
    this.root.querySelector(".readout").dataset.still = still;
    this.thumbs.forEach((thumb, i) => {
      thumb.classList.toggle("now", i === this.now);
      thumb.setAttribute("aria-pressed", String(i === this.now));
      thumb.tabIndex = i === this.now ? 0 : -1;
    });
    this.pane.show(still);
  }

  play(isOn) {
    clearInterval(this.timer);
    this.timer = isOn ? setInterval(() => this.pick(this.now + 1), 700) : 0;
    this.button.textContent = isOn ? "Pause" : "Play";
    this.button.setAttribute("aria-pressed", String(isOn));
  }

  // A word that is newly chosen turns the film to where it is strongest, unless it plays or a reader picked the frame.
  follow(values) {
    if (this.timer || this.isPicked || !values) return;
    const peaks = this.frames.map((still) => this.view.column.on(values, still)), highest = Math.max(...peaks);
    if (highest > 0 && peaks[this.now] < highest) this.turn(peaks.indexOf(highest));
  }

  draw(values, top, palette, isSmooth, chosen) {
    this.isPicked = false;
    this.pane.draw(values, top, palette, isSmooth);
    this.thumbs.forEach((thumb, i) => {
      const value = values && top > 0 ? Math.min(1, this.view.column.on(values, this.frames[i]) / top) : 0;
      const level = Math.round(255 * value), mark = thumb.querySelector("i");
      mark.style.backgroundColor = value ? `rgb(${[...palette.table.slice(3 * level, 3 * level + 3)]})` : "";
    });
    this.rows.forEach((one, unit) => one && one.row.classList.toggle("on", chosen(unit)));
  }

  // Colour all words over time; when the palette or the scale changes.
  paint(palette, topOf) {
    this.rows.forEach((one, unit) => {
      if (!one) return;
      const context = one.canvas.getContext("2d"), top = topOf(unit);
      one.peaks.forEach((peak, i) => {
        const level = top > 0 ? Math.round(255 * Math.min(1, peak / top)) : 0;
        context.fillStyle = `rgb(${[...palette.table.slice(3 * level, 3 * level + 3)]})`;
        context.fillRect(i, 0, 1, 1);
      });
    });
  }
}
