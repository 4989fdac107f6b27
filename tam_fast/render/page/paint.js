// Colours: of cells on a picture, of words, of the scale.

const GAMMA = 0.7;       // opacity grows as this power of the activation, as in the library's pictures
const POINTS = 160000;   // of an enlarged map: enough to be smooth, few enough to be quick
const LEVELS = 48;       // colours of words

class Palette {
  constructor(table, isJet, opacity) {
    this.table = table;
    this.pixels = new Uint32Array(256);
    this.opacity = opacity;
    this.isJet = isJet;
    const whole = new Uint8ClampedArray(this.pixels.buffer);
    for (let level = 0; level < 256; level++) {
      for (let channel = 0; channel < 3; channel++) whole[4 * level + channel] = table[3 * level + channel];
      whole[4 * level + 3] = 255 * this.alpha(level / 255);
    }
  }

  alpha(value) {
    return this.isJet ? this.opacity : this.opacity * value ** GAMMA;
  }

  // Ground and ink of a word: its colour as it lies on the page, as cells lie on the picture.
  word(value, page) {
    const level = Math.round(255 * value), share = Math.min(1, value ** GAMMA);
    const ground = page.map((p, channel) => Math.round(p + (this.table[3 * level + channel] - p) * share));
    const luminance = relativeLuminance(ground);
    const isDark = (luminance + 0.05) ** 2 < 1.05 * 0.05;
    return [`rgb(${ground})`, isDark ? "#fff" : "#000"];
  }
}

function relativeLuminance(colour) {
  const [red, green, blue] = colour.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// Draw one panel's cells; `top` is the value that has the last colour.
function drawCells(canvas, panel, values, top, palette, isSmooth) {
  const { width, height, first } = panel;
  // Odd, so that a cell's centre is a point: its colour is the cell's own.
  const room = Math.min(15, Math.floor(Math.sqrt(POINTS / (width * height))));
  const factor = isSmooth && room > 1 ? room - 1 + (room % 2) : 1;
  const w = width * factor, h = height * factor;
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
  const unit = top > 0 ? 255 / top : 0, colours = palette.pixels;
  if (factor === 1) {
    for (let i = 0; i < w * h; i++) pixels[i] = colours[Math.min(255, Math.round(values[first + i] * unit))];
  } else {
    enlarge(values.subarray(first, first + width * height), width, height, factor, unit, colours, pixels);
  }
  context.putImageData(image, 0, 0);
}

// Bilinear between the cells' centres: values are mixed, then coloured.
function enlarge(values, width, height, factor, unit, colours, pixels) {
  const w = width * factor, h = height * factor, across = new Float32Array(height * w);
  for (let x = 0; x < w; x++) {
    const at = Math.min(width - 1, Math.max(0, (x + 0.5) / factor - 0.5));
    const left = Math.floor(at), right = Math.min(width - 1, left + 1), share = at - left;
    for (let row = 0; row < height; row++) {
      const from = row * width;
      across[row * w + x] = unit * (values[from + left] * (1 - share) + values[from + right] * share);
    }
  }
  for (let y = 0; y < h; y++) {
    const at = Math.min(height - 1, Math.max(0, (y + 0.5) / factor - 0.5));
    const above = Math.floor(at) * w, below = Math.min(height - 1, Math.floor(at) + 1) * w, share = at - Math.floor(at);
    for (let x = 0; x < w; x++) {
      const value = across[above + x] * (1 - share) + across[below + x] * share;
      pixels[y * w + x] = colours[value < 255 ? Math.round(value) : 255];
    }
  }
}

// The canvases over one picture, one a panel, each where its box lies.
class Pane {
  constructor(frame, column, still) {
    this.host = frame.querySelector(".panes");
    this.column = column;
    this.show(still);
  }

  show(still) {
    this.still = still;
    this.host.replaceChildren();
    this.parts = this.column.panels.filter((panel) => panel.still === still).map((panel) => {
      const canvas = document.createElement("canvas");
      this.place(canvas, panel.box);
      this.host.append(canvas);
      return [panel, canvas];
    });
    const boxes = this.parts.map(([panel]) => panel.box);
    const whole = boxes.some(([x0, y0, x1, y1]) => x0 <= 0.002 && y0 <= 0.002 && x1 >= 0.998 && y1 >= 0.998);
    if (boxes.length === 1 && !whole) {
      const limit = document.createElement("div");
      limit.className = "limit";
      this.place(limit, boxes[0]);
      this.host.append(limit);
    }
  }

  place(element, [x0, y0, x1, y1]) {
    const edges = { left: x0, top: y0, width: x1 - x0, height: y1 - y0 };
    for (const [name, value] of Object.entries(edges)) element.style[name] = `${100 * value}%`;
  }

  draw(values, top, palette, isSmooth) {
    for (const [panel, canvas] of this.parts) {
      canvas.hidden = !values;
      canvas.className = isSmooth ? "smooth" : "exact";
      if (values) drawCells(canvas, panel, values, top, palette, isSmooth);
    }
  }
}

const MANY = 400;        // words of a text of which only those in sight are coloured, others when they come into it
const MARGIN = 200;      // pixels around what is in sight

// The grounds of a column's words. Only what changes and is in sight is touched: there may be thousands.
class Inks {
  constructor(root, refresh) {
    this.texts = [...root.querySelectorAll(".said")].map((host) => {
      const runs = [...host.querySelectorAll(".r[data-k]")].filter((run) => run.textContent.trim());
      if (runs.length > MANY) for (const one of [host, window]) one.addEventListener("scroll", refresh, { passive: true });
      return { host, runs, places: runs.map((run) => Number(run.dataset.k)), shown: new Int16Array(runs.length) };
    });
  }

  forget() {
    for (const { shown } of this.texts) shown.fill(-1);
  }

  draw(values, top, palette, page, isWhole) {
    const known = new Map();
    for (const { host, runs, places, shown } of this.texts) {
      const [first, end] = isWhole || runs.length <= MANY ? [0, runs.length] : this.inSight(host, runs);
      for (let i = first; i < end; i++) {
        const value = values && top > 0 && places[i] < values.length ? Math.min(1, values[places[i]] / top) : 0;
        const level = Math.round(LEVELS * value);
        if (shown[i] === level) continue;
        shown[i] = level;
        if (!known.has(level)) known.set(level, level ? palette.word(level / LEVELS, page) : ["", ""]);
        [runs[i].style.backgroundColor, runs[i].style.color] = known.get(level);
      }
    }
  }

  // The first run in sight and the one after the last, by bisection: they go down the page in order.
  inSight(host, runs) {
    const box = host.getBoundingClientRect();
    const top = Math.max(0, box.top) - MARGIN, bottom = Math.min(innerHeight, box.bottom) + MARGIN;
    const firstWhere = (holds) => {
      let low = 0, high = runs.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (holds(runs[middle].getBoundingClientRect())) high = middle;
        else low = middle + 1;
      }
      return low;
    };
    return [firstWhere((run) => run.bottom >= top), firstWhere((run) => run.top > bottom)];
  }
}
