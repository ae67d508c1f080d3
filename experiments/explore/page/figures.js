// The four figures.

const TASKS = [
  { centre: [-1.5, 0.8], angle: 0.5, curvatures: [4, 0.4] },
  { centre: [1.5, 0.7], angle: -0.8, curvatures: [3, 0.4] },
  { centre: [0.4, -1.3], angle: 1.4, curvatures: [4, 0.3] },
  { centre: [-1.7, -1.2], angle: -0.4, curvatures: [2.5, 0.6] },
].map(valley);
const TASK_COLORS = ["var(--task-1)", "var(--task-2)", "var(--task-3)", "var(--task-4)"];
const PLANE = { x: [-3, 3], y: [-2.25, 2.25], labels: ["first parameter", "second parameter"] };
const NAMES = { joint: "joint training", maml: "MAML", fomaml: "FOMAML", reptile: "Reptile", imaml: "iMAML" };
const colorOf = (name) => `var(--${name})`;

// The contours of tasks, and the numbers of the tasks at their minima.
const taskMarks = (tasks) =>
  tasks.flatMap((loss) => {
    const color = TASK_COLORS[TASKS.indexOf(loss)];
    const name = `task ${TASKS.indexOf(loss) + 1}`;
    return [contours(loss.value, color), label(loss.centre, name, color, { fontWeight: 400 })];
  });

// A point theta that every tap moves.
function movable(stage, state) {
  const handle = stage.handle("\u03b8", { get: () => state.theta, set: (p) => (state.theta = p) });
  stage.onTap(handle.move);
}

// (a) Reptile: the inner steps, and the point between theta and what they reach.
function reptileFigure(root) {
  const state = { theta: [0.3, -1.9] };
  const stage = new Stage(root, { ...PLANE, draw });
  movable(stage, state);

  function chosen() {
    const { task, ...rest } = settings(root);
    return { tasks: task === "both" ? TASKS.slice(0, 2) : [TASKS[task - 1]], ...rest };
  }

  function draw() {
    const { tasks, ...options } = chosen();
    const result = reptileUpdate(tasks, state.theta, options);
    Object.assign(state, result);
    const { paths, reptile, joint } = result;
    stage.layer("tasks", tasks.map((loss) => loss.centre), () => taskMarks(tasks));
    stage.layer("steps", Math.random(), () => [
      paths.map((points, i) => path(points, TASK_COLORS[TASKS.indexOf(tasks[i])])),
      paths.map((points, i) => {
        const color = TASK_COLORS[TASKS.indexOf(tasks[i])];
        return label(points.at(-1), "\u03c6", color, { dy: -12, fontSize: 14 });
      }),
      path([state.theta, mean(paths.map((points) => points.at(-1)))], colorOf("reptile"), {
        dash: "3,4",
        dots: false,
      }),
      arrow(state.theta, joint, colorOf("joint"), { width: 5 }),
      arrow(state.theta, reptile, colorOf("reptile")),
    ]);
    const apart = length(subtract(reptile, joint));
    const same = apart < 1e-12 * (1 + length(joint));
    say(
      root,
      `<b class="joint">Joint training</b> moves θ to ${vector(joint)}, ` +
        `<b class="reptile">Reptile</b> to ${vector(reptile)}: ` +
        (same ? "<strong>the same point</strong>." : `${apart.toFixed(3)} apart.`),
    );
  }

  button(root, "update", () => {
    state.theta = stage.within(state.reptile);
    stage.draw();
  });
  button(root, "reset", () => {
    state.theta = [0.3, -1.9];
    stage.draw();
  });
  return { stage, state };
}

