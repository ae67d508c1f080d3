"""Language models that learn from what they read: their tasks, their decoder and their launcher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import decoder, language, text
from experiments.settings import UsageError
from tests.experiments.launching import launch

DOCUMENTS = [bytes(range(100)), bytes(range(120, 131)), bytes(range(200, 250))]
TINY = [
    "--num_meta_steps=4",
    "--meta_batch_size=2",
    "--steps_per_call=2",
    "--validate_every=4",
    "--checkpoint_every=4",
    "--eval_tasks=4",
    "--validation_tasks=2",
    "--num_chunks=3",
    "--chunk=4",
    "--blocks=2",
    "--width=8",
    "--heads=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(80):
        words = rng.choice(["alpha ", "beta ", "gamma "], 30)
        (root / f"{i}.txt").write_text(f"{i} " + "".join(words))
    return root


def test_contexts_are_consecutive_bytes_of_one_document_and_equally_likely():
    tasks = text.Contexts.of(DOCUMENTS, chunk=4, num_chunks=3)  # contexts of 17 bytes
    support, query = jax.vmap(tasks.sample)(jax.random.split(jax.random.key(0), 4000))
    assert support.shape == (4000, 3, 9)
    assert query.shape == (4000, 17)
    assert (jnp.diff(query.astype(int)) == 1).all()
    first = np.asarray(query[:, 0])
    # 84 contexts of the first document and 34 of the third; the second is too short.
    assert set(first) == {*range(84), *range(200, 234)}
    assert np.mean(first < 100) == pytest.approx(84 / 118, abs=0.03)


def test_chunks_overlap_by_the_one_before():
    found = text.chunks(jnp.arange(17), 4)
    assert found.tolist() == [list(range(i, i + 9)) for i in (0, 4, 8)]


def test_files_are_split_by_their_content(tmp_path, folder):
    corpus = text.read(str(folder))
    everything = [each for split in corpus for each in split]
    assert len(set(everything)) == len(everything) == 80
    (folder / "copy.txt").write_bytes(corpus.train[0])
    assert text.read(str(folder)) == corpus
    (folder / "copy.txt").unlink()
    sizes = corpus.describe()["documents_and_bytes"]
    assert sizes["test"] == [len(corpus.test), sum(map(len, corpus.test))]
    one = tmp_path / "one.txt"
    one.write_bytes(bytes(range(256)) * 16)
    with pytest.raises(ValueError, match="1 documents, too few"):
        text.read(str(one))
    with pytest.raises(FileNotFoundError, match="no text at"):
        text.read(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"the 1,000,003 bytes of a context"):
        text.Contexts.of(DOCUMENTS, chunk=1, num_chunks=1_000_001)


def test_the_standard_library_is_there():
    corpus = text.read(None)
    assert sum(map(len, corpus.train)) > 10**6


@pytest.fixture(scope="module")
def model():
    network = decoder.Decoder(blocks=2, width=8, heads=2, rank=2)
    return network, network.init(jax.random.key(0), jnp.zeros((1, 1), int))


def test_a_byte_is_predicted_from_those_before_it(model):
    network, params = model
    tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, 256)
    logits = network.apply(params, tokens)
    assert logits.shape == (3, 12, 256)
    changed = network.apply(params, tokens.at[:, 8].add(1))
    np.testing.assert_allclose(logits[:, :8], changed[:, :8], rtol=1e-5, atol=1e-6)
    assert (abs(logits - changed)[:, 8:].max(-1) > 1e-5).all()


def test_positions_are_relative():
    x = jax.random.normal(jax.random.key(0), (2, 6, 1, 4))
    query, key = decoder.rotated(jnp.broadcast_to(x[:, :1], x.shape)), decoder.rotated(x)
    same = decoder.rotated(jnp.broadcast_to(x[:, 1:2], x.shape))
    products = jnp.einsum("bqhd,bkhd->bqk", query, same)
    np.testing.assert_allclose(products[:, 1, 0], products[:, 4, 3], rtol=1e-4, atol=1e-5)
    assert abs(products[:, 1, 0] - products[:, 4, 0]).max() > 1e-3
    np.testing.assert_allclose(
        jnp.linalg.norm(key, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_adapters_start_at_nothing_and_alone_take_the_steps(model):
    network, params = model
    plain = decoder.Decoder(blocks=2, width=8, heads=2)
    stripped = jax.tree_util.tree_map_with_path(lambda path, x: x, params)
    for name in ("up", "down"):
        for each in ("lora_down", "lora_up"):
            stripped["params"]["block_1"][name].pop(each)
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 256)
    np.testing.assert_allclose(network.apply(params, tokens), plain.apply(stripped, tokens))

    def moving(tree, settings):
        where = language.is_adapting(settings)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path) for path, _ in leaves if where(path)}

    settings = language.Language(blocks=2, width=8, heads=2)
    dense = {f"['params']['block_1']['{n}']['Dense_0']['kernel']" for n in ("up", "down")}
    assert moving(stripped, settings) == dense
    lora = language.Language(blocks=2, width=8, heads=2, adapters=2)
    assert len(moving(params, lora)) == 4
    assert all("lora" in name for name in moving(params, lora))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset=ttt"],
        pytest.param(["--preset=window"], marks=pytest.mark.slow),
        pytest.param(["--preset=full"], marks=pytest.mark.slow),
        pytest.param(["--preset=ttt_first_order"], marks=pytest.mark.slow),
        pytest.param(["--preset=ttt_lora"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_every_arm_trains_and_is_judged_by_position(tmp_path, folder, arguments):
    where = [f"--data_dir={folder}", f"--workdir={tmp_path}"]
    launch(language, *TINY, *arguments, *where)
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["evaluation"]["loss"]
    expected = {"--preset=window": {"dynamic evaluation"}, "--preset=full": set()}
    more = expected.get(arguments[0], {"with inner steps"})
    assert {*rows} == {"without inner steps"} | more
    for row in rows.values():
        losses = row["loss"]["mean"]
        assert len(losses) == 3
        assert row["mean_loss"]["mean"] == [pytest.approx(np.mean(losses), rel=1e-5)]
        assert row["fall"]["mean"] == [pytest.approx(losses[0] - losses[-1], abs=1e-5)]
        assert row["loss"]["num_tasks"] == 4
    for row in rows.values():  # before any step all are alike
        still = rows["without inner steps"]["loss"]["mean"]
        assert row["loss"]["mean"][0] == pytest.approx(still[0], rel=1e-5)
    assert (tmp_path / "by_position.png").exists()
    assert result["corpus"]["sha256"] == text.read(str(folder)).describe()["sha256"]
    (folder / "more.txt").write_text("another " * 30)
    try:
        with pytest.raises(UsageError, match="not that of the run"):
            launch(language, "--mode=eval", *where)
    finally:
        (folder / "more.txt").unlink()


def test_what_does_not_fit_is_refused(tmp_path):
    for arguments, message in (
        (["--width=12", "--heads=4"], "multiple of twice"),
        (["--adapting_blocks=9"], "more than the 4 --blocks"),
        (["--preset=full", "--inner_learning_rate=1"], "no effect with --algorithm=full"),
        (["--data_dir=/nowhere"], "no text at"),
        (["--num_steps=2"], "--num_steps=2 has no effect: there is a step per chunk"),
        (["--preset=full", "--adapting_blocks=2"], "no effect with --algorithm=full"),
    ):
        with pytest.raises(UsageError, match=message):
            launch(language, *arguments, f"--workdir={tmp_path}")
