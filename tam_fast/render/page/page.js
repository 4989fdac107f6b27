// What a reader points at, and what the page shows of it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TABLES = Object.fromEntries(Object.entries(DATA.cmaps).map(([name, text]) => [name, bytes(text)]));
const TOOLS = document.querySelector(".tools").elements;
const STATUS = document.querySelector(".status");

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function isolated(text) {
  const element = make("bdi", "", text);
  element.dir = "auto";
  return element;
}

const shown = (text) => text.trim() || (text ? "space" : "end");
const number = (value) => value.toFixed(2);

// One column: its pictures, its text, and what is said about a word.
class View {
  constructor(root, index, page) {
    this.root = root;
    this.index = index;
    this.page = page;
    this.column = new Column(DATA.columns[index]);
    this.units = [];
    for (const element of root.querySelectorAll(".u")) this.units[Number(element.dataset.u)] = element;
    this.inks = new Inks(root, () => this.refresh());
    this.texts = new Map();
    for (const run of root.querySelectorAll(".r[data-k]")) {
      const place = Number(run.dataset.k);
      this.texts.set(place, (this.texts.get(place) || "") + run.textContent);
    }
    for (const frame of root.querySelectorAll(".frame")) {
      const [width, height] = DATA.stills[frame.dataset.still].size;
      frame.style.setProperty("--ratio", width / height);
      // One picture alone takes the width that its height leaves it, and the text the rest.
      const isAlone = root.querySelectorAll(".frame").length === 1 && !root.querySelector(".film");
      if (isAlone) root.style.setProperty("--look", `min(59%, ${(76 * width) / height}vh)`);
    }
    this.panes = [...root.querySelectorAll(".pictures .frame")].map(
      (frame) => new Pane(frame, this.column, Number(frame.dataset.still)));
    this.films = [...root.querySelectorAll(".film")].map(
      (film) => new Film(film, this, (unit) => page.hold(this, unit, false)));
    this.about = root.querySelector(".about");
    // It only grows: a page that shrinks below the pointer would slide, and another word be pointed at.
    new ResizeObserver(() => {
      const height = this.about.offsetHeight;
      if (height > (this.tallest || 0)) this.about.style.minHeight = `${(this.tallest = height)}px`;
    }).observe(this.about);
    this.units.find(Boolean)?.setAttribute("tabindex", "0");
    this.listen();
  }

