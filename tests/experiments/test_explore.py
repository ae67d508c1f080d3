"""The interactive introduction, in a browser: its numbers are the library's, its controls work."""

import contextlib
import io
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments import explore
from experiments.explore.__main__ import main
from metajax import nn, train

TASKS = [
    {"centre": [-1.5, 0.8], "angle": 0.5, "curvatures": [4.0, 0.4]},
    {"centre": [1.5, 0.7], "angle": -0.8, "curvatures": [3.0, 0.4]},
    {"centre": [0.4, -1.3], "angle": 1.4, "curvatures": [4.0, 0.3]},
]
GRID = [[x, y] for x in np.linspace(-3, 3, 7).tolist() for y in np.linspace(-2.2, 2.2, 5).tolist()]
FIGURES = ("reptile", "surfaces", "sine_waves", "curvature")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "below" / "page.html"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        patch.setattr(sys, "argv", ["explore", "--out", str(path)])
        main()
    assert shown.getvalue().strip() == str(path)
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, html, **options):
    """The page, without a network; what goes wrong is collected in `page.problems`."""
    page = browser.new_context(offline=True, **options).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("request", lambda request: page.problems.append(request.url))
    page.goto(html.as_uri())
    page.wait_for_function(
        "() => window.explore && "
        "Object.values(explore.figures).every(({stage}) => Object.keys(stage.layers).length)"
    )
    page.problems.remove(html.as_uri())
    return page


@pytest.fixture(scope="module")
def page(browser, html):
    return opened(browser, html, viewport={"width": 1100, "height": 900})


def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["explore", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: --out=.* is a folder: name a file"):
        main()


def test_the_page_is_one_small_file(html):
    assert html.stat().st_size < 3_000_000


# The numbers.


def loss(params, batch, rng):
    """The loss of `valley`, with a support of one example that describes it."""
    difference = params - batch["centre"][0]
    return jnp.sqrt(1 + difference @ batch["matrix"][0] @ difference) - 1, {}


def described(task):
    c, s = np.cos(task["angle"]), np.sin(task["angle"])
    turn = np.array([[c, -s], [s, c]])
    matrix = turn @ np.diag(task["curvatures"]) @ turn.T
    return {"centre": jnp.asarray([task["centre"]]), "matrix": jnp.asarray(matrix[None])}


def stacked(tasks):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *map(described, tasks))


def by_library(learner, episodes):
    """The meta-gradients on the grid: an outer step of size 1 moves by them."""

    def at(theta):
        moved = learner.update(learner.init(theta), episodes, jax.random.key(0))[0]
        return theta - moved.meta_params.params

    return np.asarray(jax.jit(jax.vmap(at))(jnp.asarray(GRID)))


def learner(name, options):
    inner, outer = optax.sgd(options["rate"]), optax.sgd(1.0)
    if name == "imaml":  # to the minimizer, which the page finds by Newton's method
        rate, proximal = 1 / (4 + options["proximal"]), options["proximal"]
        return metajax.imaml(loss, optax.sgd(rate), outer, num_steps=400, proximal=proximal)
    if name == "joint":
        return metajax.maml(loss, inner, outer, num_steps=0)
    return getattr(metajax, name)(loss, inner, outer, num_steps=options["steps"])


@pytest.mark.parametrize("name", ["joint", "maml", "fomaml", "reptile", "imaml"])
@pytest.mark.usefixtures("float64")
def test_meta_gradients_are_those_of_the_library(page, name):
    options = {"steps": 3, "rate": 0.4, "proximal": 1.0}
    shown = page.evaluate(
        "([name, tasks, grid, options]) => grid.map("
        "(p) => explore.metaGradient(name, tasks.map(explore.valley), p, options))",
        [name, TASKS, GRID, options],
    )
    batch = stacked(TASKS)
    expected = by_library(learner(name, options), metajax.Episode(batch, batch))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sgd", optax.sgd(0.3)),
        ("momentum", optax.sgd(0.3, momentum=0.9)),
        ("adam", optax.adam(0.3, b1=0.0)),
    ],
)
@pytest.mark.usefixtures("float64")
def test_inner_steps_are_those_of_the_library(page, name, optimizer):
    options = {"steps": 5, "rate": 0.3, "optimizer": name}
    shown = page.evaluate(
        "([task, grid, options]) => grid.map("
        "(p) => explore.adapt(explore.valley(task), p, options))",
        [TASKS[0], GRID, options],
    )
    adapt = metajax.inner_loop(loss, optimizer, 5, meta_gradient=metajax.first_order())

    def path(theta):
        start = metajax.MetaParams(theta, ())
        return adapt.apply(
            start, described(TASKS[0]), jax.random.key(0), probe=lambda params, step: params
        )[1].probe

    expected = jax.jit(jax.vmap(path))(jnp.asarray(GRID))
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5)