// (b) The meta-gradients of five algorithms on a meta-loss.
function surfacesFigure(root) {
  const state = { theta: [-0.2, 1.6] };
  const stage = new Stage(root, { ...PLANE, draw });
  movable(stage, state);

  function draw() {
    const { tasks: count, surface: kind, paths, steps, rate, proximal, ...shown } = settings(root);
    const tasks = TASKS.slice(0, count);
    const options = { steps, rate, proximal };
    const relevant = { joint: {}, steps: { steps, rate }, proximal: { proximal } }[kind];
    stage.layer(
      "surface",
      [kind, count, relevant],
      () => [surface((p) => metaLoss(kind, tasks, p, options)), taskMarks(tasks)],
      shades(),
    );
    const names = Object.keys(NAMES).filter((name) => shown[name]);
    state.gradients = Object.fromEntries(
      names.map((name) => [name, metaGradient(name, tasks, state.theta, options)]),
    );
    const tip = (v) => add(state.theta, scale(-1.3 / Math.max(length(v), 1e-12), v));
    const tips = names.map((name) => tip(state.gradients[name]));
    stage.layer("arrows", Math.random(), () => [
      paths
        ? tasks.map((loss, i) => [
            path(adapt(loss, state.theta, options), TASK_COLORS[i]),
            shown.imaml
              ? path([state.theta, proximalMinimum(loss, state.theta, proximal)], TASK_COLORS[i], {
                  dash: "2,4",
                })
              : null,
          ])
        : null,
      names.map((name, i) =>
        arrow(state.theta, tips[i], colorOf(name), { dash: name === "fomaml" ? "6,3" : undefined }),
      ),
      stage.width < 500 // A phone has no room for names.
        ? null
        : labelsAround(
            state.theta,
            names.map((name, i) => ({
              vector: subtract(tips[i], state.theta),
              text: NAMES[name],
              fill: colorOf(name),
            })),
          ),
    ]);
    const exact = metaGradient("maml", tasks, state.theta, options);
    const rows = names.map((name) => {
      const g = state.gradients[name];
      return `<tr><th class="${name}">${NAMES[name]}</th><td>${vector(g)}</td>
        <td>${length(g).toFixed(3)}</td><td>${degrees(g, exact).toFixed(1)}°</td></tr>`;
    });
    say(
      root,
      `<table><thead><tr><th></th><th>meta-gradient</th><th>length</th><th>angle to MAML</th></tr>
        </thead><tbody>${rows.join("")}</tbody></table>`,
    );
    state.metaLoss = metaLoss(kind, tasks, state.theta, options);
  }

  return { stage, state };
}

// (c) Sine waves: two networks adapt to the points of the reader.
function sineWavesFigure(root, weights) {
  const state = { points: [], wave: null };
  const stage = new Stage(root, { x: [-5, 5], y: [-5.5, 5.5], ratio: 0.6, labels: ["x", "y"], draw });
  const grid = Array.from({ length: 121 }, (_, i) => -5 + i / 12);
  const models = { maml: unpack(weights.maml), joint: unpack(weights.joint) };
  const sine = ({ amplitude, phase }, x) => amplitude * Math.sin(x - phase);

  function draw() {
    const options = settings(root);
    state.errors = {};
    const curves = Object.entries(models).map(([name, layers]) => {
      const adapted = fitPoints(layers, state.points, options);
      const curve = (net) => grid.map((x) => [x, predict(net, x)]);
      if (state.points.length)
        state.errors[name] = [layers, adapted].map((net) => squaredError(net, state.points));
      return [
        Plot.line(curve(layers), { stroke: colorOf(name), strokeDasharray: "3,4", clip: true }),
        Plot.line(curve(adapted), { stroke: colorOf(name), strokeWidth: 2.5, clip: true }),
      ];
    });
    stage.layer("curves", Math.random(), () => [
      Plot.gridX({ strokeOpacity: 0.08 }),
      Plot.gridY({ strokeOpacity: 0.08 }),
      state.wave
        ? Plot.line(grid.map((x) => [x, sine(state.wave, x)]), { stroke: "var(--ink)", strokeOpacity: 0.45 })
        : null,
      curves,
    ]);
    const row = (name, text) => {
      const [before, after] = state.errors[name] ?? [];
      return `<tr><th class="${name}">${text}</th>
        <td>${before?.toFixed(3) ?? "–"}</td><td>${after?.toFixed(3) ?? "–"}</td></tr>`;
    };
    say(
      root,
      `<table><thead><tr><th>squared error on the ${state.points.length} points</th>
        <th>before</th><th>after</th></tr></thead>
        <tbody>${row("maml", "MAML")}${row("joint", "joint training")}</tbody></table>`,
    );
  }

  // The points and their handles, anew.
  function show(points, wave) {
    stage.handles.splice(0).forEach((handle) => handle.button.remove());
    Object.assign(state, { points, wave });
    points.forEach((_, i) =>
      stage.handle(`point ${i + 1}`, {
        get: () => points[i],
        set: (p) => (points[i] = p),
        remove: () => {
          show(points.toSpliced(i, 1), state.wave);
          stage.handles.at(Math.min(i, points.length - 2))?.button.focus();
        },
      }),
    );
    stage.draw();
  }

  function sample(amplitude, phase) {
    const xs = [-4.6, -3.7, -2.6, -1.4, -0.5]; // one half, as in figure 2 of Finn et al.
    show(xs.map((x) => [x, sine({ amplitude, phase }, x)]), { amplitude, phase });
  }

  stage.onTap((p) => show([...state.points, p], state.wave));
  button(root, "wave", () => sample(0.5 + 4.5 * Math.random(), Math.PI * Math.random()));
  button(root, "add", () => {
    show([...state.points, [0, 0]], state.wave);
    stage.handles.at(-1).button.focus();
  });
  button(root, "remove", () => show(state.points.slice(0, -1), state.wave));
  button(root, "clear", () => show([], null));
  sample(3.5, 1);
  return { stage, state };
}