  listen() {
    const unitOf = (event) => {
      const element = event.target.closest?.(".u");
      return element ? Number(element.dataset.u) : null;
    };
    const text = this.root.querySelector(".read");
    text.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") this.hover(unitOf(event));
    });
    text.addEventListener("pointerleave", () => this.hover(null));
    text.addEventListener("mousedown", (event) => {
      if (event.shiftKey && unitOf(event) !== null) event.preventDefault();
    });
    text.addEventListener("click", (event) => {
      const unit = unitOf(event);
      if (unit !== null) this.page.hold(this, unit, event.shiftKey);
    });
    text.addEventListener("focusin", (event) => {
      const unit = unitOf(event);
      if (unit !== null && event.target.matches(":focus-visible")) this.page.walk(this, unit);
    });
    text.addEventListener("keydown", (event) => {
      const unit = unitOf(event);
      if (unit !== null) this.key(event, unit);
    });
    for (const frame of this.root.querySelectorAll(".frame")) {
      frame.addEventListener("pointermove", (event) => this.point(frame, event));
      frame.addEventListener("pointerleave", () => this.point(frame, null));
    }
  }

  key(event, unit) {
    const isLeftward = getComputedStyle(this.units[unit].closest(".said")).direction === "rtl";
    const step = { ArrowRight: isLeftward ? -1 : 1, ArrowLeft: isLeftward ? 1 : -1 }[event.key];
    let to = null;
    if (step) to = this.next(unit, step);
    else if (event.key === "Home") to = this.next(-1, 1);
    else if (event.key === "End") to = this.next(this.units.length, -1);
    else if (event.key === "Enter" || event.key === " ") this.page.hold(this, unit, event.shiftKey);
    else return;
    event.preventDefault();
    if (to === null) return;
    if (event.shiftKey && step) this.page.join(this, unit, to);
    this.focus(to);
  }

  next(unit, step) {
    for (let at = unit + step; at >= 0 && at < this.units.length; at += step) if (this.units[at]) return at;
    return null;
  }

  focus(unit) {
    this.units.forEach((element, i) => element.setAttribute("tabindex", i === unit ? "0" : "-1"));
    this.units[unit].focus();
  }

  hover(unit) {
    this.page.hover(this, unit);
  }

  refresh() {
    this.page.refresh();
  }

  // Tokens of units a..b, or of one piece of them.
  choose(range, piece) {
    this.range = range;
    const units = range && this.column.units.slice(range[0], range[1] + 1);
    this.chosen = units && [Math.min(...units.map((u) => u[1])), Math.max(...units.map((u) => u[2]))];
    const before = `${this.tokens}`;
    this.tokens = piece === null ? this.chosen : [piece, piece + 1];
    if (`${this.tokens}` === before) return;
    this.values = this.tokens && this.column.map(...this.tokens);
    for (const film of this.films) film.follow(this.values);
  }

  get peak() {
    return this.tokens && this.column.isVisual(...this.tokens) ? this.column.peak(...this.tokens) : 0;
  }

  draw(top, palette, isSmooth, ground, isWhole) {
    const { range } = this;
    // First: it measures, which is quick only until something has changed.
    this.inks.draw(this.tokens && this.column.reasons(...this.tokens), top, palette, ground, isWhole);
    const isOn = (unit) => range !== null && range[0] <= unit && unit <= range[1];
    this.root.classList.toggle("busy", range !== null);
    this.units.forEach((element, unit) => {
      const on = isOn(unit);
      if (element.classList.contains("on") !== on) element.classList.toggle("on", on);
    });
    for (const pane of this.panes) pane.draw(this.values, top, palette, isSmooth);
    for (const film of this.films) film.draw(this.values, top, palette, isSmooth, isOn);
    this.say();
    for (const readout of this.root.querySelectorAll(".readout")) this.read(readout);
  }

  get word() {
    if (!this.range) return "";
    const [first, last] = this.range.map((unit) => this.units[unit]);
    const span = document.createRange();
    span.setStartBefore(first);
    span.setEndAfter(last);
    return span.toString();
  }

  // The text after the chosen units.
  later() {
    if (!this.range) return [];
    const rest = document.createRange(), last = this.units[this.range[1]];
    rest.setStartAfter(last);
    rest.setEndAfter(last.closest(".said").lastChild);
    return [rest];
  }

  where() {
    const spot = this.values && this.column.hottest(this.values);
    if (!spot) return null;
    const { label } = DATA.stills[spot.panel.still];
    const isAlone = new Set(this.column.panels.map((panel) => panel.still)).size === 1;
    return `${isAlone ? "" : `${label}, `}row ${spot.row}, column ${spot.column}`;
  }

  // How visual the chosen tokens are: in a word or two, and why.
  verdict() {
    const { column, tokens } = this, score = column.score(...tokens);
    if (!column.cells) return ["", "there is no image"];
    if (column.isFlat(...tokens)) return ["flat", "map and text are one constant, there is nothing to see"];
    if (!column.peak(...tokens)) return ["not visual", "the map is empty"];
    if (score === null) return ["", ""];
    return score >= 0.5 ? ["visual", `grounding ${number(score)}`]
      : ["not visual", `grounding ${number(score)}: the image is no evidence for it`];
  }

  // What is known about the chosen word; its pieces stay while they are pointed at.
  say() {
    const { column, tokens, chosen } = this;
    if (!tokens) {
      if (this.said) this.about.replaceChildren(make("p", "rest", "No word is chosen."));
      this.said = "";
      return;
    }
    const [start] = tokens, list = make("dl", "");
    const add = (name, ...parts) => list.append(make("dt", "", name), make("dd", "", ...parts));
    if (column.cells) {
      const peak = column.peak(...tokens), fill = make("i", "");
      fill.style.width = `${100 * Math.min(1, peak)}%`;
      add("Image", make("span", "meter", fill), number(peak));
      if (this.where() && column.isVisual(...tokens)) add("Strongest", this.where());
    }
    const [verdict, why] = this.verdict();
    if (why) add(verdict ? "Seen" : "", verdict ? make("b", "", verdict) : "", verdict ? `, ${why}` : why);
    const reasons = [...column.reasons(...tokens)].map((value, place) => [value, place])
      .filter(([value, place]) => value >= 0.005 && this.texts.has(place)).sort((a, b) => b[0] - a[0]).slice(0, 3);
    if (reasons.length) {
      add("Text", ...reasons.flatMap(([value, place], i) =>
        [i ? " · " : "", isolated(shown(this.texts.get(place))), ` ${number(value)}`]));
    }
    if (column.candidates[start].length) {
      add("Candidates", ...column.candidates[start].map(([text, probability]) => {
        const line = make("span", text === column.tokens[start] ? "candidate said-one" : "candidate");
        const percent = 100 * probability;
        line.append(isolated(shown(text)), ` ${percent < 0.1 && percent > 0 ? "below 0.1" : percent.toFixed(1)} %`);
        return line;
      }));
    }
    const key = `${this.range}`;
    if (this.said !== key) {
      const chips = make("div", "chips");
      if (chosen[1] - chosen[0] > 1) {
        for (let token = chosen[0]; token < chosen[1]; token++) chips.append(this.chip(token));
      }
      const word = make("p", "word", this.word);
      word.dir = "auto";
      this.about.replaceChildren(word, chips, list);
      this.said = key;
    } else {
      this.about.querySelector("dl").replaceWith(list);
    }
    for (const chip of this.about.querySelectorAll(".chip")) {
      const isOn = tokens[1] - tokens[0] === 1 && Number(chip.dataset.token) === start;
      chip.classList.toggle("on", isOn);
      chip.setAttribute("aria-pressed", String(isOn));
    }
  }

  chip(token) {
    const chip = make("button", "chip", isolated(shown(this.column.tokens[token])));
    chip.type = "button";
    chip.dataset.token = token;
    chip.addEventListener("pointerenter", () => this.page.piece(this, token, false));
    chip.addEventListener("pointerleave", () => this.page.piece(this, null, false));
    chip.addEventListener("click", () => this.page.piece(this, token, true));
    return chip;
  }

  point(frame, event) {
    const readout = frame.closest("figure").querySelector(".readout");
    if (event) {
      const { left, top, width, height } = frame.getBoundingClientRect();
      readout.point = [(event.clientX - left) / width, (event.clientY - top) / height];
    } else {
      readout.point = null;
    }
    this.read(readout);
  }

  // The value under the pointer, or where the word is strongest on this picture.
  read(readout) {
    const still = Number(readout.dataset.still);
    let text = "";
    if (readout.point) {
      const cell = this.column.at(this.values, still, ...readout.point);
      const value = cell && this.values ? `: ${number(cell.value)}` : "";
      text = cell ? `row ${cell.row}, column ${cell.column}${value}` : "outside of what the model was shown";
    } else if (this.values) {
      const highest = this.column.on(this.values, still);
      text = this.column.isVisual(...this.tokens) ? `peak ${number(highest)}` : this.verdict()[0];
    }
    readout.textContent = text;
    const frame = readout.closest("figure").querySelector(".frame"), { label } = DATA.stills[still];
    frame.setAttribute("aria-label", this.values
      ? `${label} with the map of “${this.word}”: ${this.where() ? `strongest at ${this.where()}` : "empty"}` : label);
  }
}

