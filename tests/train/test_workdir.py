"""The claim of a working directory by a configuration or by digests; provenance."""

import jax
import pytest

from metajax import train
from metajax.train.workdir import claim
from tests.train.runs import assert_equal, fit, otherwise, own, run


def test_a_run_of_before_digests_is_continued_and_gets_some(tmp_path):
    run(tmp_path, own())
    digests = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text("{}\n")
    run(tmp_path, own(), num_meta_steps=30)
    assert (tmp_path / "config.json").read_text() == digests


def test_with_and_without_a_configuration_are_two_runs(tmp_path):
    run(tmp_path / "without", own())
    with pytest.raises(train.WorkdirError, match="without config=: omit"):
        run(tmp_path / "without", own(), config={"seed": 0})
    run(tmp_path / "with", own(), config={"seed": 0})
    with pytest.raises(train.WorkdirError, match="with config=: pass"):
        run(tmp_path / "with", own())


def test_a_configuration_is_all_that_identifies_its_run(tmp_path):
    first = run(tmp_path, own(), config={"seed": 0})
    again = run(tmp_path, own(size=2.0), config={"seed": 0}, params=otherwise(1.0))
    assert_equal(first.state, again.state)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fit(own(), workdir=tmp_path, config={"rate": 0.1, "seed": 0})
    with pytest.raises(train.WorkdirError, match=r"rate: 0.1 there, 0.2 here\n  ways: absent"):
        fit(own(), workdir=tmp_path, config={"rate": 0.2, "seed": 0, "ways": 5})
    assert train.read_config(tmp_path) == {"rate": 0.1, "seed": 0}


def test_a_run_may_be_lengthened_and_says_so(tmp_path):
    lengths = [{"num_meta_steps": steps, "seed": 0} for steps in (20, 40, 60)]
    for config in lengths:
        fit(own(), workdir=tmp_path, config=config, num_meta_steps=config["num_meta_steps"])
    config = {**lengths[-1], "earlier_num_meta_steps": [20, 40]}
    assert train.read_config(tmp_path) == config
    at_once, continued = (
        fit(own(), workdir=where, config=lengths[-1]) for where in (None, tmp_path)
    )
    assert_equal(at_once.state, continued.state)
    assert train.read_config(tmp_path) == config
    for other in (lengths[0], {**lengths[-1], "num_meta_steps": 80, "seed": 1}):
        with pytest.raises(train.WorkdirError, match="num_meta_steps: 60 there"):
            fit(own(), workdir=tmp_path, config=other, num_meta_steps=other["num_meta_steps"])


def test_what_read_config_returns_continues_the_run(tmp_path):
    for steps in (20, 40):
        fit(own(), workdir=tmp_path, config={"num_meta_steps": steps}, num_meta_steps=steps)
    found = train.read_config(tmp_path)
    fit(own(), workdir=tmp_path, config=found, num_meta_steps=40)
    fit(own(), workdir=tmp_path, config={**found, "num_meta_steps": 60})
    assert train.read_config(tmp_path) == {
        "num_meta_steps": 60,
        "earlier_num_meta_steps": [20, 40],
    }


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (float("nan"), float("nan")),
        ([1, {"rate": float("inf")}], (1, {"rate": float("inf")})),
        (1, 1.0),
        ({"a": 1, "b": [2.0]}, {"b": [2.0], "a": 1}),
        (None, None),
    ],
)
def test_equal_configurations_are_one(tmp_path, there, here):
    claim(tmp_path, {"value": there})
    claim(tmp_path, {"value": here})


@pytest.mark.parametrize(
    ("there", "here"), [(None, "absent"), (0, 0.5), (float("nan"), 0.0), ([1, 2], [2, 1])]
)
def test_different_configurations_are_two(tmp_path, there, here):
    claim(tmp_path, {"value": there})
    with pytest.raises(train.WorkdirError, match=r"value: .* there, .* here"):
        claim(tmp_path, {} if here == "absent" else {"value": here})


def test_checkpoints_of_an_unknown_configuration_are_refused(tmp_path):
    fit(own(), workdir=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(train.WorkdirError, match=r"no config\.json"):
        fit(own(), workdir=tmp_path)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("")
    for config in (None, {}):
        with pytest.raises(
            train.WorkdirError, match=r"cannot be made a directory \(.*another workdir"
        ):
            fit(workdir=tmp_path / "file" / below, config=config)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[1]", "is not a JSON object"), ("\xff", "is not valid JSON")],
)
def test_a_config_that_cannot_be_read_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    for config in (None, {}):
        with pytest.raises(train.WorkdirError, match=message):
            fit(workdir=tmp_path, config=config)


def test_provenance_names_device_versions_environment_and_commit(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    found = train.provenance.__wrapped__()
    assert found["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert found["device"]["platform"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__
    assert "commit" in found


def test_the_commit_of_a_container_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_COMMIT", "0123456789")
    monkeypatch.setattr("metajax.train.workdir.__file__", str(tmp_path / "workdir.py"))
    assert train.provenance.__wrapped__()["commit"] == "0123456789"