// (d) First order against second: the leading terms of three meta-gradients.
function curvatureFigure(root) {
  const state = { theta: [-1.4, 0.5] };
  const stage = new Stage(root, { ...PLANE, draw });
  movable(stage, state);

  function draw() {
    const { curvature, spread, rate } = settings(root);
    const batches = [1, -1].map((side) =>
      valley({
        centre: [1, -0.2 + 0.2 * side],
        angle: 0.9 + (side * spread * Math.PI) / 360,
        curvatures: [curvature, 0.3],
      }),
    );
    const inner = (p) => dot(batches[0].gradient(p), batches[1].gradient(p));
    stage.layer(
      "batches",
      [curvature, spread],
      () => [
        surface(inner),
        contours(batches[0].value, TASK_COLORS[0]),
        contours(batches[1].value, TASK_COLORS[1], { dash: "5,3" }),
      ],
      shades(),
    );
    const found = expansion(batches, state.theta, rate);
    Object.assign(state, found);
    // Descent directions of comparable length: Reptile adds two gradients, the others take one.
    const size = 1.6 / Math.max(length(found.avgGrad), 1e-12);
    const at = (v) => add(state.theta, scale(-size, v));
    const shift = (times) => subtract(found.avgGrad, scale(times * rate, found.avgGradInner));
    const exact = { maml: found.maml, fomaml: found.fomaml, reptile: scale(0.5, found.reptile) };
    const terms = { maml: 2, fomaml: 1, reptile: 0.5 };
    stage.layer("arrows", Math.random(), () => [
      arrow(state.theta, at(found.avgGrad), colorOf("joint"), { width: 3.5 }),
      arrow(at(found.avgGrad), at(shift(2)), "var(--ink)", { dash: "3,3", width: 1.5 }),
      Object.entries(exact).map(([name, v]) => arrow(state.theta, at(v), colorOf(name))),
      Object.entries(terms).map(([name, times]) =>
        Plot.dot([at(shift(times))], { stroke: colorOf(name), fill: "var(--page)", r: 4, strokeWidth: 2 }),
      ),
      labelsAround(state.theta, [
        { vector: subtract(at(found.avgGrad), state.theta), text: "AvgGrad", fill: colorOf("joint") },
        {
          vector: subtract(at(shift(2)), state.theta),
          text: "AvgGradInner",
          fill: "var(--ink)",
        },
      ]),
    ]);
    const row = (name, text, first, times) => {
      const approximate = subtract(scale(first, found.avgGrad), scale(times * rate, found.avgGradInner));
      return `<tr><th class="${name}">${NAMES[name]}</th><td>${text}</td>
        <td>${vector(found[name])}</td><td>${vector(approximate)}</td>
        <td>${degrees(found[name], found.avgGrad).toFixed(1)}°</td></tr>`;
    };
    say(
      root,
      `<table><thead><tr><th></th><th>leading terms</th><th>meta-gradient</th><th>of the terms</th>
        <th>turned by</th></tr></thead><tbody>
        ${row("maml", "AvgGrad − 2α AvgGradInner", 1, 2)}
        ${row("fomaml", "AvgGrad − α AvgGradInner", 1, 1)}
        ${row("reptile", "2 AvgGrad − α AvgGradInner", 2, 1)}</tbody></table>`,
    );
  }

  return { stage, state };
}

// Numbers in the page's data are 32-bit floats in base 64.
function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

const DATA = JSON.parse(document.getElementById("data").textContent);
const WEIGHTS = Object.fromEntries(Object.entries(DATA.weights).map(([k, v]) => [k, decoded(v)]));

// For the tests, and for the curious at the console.
window.explore = {
  valley, adapt, metaGradient, metaLoss, reptileUpdate, expansion, unpack, predict, fitPoints,
  weights: WEIGHTS,
  figures: {
    reptile: figure("reptile", reptileFigure),
    surfaces: figure("surfaces", surfacesFigure),
    sine_waves: figure("sine_waves", (root) => sineWavesFigure(root, WEIGHTS)),
    curvature: figure("curvature", curvatureFigure),
  },
};

// Inside another page: its theme comes in, the height goes out.
addEventListener("message", ({ data }) => {
  if (data?.theme === undefined) return;
  document.documentElement.dataset.theme = data.theme;
  redraw();
});
if (parent !== window)
  new ResizeObserver(() =>
    parent.postMessage({ height: document.documentElement.offsetHeight }, "*"),
  ).observe(document.body);
