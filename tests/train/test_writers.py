"""Metrics as lines and events, averaged over a call, and after a resume."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from metajax import train
from tests.train.runs import fit, own


def test_metrics_are_written_as_lines_and_events(tmp_path):
    fit(workdir=tmp_path, num_meta_steps=25)
    lines = train.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert len(lines[0]["train/support_loss"]) == 2
    assert {"train/query_loss", "train/query/bias", "train/meta_gradient_norm"} <= set(lines[0])
    assert any(path.stat().st_size > 100 for path in (tmp_path / "events").iterdir())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_metrics_are_averaged_over_the_steps_of_a_call(tmp_path, dtype):
    mine = own(lambda step: {"seen": (1.25 + 2 * (step % 2)).astype(dtype)})
    every = dict.fromkeys(("steps_per_call", "checkpoint_every", "validate_every"), 1000)
    fit(mine, workdir=tmp_path, num_meta_steps=1000, **every)
    assert train.read_metrics(tmp_path)[0]["train/seen"] == (2 if dtype == jnp.int32 else 2.25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_metric_that_is_not_finite_is_written_without_a_word(value, tmp_path, capsys, caplog):
    mine = own(lambda step: {"odd": jnp.asarray(value)})
    fit(mine, num_meta_steps=20, workdir=tmp_path)
    assert not caplog.records
    np.testing.assert_equal(train.read_metrics(tmp_path)[-1]["train/odd"], value)


def test_a_half_written_line_is_dropped_on_resume(tmp_path):
    fit(own(), workdir=tmp_path, num_meta_steps=20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train/que')
    fit(own(), workdir=tmp_path, num_meta_steps=30)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [10, 20, 30]


def read_events(folder):
    """The events of a folder: records of a length, its checksum, the data and their checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_a_summary_has_settings_results_and_figures(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "curve.png")
    frames = [Image.new("P", (5, 4), color) for color in (0, 1)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    config = {"algorithm": "maml", "shots": 5, "rate": 0.5, "on": True, "earlier": [1], "not": None}
    figures = [tmp_path / "curve.png", tmp_path / "film.gif"]
    train.summarize(tmp_path, 70, config, {"result/mse": 0.25}, figures)
    values = [
        (event.step, value)
        for event in read_events(tmp_path / "events")
        for value in event.summary.value
    ]
    assert {step for step, _ in values} == {70}
    by_tag = {value.tag: value for _, value in values}
    assert by_tag["result/mse"].simple_value == 0.25
    shown = {tag: (each.image.width, each.image.height) for tag, each in by_tag.items()}
    assert shown["curve"] == (3, 2)
    assert shown["film"] == (5, 4)
    for path in figures:
        assert by_tag[path.stem].image.encoded_image_string == path.read_bytes()
    started = HParamsPluginData.FromString(
        by_tag["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info.hparams
    assert started["algorithm"].string_value == "maml"
    assert started["shots"].number_value == 5
    assert started["on"].bool_value
    assert started["earlier"].string_value == "[1]"
    described = HParamsPluginData.FromString(
        by_tag["_hparams_/experiment"].metadata.plugin_data.content
    ).experiment
    assert [metric.name.tag for metric in described.metric_infos] == ["result/mse"]
