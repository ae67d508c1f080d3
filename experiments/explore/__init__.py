"""An interactive introduction to MAML, FOMAML, Reptile and iMAML, on one page of HTML.

Command:   python -m experiments.explore [--out=FILE]
Hardware:  any
Wall time: some seconds
Expected:  a page that opens from disk, without a network, in light and dark, on a phone too

The figures compute what they show in the browser (`page/numbers.js`), and the tests compare that
with the library. Observable Plot and d3 draw it; their files in `page/vendor` are those of their
releases.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("numbers.js", "stage.js", "figures.js")
RECORDS = Path(__file__).parents[2] / "benchmarks" / "results" / "sinusoid"
# The page starts with steps of 0.01, for which the first network is meta-trained.
NETWORKS = {
    "maml": RECORDS / "finn2017_printed" / "maml" / "seed0",
    "joint": RECORDS / "finn2017" / "maml,num_steps=0" / "seed0",
}


def weights(record: Path) -> np.ndarray:
    """The parameters of a network for sine waves in one array: w and b of each layer in turn."""
    arrays = load_file(record / "weights.safetensors")
    names = sorted(name for name in arrays if name.startswith("meta_params/params/"))
    layers = dict.fromkeys(name.rpartition("/")[0] for name in names)
    # `Dense_0`, `Dense_1`, `head`: their order is that of the names.
    flat = [arrays[f"{layer}/{part}"].ravel() for layer in layers for part in ("kernel", "bias")]
    return np.concatenate(flat).astype("<f4")


def html() -> str:
    """The page."""
    networks = {
        name: base64.b64encode(weights(record).tobytes()).decode()
        for name, record in NETWORKS.items()
    }
    parts = {
        "style": (PAGE / "style.css").read_text(),
        "data": json.dumps({"weights": networks}),
        "d3": (PAGE / "vendor" / "d3.min.js").read_text(),
        "plot": (PAGE / "vendor" / "plot.umd.min.js").read_text(),
        "script": "\n".join((PAGE / name).read_text() for name in SCRIPTS),
    }
    page = (PAGE / "index.html").read_text()
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], page)
