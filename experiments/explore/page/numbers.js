// What the figures show, in closed form: the algorithms for losses of two parameters, and a network
// for sine waves. `tests/experiments/test_explore.py` compares these functions with metajax.

const add = ([a, b], [c, d]) => [a + c, b + d];
const subtract = ([a, b], [c, d]) => [a - c, b - d];
const scale = (s, [a, b]) => [s * a, s * b];
const dot = ([a, b], [c, d]) => a * c + b * d;
const length = (v) => Math.hypot(...v);
const times = ([[a, b], [c, d]], [x, y]) => [a * x + b * y, c * x + d * y];
const solve = ([[a, b], [c, d]], [x, y]) =>
  scale(1 / (a * d - b * c), [d * x - b * y, a * y - c * x]);
const mean = (vectors) => scale(1 / vectors.length, vectors.reduce(add));
const degrees = (v, w) =>
  (180 / Math.PI) * Math.acos(Math.max(-1, Math.min(1, dot(v, w) / (length(v) * length(w)))));

// A loss with one minimum: sqrt(1 + d'Ad) - 1 for d = p - centre. The matrix A has the two
// curvatures as eigenvalues, the first along the given angle.
function valley({ centre, angle, curvatures }) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const [k, l] = curvatures;
  const a = [
    [k * c * c + l * s * s, (k - l) * c * s],
    [(k - l) * c * s, k * s * s + l * c * c],
  ];
  const at = (p) => {
    const d = subtract(p, centre);
    const ad = times(a, d);
    return { ad, root: Math.sqrt(1 + dot(d, ad)) };
  };
  return {
    centre,
    value: (p) => at(p).root - 1,
    gradient: (p) => {
      const { ad, root } = at(p);
      return scale(1 / root, ad);
    },
    hessian: (p) => {
      const { ad, root } = at(p);
      const entry = (i, j) => a[i][j] / root - (ad[i] * ad[j]) / root ** 3;
      return [
        [entry(0, 0), entry(0, 1)],
        [entry(1, 0), entry(1, 1)],
      ];
    },
  };
}

// The optimizers of optax: a function from a gradient to the change of the parameters.
const OPTIMIZERS = {
  sgd: (rate) => (g) => scale(-rate, g),
  momentum: (rate) => {
    let trace = [0, 0];
    return (g) => scale(-rate, (trace = add(g, scale(0.9, trace))));
  },
  // Without momentum, as in Nichol et al.
  adam: (rate) => {
    let [second, count] = [[0, 0], 0];
    return (g) => {
      count += 1;
      second = second.map((v, i) => 0.999 * v + 0.001 * g[i] ** 2);
      const corrected = second.map((v) => v / (1 - 0.999 ** count));
      return g.map((entry, i) => (-rate * entry) / (Math.sqrt(corrected[i]) + 1e-8));
    };
  },
};

// The parameters before the first and after each of the inner steps.
function adapt(loss, theta, { steps, rate, optimizer = "sgd" }) {
  const update = OPTIMIZERS[optimizer](rate);
  const path = [theta];
  for (let step = 0; step < steps; step++) {
    const last = path[step];
    path.push(add(last, update(loss.gradient(last))));
  }
  return path;
}

// The minimum of L(p) + proximal / 2 |p - theta|^2, by Newton steps that never go uphill.
function proximalMinimum(loss, theta, proximal) {
  const value = (p) => loss.value(p) + (proximal / 2) * length(subtract(p, theta)) ** 2;
  let p = theta;
  for (let step = 0; step < 20; step++) {
    const gradient = add(loss.gradient(p), scale(proximal, subtract(p, theta)));
    if (length(gradient) < 1e-10) break;
    let move = solve(plus(proximal, loss.hessian(p)), gradient);
    while (value(subtract(p, move)) > value(p) && length(move) > 1e-12) move = scale(0.5, move);
    p = subtract(p, move);
  }
  return p;
}

const plus = (s, [[a, b], [c, d]]) => [
  [a + s, b],
  [c, d + s],
];

// The meta-gradient of each algorithm for one task, whose support and query have the same loss.
const META_GRADIENTS = {
  joint: (loss, theta) => loss.gradient(theta),
  maml: (loss, theta, options) => {
    const path = adapt(loss, theta, options);
    const before = path.slice(0, -1);
    return before.reduceRight(
      (g, p) => subtract(g, scale(options.rate, times(loss.hessian(p), g))),
      loss.gradient(path.at(-1)),
    );
  },
  fomaml: (loss, theta, options) => loss.gradient(adapt(loss, theta, options).at(-1)),
  reptile: (loss, theta, options) => subtract(theta, adapt(loss, theta, options).at(-1)),
  imaml: (loss, theta, { proximal }) => {
    const p = proximalMinimum(loss, theta, proximal);
    const hessian = loss.hessian(p).map((row) => scale(1 / proximal, row));
    return solve(plus(1, hessian), loss.gradient(p));
  },
};