def test_reptile_of_one_step_is_joint_training_to_rounding(page):
    updates = page.evaluate(
        "([tasks, grid]) => grid.map((p) => explore.reptileUpdate(tasks.map(explore.valley), p, "
        "{steps: 1, rate: 0.4, interpolation: 0.7}))",
        [TASKS, GRID],
    )
    for update in updates:
        np.testing.assert_allclose(update["reptile"], update["joint"], rtol=0, atol=4e-16 * 3)
    more = page.evaluate(
        "([tasks, p]) => explore.reptileUpdate(tasks.map(explore.valley), p, "
        "{steps: 2, rate: 0.4, interpolation: 0.7})",
        [TASKS, GRID[0]],
    )
    assert np.abs(np.subtract(more["reptile"], more["joint"])).max() > 0.1


@pytest.mark.usefixtures("float64")
def test_expansion_is_of_the_meta_gradients_of_the_library(page):
    rate, batches = 0.2, TASKS[:2]
    shown = page.evaluate(
        "([batches, grid, rate]) => grid.map("
        "(p) => explore.expansion(batches.map(explore.valley), p, rate))",
        [batches, GRID, rate],
    )
    shown = {name: np.array([each[name] for each in shown]) for name in shown[0]}
    first, second = stacked(batches), stacked(batches[::-1])
    episodes = metajax.Episode(first, second)
    for name in ("maml", "fomaml"):
        expected = by_library(learner(name, {"rate": rate, "steps": 1}), episodes)
        np.testing.assert_allclose(shown[name], expected, rtol=0, atol=1e-5)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), first, second)
    reptile = metajax.reptile(
        loss, optax.sgd(rate), optax.sgd(1 / rate), num_steps=2, batches=metajax.per_step()
    )
    expected = by_library(reptile, metajax.Episode(both, first))
    np.testing.assert_allclose(shown["reptile"], expected, rtol=0, atol=1e-5)

    def value(theta, task):
        return loss(theta, described(task), None)[0]

    def agreement(theta):
        gradients = [jax.grad(value)(theta, task) for task in batches]
        return 0.5 * jnp.vdot(*gradients)

    inner = jax.vmap(jax.grad(agreement))(jnp.asarray(GRID))
    np.testing.assert_allclose(shown["avgGradInner"], inner, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["maml", "joint"])
@pytest.mark.usefixtures("float64")
def test_networks_adapt_as_in_the_library(page, name):
    x = np.linspace(-4.5, 4.5, 6)
    points = np.stack([x, 2.5 * np.sin(x - 1)], axis=1)
    grid = np.linspace(-5, 5, 21)
    shown = page.evaluate(
        "([name, points, grid]) => { const layers = explore.fitPoints("
        "explore.unpack(explore.weights[name]), points, {steps: 8, rate: 0.01}); "
        "return grid.map((x) => explore.predict(layers, x)); }",
        [name, points.tolist(), grid.tolist()],
    )
    network = nn.sinusoid_mlp()
    adapt = metajax.inner_loop(metajax.squared_error(network.apply), optax.sgd(0.01), 8)
    like = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.float32),
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1))),
    )
    start = jax.tree.map(jnp.float64, train.load_weights(explore.NETWORKS[name], adapt, like))
    support = jnp.asarray(points[:, :1]), jnp.asarray(points[:, 1:])
    adapted, _ = jax.jit(adapt.apply)(start, support, jax.random.key(0))
    expected = network.apply(adapted, jnp.asarray(grid)[:, None])[:, 0]
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5)


# The figures.


