// What the figures have in common: layers of one plot, points that the reader moves, and controls.

const MARGIN = { top: 12, right: 12, bottom: 36, left: 48 };
const onPage = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A plot of `x` and `y` domains. `draw` is called whenever it has to be drawn anew.
class Stage {
  constructor(root, { x, y, ratio, labels, draw }) {
    this.element = root.querySelector(".stage");
    this.domains = { x, y };
    this.ratio = ratio ?? (y[1] - y[0]) / (x[1] - x[0]);
    this.labels = labels;
    this.layers = {};
    this.handles = [];
    this.draw = () => {
      cancelAnimationFrame(this.request);
      this.request = requestAnimationFrame(() => {
        this.width = this.element.clientWidth;
        draw();
        this.handles.forEach((handle) => handle.place());
      });
    };
    new ResizeObserver(this.draw).observe(this.element);
    Stage.all.push(this);
  }

  get height() {
    return (this.width - MARGIN.left - MARGIN.right) * this.ratio + MARGIN.top + MARGIN.bottom;
  }

  // Draws the marks of a layer, unless nothing changed that its key names.
  layer(name, key, marks, options = {}) {
    const full = JSON.stringify([key, this.width, document.documentElement.dataset.theme, DARK.matches]);
    const known = this.layers[name];
    if (known?.key === full) return;
    const svg = Plot.plot({
      width: this.width,
      height: this.height,
      marginTop: MARGIN.top,
      marginRight: MARGIN.right,
      marginBottom: MARGIN.bottom,
      marginLeft: MARGIN.left,
      x: { domain: this.domains.x, ticks: 7, label: this.labels[0], labelAnchor: "center", labelArrow: "none" },
      y: { domain: this.domains.y, ticks: 5, label: this.labels[1], labelAnchor: "center", labelArrow: "none" },
      ...options,
      marks: marks(),
    });
    svg.setAttribute("aria-hidden", "true"); // The text below the figure says the same.
    svg.classList.add("layer");
    this.scales = { x: svg.scale("x"), y: svg.scale("y") };
    if (known) known.svg.replaceWith(svg);
    else this.element.insertBefore(svg, this.element.querySelector("button"));
    this.layers[name] = { key: full, svg };
  }

  toPixels([x, y]) {
    return [this.scales.x.apply(x), this.scales.y.apply(y)];
  }

  fromEvent(event) {
    const box = this.element.getBoundingClientRect();
    return [
      this.scales.x.invert(event.clientX - box.left),
      this.scales.y.invert(event.clientY - box.top),
    ];
  }

  within([x, y]) {
    const clamp = (v, [low, high]) => Math.max(low, Math.min(high, v));
    return [clamp(x, this.domains.x), clamp(y, this.domains.y)];
  }

  // A point that mouse, touch and arrow keys move. `get` and `set` are its position.
  handle(label, { get, set, remove }) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "handle";
    button.setAttribute("aria-label", `${label}: drag, or use the arrow keys`);
    this.element.append(button);
    const move = (position) => {
      set(this.within(position));
      this.draw();
    };
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      button.focus({ preventScroll: true });
      event.preventDefault();
    });
    button.addEventListener("pointermove", (event) => {
      if (button.hasPointerCapture(event.pointerId)) move(this.fromEvent(event));
    });
    button.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (event.key in direction) {
        const size = (d) => ((d[1] - d[0]) / 100) * (event.shiftKey ? 5 : 1);
        const [dx, dy] = direction[event.key];
        const [x, y] = get();
        move([x + dx * size(this.domains.x), y + dy * size(this.domains.y)]);
      } else if (remove && ["Delete", "Backspace"].includes(event.key)) remove();
      else return;
      event.preventDefault();
    });
    const handle = {
      button,
      move,
      place: () => {
        const [left, top] = this.toPixels(get());
        button.style.transform = `translate(${left}px, ${top}px) translate(-50%, -50%)`;
        button.title = `${label} (${get().map((v) => v.toFixed(2)).join(", ")})`;
      },
    };
    this.handles.push(handle);
    return handle;
  }

  // A click or tap beside the points.
  onTap(action) {
    this.element.addEventListener("click", (event) => {
      if (event.target.tagName !== "BUTTON") action(this.within(this.fromEvent(event)));
    });
  }
}
Stage.all = [];

