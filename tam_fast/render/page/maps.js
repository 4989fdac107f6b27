"use strict";
// The data of a page: maps and relevances as bytes, and what is asked of them.

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

class Column {
  constructor(given) {
    Object.assign(this, given);
    this.levels = bytes(given.levels);
    this.relevance = bytes(given.relevance);
    this.cells = 0;
    for (const panel of this.panels) {
      panel.first = this.cells;
      this.cells += panel.height * panel.width;
    }
    this.rows = [0];
    for (const count of this.reach) this.rows.push(this.rows[this.rows.length - 1] + count);
  }

  // A map over all cells: the largest value of some tokens', which is their word's.
  map(start, stop) {
    const values = new Float32Array(this.cells);
    for (let token = start; token < stop; token++) {
      const unit = this.peaks[token] / 255, first = token * this.cells;
      if (!unit) continue;
      for (let i = 0; i < values.length; i++) {
        const value = this.levels[first + i] * unit;
        if (value > values[i]) values[i] = value;
      }
    }
    return values;
  }

  // What each context token before these tokens is worth for them.
  reasons(start, stop) {
    const values = new Float32Array(this.places[start]);
    for (let token = start; token < stop; token++) {
      const unit = this.reliance[token] / 255, first = this.rows[token];
      const count = Math.min(values.length, this.reach[token]);
      for (let i = 0; i < count; i++) values[i] = Math.max(values[i], this.relevance[first + i] * unit);
    }
    return values;
  }

  peak(start, stop) {
    let highest = 0;
    for (let token = start; token < stop; token++) highest = Math.max(highest, this.peaks[token]);
    return highest;
  }

  score(start, stop) {
    return this.scores && Math.max(...this.scores.slice(start, stop));
  }

  isFlat(start, stop) {
    return this.flat.slice(start, stop).every(Boolean);
  }

  // Whether the image is evidence for these tokens; unknown counts as so, but for a map of nothing.
  isVisual(start, stop) {
    if (this.isFlat(start, stop) || !this.peak(start, stop)) return false;
    const score = this.score(start, stop);
    return score === null || score >= 0.5;
  }

  // The largest cell of a map: where it is and what it is worth; null where all are 0.
  hottest(values) {
    let best = -1;
    for (let i = 0; i < values.length; i++) if (values[i] > (best < 0 ? 0 : values[best])) best = i;
    if (best < 0) return null;
    const panel = this.panels.findLast((one) => one.first <= best);
    const row = Math.floor((best - panel.first) / panel.width), column = (best - panel.first) % panel.width;
    const [x0, y0, x1, y1] = panel.box;
    const x = x0 + ((column + 0.5) / panel.width) * (x1 - x0), y = y0 + ((row + 0.5) / panel.height) * (y1 - y0);
    return { panel, row, column, x, y, value: values[best] };
  }

  // The largest value on a picture, over all its panels.
  on(values, still) {
    let highest = 0;
    for (const panel of this.panels) {
      if (panel.still !== still) continue;
      const end = panel.first + panel.height * panel.width;
      for (let i = panel.first; i < end; i++) if (values[i] > highest) highest = values[i];
    }
    return highest;
  }

  // The cell at a point of a picture, as fractions; null outside of what the model was shown.
  at(values, still, x, y) {
    for (const panel of this.panels) {
      if (panel.still !== still) continue;
      const [x0, y0, x1, y1] = panel.box;
      const column = Math.floor(((x - x0) / (x1 - x0)) * panel.width);
      const row = Math.floor(((y - y0) / (y1 - y0)) * panel.height);
      if (row < 0 || column < 0 || row >= panel.height || column >= panel.width) continue;
      return { row, column, value: values ? values[panel.first + row * panel.width + column] : 0 };
    }
    return null;
  }
}