def said(page, figure):
    """What a figure says, after it was drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator(f"#{figure} .said").inner_text()


def state(page, figure, name):
    said(page, figure)
    return page.evaluate(f"() => explore.figures.{figure}.state.{name}")


def drawn(page, figure, layer):
    said(page, figure)
    return page.evaluate(f"() => explore.figures.{figure}.stage.layers.{layer}.svg.outerHTML")


def control(page, figure, name):
    return page.locator(f"#{figure} form [name={name}]")


def test_the_page_loads_without_a_problem(page):
    for figure in FIGURES:
        assert len(said(page, figure)) > 40
        assert page.locator(f"#{figure} svg.layer path").count() > 1
    assert page.problems == []


@pytest.mark.parametrize(
    ("figure", "name", "value"),
    [
        *(("reptile", *change) for change in [("steps", 3), ("rate", 0.1), ("interpolation", 0.2)]),
        *(("surfaces", *change) for change in [("steps", 5), ("rate", 0.2), ("proximal", 3)]),
        ("surfaces", "tasks", 4),
        *(("sine_waves", *change) for change in [("steps", 9), ("rate", 0.004)]),
        *(("curvature", *change) for change in [("curvature", 5), ("spread", 80), ("rate", 0.5)]),
    ],
)
def test_every_slider_changes_the_numbers(page, figure, name, value):
    slider = control(page, figure, name)
    before, old = said(page, figure), slider.input_value()
    slider.fill(str(value))
    assert said(page, figure) != before
    assert slider.locator("xpath=../output").inner_text() == str(value)
    slider.fill(old)
    assert said(page, figure) == before


def test_figure_a_has_one_arrow_at_one_step_and_updates(page):
    slider = control(page, "reptile", "steps")
    slider.fill("1")
    assert "the same point" in said(page, "reptile")
    control(page, "reptile", "optimizer").select_option("adam")
    assert "apart" in said(page, "reptile")
    control(page, "reptile", "optimizer").select_option("momentum")
    assert "the same point" in said(page, "reptile")  # no momentum yet at the first step
    control(page, "reptile", "optimizer").select_option("sgd")
    slider.fill("6")
    assert "apart" in said(page, "reptile")
    control(page, "reptile", "task").select_option("1")
    assert len(state(page, "reptile", "paths")) == 1
    control(page, "reptile", "task").select_option("both")
    assert len(state(page, "reptile", "paths")) == 2
    start, target = state(page, "reptile", "theta"), state(page, "reptile", "reptile")
    control(page, "reptile", "update").click()
    assert state(page, "reptile", "theta") == target
    control(page, "reptile", "reset").click()
    assert state(page, "reptile", "theta") == start


def test_figure_b_draws_the_chosen_algorithms_on_the_chosen_surface(page):
    surfaces = {}
    for kind in ("joint", "proximal", "steps"):
        control(page, "surfaces", "surface").select_option(kind)
        surfaces[kind] = drawn(page, "surfaces", "surface")
    assert len(set(surfaces.values())) == 3
    control(page, "surfaces", "fomaml").uncheck()
    assert list(state(page, "surfaces", "gradients")) == ["joint", "maml", "reptile", "imaml"]
    control(page, "surfaces", "fomaml").check()
    with_steps = drawn(page, "surfaces", "arrows")
    control(page, "surfaces", "paths").uncheck()
    assert len(drawn(page, "surfaces", "arrows")) < len(with_steps)
    control(page, "surfaces", "paths").check()
    control(page, "surfaces", "steps").fill("0")  # then MAML is joint training
    gradients = state(page, "surfaces", "gradients")
    assert gradients["maml"] == gradients["joint"]
    control(page, "surfaces", "steps").fill("3")


def test_points_of_figure_c_are_placed_moved_and_removed(page):
    stage = page.locator("#sine_waves .stage")
    assert len(state(page, "sine_waves", "points")) == 5
    control(page, "sine_waves", "clear").click()
    assert state(page, "sine_waves", "points") == []
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    stage.click(position={"x": box["width"] / 2, "y": box["height"] / 3})
    ((x, y),) = state(page, "sine_waves", "points")
    assert abs(x) < 0.4
    assert 0.5 < y < 3.5
    handle = page.locator("#sine_waves .handle")
    handle.focus()
    page.keyboard.press("Shift+ArrowRight")
    ((moved, _),) = state(page, "sine_waves", "points")
    assert moved == pytest.approx(x + 0.5)
    page.keyboard.press("Delete")
    assert state(page, "sine_waves", "points") == []
    control(page, "sine_waves", "add").click()
    assert state(page, "sine_waves", "points") == [[0, 0]]
    control(page, "sine_waves", "remove").click()
    control(page, "sine_waves", "wave").click()
    assert len(state(page, "sine_waves", "points")) == 5
    errors = state(page, "sine_waves", "errors")
    assert errors["maml"][1] < errors["maml"][0]


@pytest.mark.parametrize("figure", ["reptile", "surfaces", "curvature"])
def test_theta_follows_the_mouse_and_the_keys(page, figure):
    handle = page.locator(f"#{figure} .handle")
    handle.scroll_into_view_if_needed()
    start, before = state(page, figure, "theta"), said(page, figure)
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y - 30, steps=3)
    page.mouse.up()
    dragged = state(page, figure, "theta")
    assert dragged[0] > start[0] + 0.2
    assert dragged[1] > start[1] + 0.1
    assert said(page, figure) != before
    page.keyboard.press("ArrowLeft")
    assert state(page, figure, "theta") == pytest.approx([dragged[0] - 0.06, dragged[1]])


def test_a_phone_in_the_dark_needs_no_scroll_bar_and_takes_taps(browser, html):
    page = opened(
        browser,
        html,
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    stage = page.locator("#curvature .stage")
    stage.scroll_into_view_if_needed()
    stage.tap(position={"x": 250, "y": 60})
    x, y = state(page, "curvature", "theta")
    assert x > 0.5
    assert y > 0.5
    # The page that embeds this one chooses the theme.
    page.evaluate("postMessage({theme: 'light'})")
    page.wait_for_function(
        "getComputedStyle(document.body).backgroundColor == 'rgb(255, 255, 255)'"
    )
    assert page.problems == []
