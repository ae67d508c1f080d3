"""What the benchmarks count and render."""

import json
import re

import jax
import numpy as np
import pytest

import metajax
from benchmarks import deviceless, problems, results_folder, rl_runs, sequence_models, tables
from metajax import nn


def test_the_page_is_rendered_from_the_records():
    assert tables.PAGE.read_text() == tables.render()


def test_records_of_another_platform_are_sections_with_plots_of_their_own(tmp_path, monkeypatch):
    for name in tables.SECTIONS:
        rows = tables.read(name)
        for row in rows:
            row["device"] = {"platform": "gpu", "kind": "an accelerator", "count": 1}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{results_folder.named(name, 'gpu')}.jsonl").write_text(text)
    recorded = sum(bool(tables.read(name)) for name in tables.SECTIONS)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "README.md")
    page = tables.render()
    assert page.count("\n## ") == page.count(", GPU\n") == recorded
    tables.draw()
    shown = re.findall(r"\]\((\w+\.png)\)", page)
    assert {"growth_gpu.png", "chunks_gpu.png"} <= set(shown)
    assert all(name.endswith("_gpu.png") for name in shown)
    assert all((tmp_path / name).stat().st_size > 1_000 for name in shown)


@pytest.mark.optimized
@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_useful_operations_are_what_the_compiled_program_cannot_do_without(order):
    problem = problems.omniglot(tasks=1, queries=1)
    engine = metajax.second_order() if order == 2 else metajax.first_order()
    update, arguments = problems.update(problem, meta_gradient=engine)
    counted = jax.jit(update).lower(*arguments).compile().cost_analysis()["flops"]
    # XLA counts element-wise operations as well.
    assert 1 <= counted / problems.useful_flops(problem, order) < 1.15


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "case", [problems.omniglot, pytest.param(problems.mini_imagenet, marks=pytest.mark.slow)]
)
def test_the_updates_lower_for_accelerators(case, platform, monkeypatch):
    # The choices that are made there.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if platform == "cuda" else platform)
    update, arguments = problems.update(case(tasks=2, queries=1))
    lowered = jax.jit(update).trace(*arguments).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in lowered.as_text()) == (platform == "tpu")


@pytest.mark.optimized
@pytest.mark.parametrize("method", ["patches", "native"])
def test_an_update_compiles_for_devices_that_are_only_described(method):
    problem = problems.omniglot(tasks=2, queries=1)
    row = deviceless.measure(problem, "gpu", jax.devices()[:2], "first_order", method)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(problems.parameters(problem)))
    # The gradient and its metrics are one vector.
    assert row["all_reduces"] == 1
    assert 4 * parameters < row["all_reduce_bytes"] < 4 * parameters + 64
    assert row["temporary_bytes"] > 0


@pytest.mark.parametrize("target", deviceless.TARGETS)
def test_a_target_without_its_compiler_says_what_brings_it(target, monkeypatch, capsys):
    def missing(**description):
        raise NotImplementedError("no plugin")

    monkeypatch.setattr(deviceless.topologies, "get_topology_desc", missing)
    monkeypatch.setattr("sys.argv", ["deviceless", "--targets", target])
    with pytest.raises(SystemExit):
        deviceless.main()
    assert re.search(rf"{target}: no plugin\n.*jax\[tpu\]", capsys.readouterr().err)


SMALL = {
    "convolutions": problems.omniglot(tasks=2, queries=1),
    "perceptron": problems.perceptron(tasks=2, queries=1),
    "residual": problems.residual(tasks=1, queries=1, example=(16, 16, 3), num_steps=1)._replace(
        model=nn.ResNet(5, features=(8, 12))
    ),
    "recurrent": problems.recurrent(tasks=2, queries=1, example=(6, 3), num_steps=2),
    "transformer": problems.transformer(tasks=2, queries=1, example=(6, 3), num_steps=2)._replace(
        model=sequence_models.Transformer(16, depth=2, heads=2, outputs=5)
    ),
}


@pytest.mark.parametrize("problem", SMALL.values(), ids=SMALL)
def test_peers_compute_the_same_meta_gradient(problem):
    torch_peers = pytest.importorskip("benchmarks.torch_peers")
    torch_networks = pytest.importorskip("benchmarks.torch_networks")
    update, arguments = problems.update(problem, meta_gradient=metajax.second_order())
    updated = jax.jit(update)(*arguments)[0].meta_params.params
    gradient = jax.tree.map(lambda a, b: a - b, problems.parameters(problem), updated)
    expected = torch_networks.arrays(gradient, problem).values()
    for found, array in zip(torch_peers.loop(problem, 2)(), expected, strict=True):
        found = found.detach().numpy()
        assert np.linalg.norm(found - array) <= 1e-3 * max(np.linalg.norm(array), 0.1)


def test_a_run_outside_a_repository_has_an_unknown_commit():
    assert tables.commit({"commit": None}) == "unknown"
    assert tables.commit({"commit": "01234567890123456789-dirty"}) == "0123456789-dirty"