const metaGradient = (name, tasks, theta, options) =>
  mean(tasks.map((loss) => META_GRADIENTS[name](loss, theta, options)));

// The mean loss of the tasks at the parameters that each of them adapts to.
const META_LOSSES = {
  joint: (loss, theta) => loss.value(theta),
  steps: (loss, theta, options) => loss.value(adapt(loss, theta, options).at(-1)),
  proximal: (loss, theta, options) => loss.value(proximalMinimum(loss, theta, options.proximal)),
};

const metaLoss = (name, tasks, theta, options) =>
  tasks.reduce((sum, loss) => sum + META_LOSSES[name](loss, theta, options), 0) / tasks.length;

// Reptile and joint training from the same point: where one update of each leads.
function reptileUpdate(tasks, theta, { interpolation, ...options }) {
  const paths = tasks.map((loss) => adapt(loss, theta, options));
  const moved = mean(paths.map((path) => subtract(path.at(-1), theta)));
  const gradient = mean(tasks.map((loss) => loss.gradient(theta)));
  return {
    paths,
    reptile: add(theta, scale(interpolation, moved)),
    joint: subtract(theta, scale(interpolation * options.rate, gradient)),
  };
}

// Two inner gradients of one task, on two mini-batches in either order: Nichol et al., section 5.1.
function expansion(batches, theta, rate) {
  const orders = [batches, [...batches].reverse()];
  const over = (f) => mean(orders.map(([first, second]) => f(first, second)));
  const after = (first) => subtract(theta, scale(rate, first.gradient(theta)));
  return {
    avgGrad: over((first) => first.gradient(theta)),
    avgGradInner: over((first, second) => times(second.hessian(theta), first.gradient(theta))),
    maml: over((first, second) => {
      const g = second.gradient(after(first));
      return subtract(g, scale(rate, times(first.hessian(theta), g)));
    }),
    fomaml: over((first, second) => second.gradient(after(first))),
    reptile: over((first, second) => add(first.gradient(theta), second.gradient(after(first)))),
  };
}

// The network with layers of 1, 40, 40 and 1 units and ReLU. Weights are the arrays w, b of each
// layer, w by rows of inputs.
const WIDTHS = [1, 40, 40, 1];

function unpack(numbers) {
  const layers = [];
  let start = 0;
  const take = (count) => Array.from(numbers.slice(start, (start += count)));
  for (let i = 1; i < WIDTHS.length; i++)
    layers.push({ w: take(WIDTHS[i - 1] * WIDTHS[i]), b: take(WIDTHS[i]) });
  return layers;
}

// The activations of all layers for one input.
function activations(layers, x) {
  const values = [[x]];
  layers.forEach(({ w, b }, i) => {
    const out = b.slice();
    const inputs = values[i];
    for (let m = 0; m < inputs.length; m++)
      if (inputs[m] !== 0)
        for (let n = 0; n < out.length; n++) out[n] += inputs[m] * w[m * out.length + n];
    values.push(i < layers.length - 1 ? out.map((v) => Math.max(v, 0)) : out);
  });
  return values;
}

const predict = (layers, x) => activations(layers, x).at(-1)[0];
const squaredError = (layers, points) =>
  points.reduce((sum, [x, y]) => sum + (predict(layers, x) - y) ** 2, 0) / points.length;

// A step of gradient descent on the mean squared error of the points.
function descend(layers, points, rate) {
  const next = layers.map(({ w, b }) => ({ w: w.slice(), b: b.slice() }));
  for (const [x, y] of points) {
    const values = activations(layers, x);
    let delta = [(2 * (values.at(-1)[0] - y)) / points.length];
    for (let i = layers.length - 1; i >= 0; i--) {
      const inputs = values[i];
      const below = inputs.map(() => 0);
      for (let m = 0; m < inputs.length; m++)
        for (let n = 0; n < delta.length; n++) {
          const at = m * delta.length + n;
          below[m] += layers[i].w[at] * delta[n];
          next[i].w[at] -= rate * inputs[m] * delta[n];
        }
      for (let n = 0; n < delta.length; n++) next[i].b[n] -= rate * delta[n];
      delta = below.map((v, m) => (inputs[m] > 0 ? v : 0));
    }
  }
  return next;
}

function fitPoints(layers, points, { steps, rate }) {
  for (let step = 0; step < steps && points.length; step++) layers = descend(layers, points, rate);
  return layers;
}