const DARK = matchMedia("(prefers-color-scheme: dark)");
const redraw = () => Stage.all.forEach((stage) => stage.draw());
DARK.addEventListener("change", redraw);

// The values of a figure's controls, by name; each number is shown beside its control.
function settings(root) {
  const values = {};
  for (const input of root.querySelectorAll("form :is(input, select)")) {
    const { name, type } = input;
    values[name] = type === "checkbox" ? input.checked : type === "range" ? Number(input.value) : input.value;
    const shown = input.closest("label").querySelector("output");
    if (shown) shown.textContent = input.value;
  }
  return values;
}

function figure(id, build) {
  const root = document.getElementById(id);
  const result = build(root);
  root.querySelector("form").addEventListener("input", result.stage.draw);
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  return result;
}

function button(root, name, action) {
  root.querySelector(`button[name=${name}]`).addEventListener("click", action);
}

const say = (root, html) => (root.querySelector(".said").innerHTML = html);
const vector = (v) => `(${v.map((entry) => entry.toFixed(3).replace("-", "\u2212")).join(", ")})`;

// Marks.

// All of the plane, and a little more, so that no edge is seen.
const EXTENT = { x1: -3.1, x2: 3.1, y1: -2.35, y2: 2.35, clip: true };

const surface = (f) =>
  Plot.contour({
    ...EXTENT, fill: (x, y) => f([x, y]), pixelSize: 6, thresholds: 14, stroke: "none",
  });

const shades = () => ({
  color: { type: "linear", range: [onPage("--low"), onPage("--high")], interpolate: "rgb" },
});

const contours = (f, stroke, { levels = [0.1, 0.35, 0.8, 1.5, 2.5], dash } = {}) =>
  Plot.contour({
    ...EXTENT,
    fill: "none",
    stroke,
    strokeWidth: 1,
    strokeOpacity: 0.75,
    strokeDasharray: dash,
    value: (x, y) => f([x, y]),
    thresholds: levels,
    pixelSize: 5,
  });

const arrow = (from, to, stroke, { dash, width = 2.5 } = {}) =>
  Plot.arrow([0], {
    x1: [from[0]], y1: [from[1]], x2: [to[0]], y2: [to[1]],
    stroke, strokeWidth: width, strokeDasharray: dash, headLength: 20 / width, headAngle: 50,
  });

const path = (points, stroke, { dash, dots = true, width = 1.5 } = {}) => [
  Plot.line(points, { stroke, strokeWidth: width, strokeDasharray: dash }),
  dots ? Plot.dot(points, { fill: stroke, r: 2.5 }) : null,
];

const label = (at, text, fill, options = {}) =>
  Plot.text([at], {
    text: [text], fill, stroke: "var(--page)", strokeWidth: 4,
    fontSize: 12, fontWeight: 600, ...options,
  });

// Labels around a point at the ends of vectors, turned where they would cover each other.
function labelsAround(centre, entries) {
  const angle = ([x, y]) => Math.atan2(y, x);
  const placed = entries
    .map(({ vector, ...rest }) => ({ ...rest, radius: length(vector) + 0.2, turn: angle(vector) }))
    .sort((a, b) => a.turn - b.turn);
  const gap = 0.15;
  for (let round = 0; round < 20; round++)
    for (let i = 1; i < placed.length; i++) {
      const missing = gap - (placed[i].turn - placed[i - 1].turn);
      if (missing > 0) {
        placed[i - 1].turn -= missing / 2;
        placed[i].turn += missing / 2;
      }
    }
  return placed.map(({ text, fill, radius, turn }, i) => {
    const along = [Math.cos(turn), Math.sin(turn)];
    if (Math.abs(along[1]) > 0.7) radius += 0.22 * (i % 3); // Side by side there is no room.
    const textAnchor = along[0] > 0.3 ? "start" : along[0] < -0.3 ? "end" : "middle";
    return label(add(centre, scale(radius, along)), text, fill, { textAnchor });
  });
}