def run_of(algorithm, returns, *, seed=0, task="cheetah_dir", experiment="locomotion"):
    """A record as the launchers of meta-RL write it."""
    config = {"task": task, "simulator": "rllab", "backend": "spring", "horizon": 200}
    config |= {"surrogate": "dice", "seed": seed, "preset": "reduced", "overrides": ["seed"]}
    row = {"mean": returns, "ci95": [0.5] * len(returns), "num_tasks": 40}
    return {
        "experiment": experiment,
        "name": f"{algorithm}_{seed}",
        "algorithm": algorithm,
        "preset": "reduced",
        "config": {**config, "algorithm": algorithm},
        "meta_steps": 0 if algorithm == "random" else 300,
        "wall_seconds": 100.0,
        "device": {"platform": "cpu", "cpu_cores": 2},
        "evaluation": {"return": row, "random": {**row, "mean": [-20.0] * len(returns)}},
    } | ({} if algorithm == "random" else {"env_steps_per_second": 2e4})


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line[:1] == "|"]


def test_no_records_no_table():
    assert rl_runs.navigation_table([]) == rl_runs.locomotion_table([]) == []


def test_runs_that_differ_in_the_seed_are_a_row_of_their_mean_and_interval():
    runs = [
        run_of("maml", [-40.0, first, -3.0, -3.0], seed=seed, experiment="navigation")
        for seed, first in enumerate((-10.0, -11.0, -12.0))
    ]
    _, _, paper, row = cells(rl_runs.navigation_table(runs))
    assert paper[3:8] == ["40", "-40.41", "-11.68", "-3.33", "-3.23"]
    assert row == [
        "[maml](benchmarks/results/maml_0) (3 seeds)",
        "dice",
        "reduced",
        "40",
        "-40.00 ± 0.00",
        "-11.00 ± 2.48",  # 4.303 / sqrt(3)
        "-3.00 ± 0.00",
        "-3.00 ± 0.00",
        "300",
        "2.0 M",
        "100 s",
        "2 cores",
    ]


def test_runs_that_were_evaluated_on_other_numbers_of_tasks_are_rows_apart():
    runs = [run_of("maml", [-40.0, -10.0], seed=seed, experiment="navigation") for seed in (0, 1)]
    runs[1]["config"]["eval_tasks"] = runs[1]["evaluation"]["return"]["num_tasks"] = 400
    assert [row[3] for row in cells(rl_runs.navigation_table(runs))[3:]] == ["40", "400"]


def test_the_score_is_between_the_untrained_policy_and_the_oracle_of_the_same_size():
    runs = [
        run_of("maml", [-5.0, 40.0, 41.0, 42.0]),
        run_of("oracle", [100.0]),
        run_of("random", [-20.0, -14.0, -10.0, -8.0]),
        run_of("maml", [-5.0, 40.0, 41.0, 42.0], task="ant_dir"),
    ]
    _, _, ant, maml, oracle, random = cells(rl_runs.locomotion_table(runs))
    assert maml[7:9] == ["0.50", "0.69"]
    assert ant[7:9] == ["", "0.95"]
    assert oracle[3:9] == ["100.0 ± 0.5", "", "", "", "", ""]
    assert random[7:12] == ["0.05", "", "", "", ""]


@pytest.mark.parametrize(
    ("task", "score"),
    [("cheetah_dir", 0.69), ("cheetah_vel", 0.88), ("ant_dir", 0.95), ("ant_vel", 0.94)],
)
def test_the_papers_scores_follow_from_its_returns(task, score):
    assert rl_runs.paper_score(task) == pytest.approx(score, abs=0.005)


def test_throughput_counts_the_steps_of_what_it_races():
    throughput = pytest.importorskip("benchmarks.throughput")
    pytest.importorskip("benchmarks.gymnasium_peers")
    rows = throughput.measure(
        "navigation",
        1,
        peer_sizes=(3,),
        algorithm="reptile",  # compiles in a fraction of the trust region's time
        meta_batch_size=2,
        trajectories=3,
        num_steps=1,
    )
    update, sampling, random, peer = rows
    # Few of so few untrained policies find the goal; where one does, its trajectory ends there.
    assert 900 < update["env_steps"] <= 2 * 2 * 3 * 100
    assert 450 < sampling["env_steps"] <= 2 * 3 * 100
    assert 450 < random["env_steps"] <= 2 * 3 * 100
    assert peer["env_steps"] == 300
    assert peer["what"] == "gymnasium, 3 environments"
    for row in rows:
        assert row["env_steps_per_second"] == pytest.approx(row["env_steps"] / row["median"])
    share = update["env_steps_per_second"] / sampling["env_steps_per_second"]
    assert update["sampling_share"] == pytest.approx(share)
    assert random["of_random"] == peer["over_gymnasium"] == 1


def test_the_peers_navigation_is_ours():
    peers = pytest.importorskip("benchmarks.gymnasium_peers")
    from metajax.rl.navigation import navigation

    env, goal = navigation(), np.array([0.05, -0.02], np.float32)
    theirs = peers.Navigation(goal)
    theirs.reset()
    ours = env.reset(jax.random.key(0), {"goal": goal})
    for action in np.array([[2.0, -0.1], [-0.4, -0.1], [-0.05, 0.0]], np.float32):
        ours = env.step(ours, action)
        position, reward, done, _, _ = theirs.step(action)
        np.testing.assert_allclose(position, ours.observation, atol=1e-6)
        assert reward == pytest.approx(float(ours.reward), abs=1e-6)
        assert done == bool(ours.done)
    assert not done or np.abs(position - goal).max() < 0.01


def test_the_peers_cheetah_has_the_papers_time_step():
    pytest.importorskip("imageio")
    peers = pytest.importorskip("benchmarks.gymnasium_peers")
    assert peers.cheetah_dir(0).unwrapped.dt == pytest.approx(0.01)