class Page {
  constructor() {
    // In columns after the first, pictures are those of the first.
    for (const image of document.querySelectorAll("img[data-copy]")) {
      const source = [...document.querySelectorAll("[data-still] > img[src]")].find(
        (one) => one.parentElement.dataset.still === image.dataset.copy);
      if (source) image.src = source.src;
    }
    document.body.classList.add("live");
    // A highlight greys what comes later without touching thousands of elements; else a rule does.
    document.body.classList.toggle("unlit", !CSS.highlights);
    this.pinned = this.walked = this.hovered = this.held = null;
    this.views = [...document.querySelectorAll(".column")].map((root, i) => new View(root, i, this));
    this.together = this.views.map(() => new Map());
    for (const row of DATA.rows) row.forEach((unit, i) => unit !== null && this.together[i].set(unit, row));
    for (const name of ["cmap", "scale", "cells", "opacity"]) {
      TOOLS[name].addEventListener("input", () => this.retool(name === "cmap"));
    }
    document.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.retool(false));
    addEventListener("beforeprint", () => this.draw(true));
    this.retool(true);
  }

  key(event) {
    if (event.key === "Escape") this.release();
    const isFree = event.target === document.body && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (isFree && (event.key === "ArrowRight" || event.key === "ArrowLeft") && this.views[0].units.length) {
      event.preventDefault();
      const view = this.pinned ? this.pinned.view : this.views[0];
      const at = this.pinned ? view.next(this.pinned.range[1], event.key === "ArrowRight" ? 1 : -1) : view.next(-1, 1);
      view.focus(at ?? this.pinned.range[0]);
    }
  }

  hover(view, unit) {
    const found = unit === null ? null : { view, range: [unit, unit] };
    if (!found && !this.hovered) return;
    if (found && this.hovered && this.hovered.view === view && this.hovered.range[0] === unit) return;
    this.hovered = found;
    this.refresh();
  }

  walk(view, unit) {
    this.walked = { view, range: [unit, unit] };
    this.hovered = this.held = null;
    if (this.span) this.walked = this.span;
    this.span = null;
    this.refresh();
    this.tell = true;
  }

  // Pin a word, or with an earlier one a span; pinning it again lets go.
  hold(view, unit, isSpan) {
    const before = this.pinned && this.pinned.view === view ? this.pinned : null;
    this.walked = this.hovered = this.held = null;
    if (isSpan && before) {
      this.pinned = { view, anchor: before.anchor, range: [Math.min(before.anchor, unit), Math.max(before.anchor, unit)] };
    } else if (before && before.range[0] === unit && before.range[1] === unit) {
      this.pinned = null;
    } else {
      this.pinned = { view, anchor: unit, range: [unit, unit] };
    }
    this.refresh();
    this.tell = true;
  }

  // Extend a span by keys: from the pinned word, or the one that was walked from.
  join(view, from, to) {
    const anchor = this.pinned && this.pinned.view === view ? this.pinned.anchor : from;
    this.pinned = { view, anchor, range: [Math.min(anchor, to), Math.max(anchor, to)] };
    this.span = this.pinned;
  }

  piece(view, token, isHeld) {
    if (isHeld) this.held = this.held && this.held.token === token ? null : { view, token };
    this.pointed = token === null ? null : { view, token };
    this.refresh();
  }

  release() {
    this.pinned = this.walked = this.hovered = this.held = this.pointed = null;
    this.refresh();
  }

  retool(isNew) {
    const name = TOOLS.cmap.value, isJet = name === "jet";
    if (isNew) TOOLS.opacity.value = isJet ? 50 : 85;
    this.palette = new Palette(TABLES[name], isJet, TOOLS.opacity.value / 100);
    const context = document.querySelector(".bar").getContext("2d");
    for (let level = 0; level < 256; level++) {
      context.fillStyle = `rgb(${[...this.palette.table.slice(3 * level, 3 * level + 3)]})`;
      context.fillRect(level, 0, 1, 1);
    }
    this.ground = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).slice(0, 3).map(Number);
    for (const view of this.views) {
      view.inks.forget();
      const own = TOOLS.scale.value === "own";
      for (const film of view.films) {
        film.paint(this.palette, (unit) => {
          const [, start, stop] = view.column.units[unit];
          return own && view.column.isVisual(start, stop) ? view.column.peak(start, stop) : 1;
        });
      }
    }
    this.refresh();
  }

  // Draw once before the next frame, however much happened.
  refresh() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw(isWhole = false) {
    const about = this.hovered || this.walked || this.pinned;
    for (const view of this.views) {
      const piece = this.pointed || this.held;
      const isPiece = piece && piece.view === view && about && about.view === view;
      view.choose(about && this.range(about, view), isPiece ? piece.token : null);
    }
    CSS.highlights?.set("later", new Highlight(...this.views.flatMap((view) => view.later())));
    const own = Math.max(0, ...this.views.map((view) => view.peak));
    const top = TOOLS.scale.value === "own" && own > 0 ? own : 1;
    for (const view of this.views) view.draw(top, this.palette, TOOLS.cells.value === "smooth", this.ground, isWhole);
    document.querySelector(".high").textContent = top === 1 ? "1" : number(top);
    for (const view of this.views) {
      view.units.forEach((element, unit) => {
        const { pinned } = this, on = Boolean(pinned && pinned.view === view && pinned.range[0] <= unit && unit <= pinned.range[1]);
        if (element.getAttribute("aria-pressed") !== String(on)) element.setAttribute("aria-pressed", String(on));
      });
    }
    if (this.tell) {
      const view = about && about.view;
      STATUS.textContent = view ? [`“${view.word}”`, view.where() && `strongest at ${view.where()}`,
        view.column.cells && number(view.column.peak(...view.tokens)), view.verdict().filter(Boolean).join(", ")].filter(Boolean).join(", ") : "";
      this.tell = false;
    }
  }

  // Units of a column that belong to what was chosen in another one.
  range({ view, range }, other) {
    if (view === other) return range;
    const found = [];
    for (let unit = range[0]; unit <= range[1]; unit++) {
      const row = this.together[view.index].get(unit);
      if (row && row[other.index] !== null) found.push(row[other.index]);
    }
    return found.length ? [Math.min(...found), Math.max(...found)] : null;
  }
}

window.page = new Page();
