"""The papers' protocols: a preset for every cell of their tables.

The sources are the papers and, where these are silent, the authors' published code:

- Finn 2017: https://arxiv.org/abs/1703.03400, section 5.2 and appendix A.1.
- Nichol 2018: https://arxiv.org/abs/1803.02999, section 6.1, tables 3 and 4.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.classification import HEADS, FewShot, Omniglot, OwnImages, Photographs

Changes = dict[str, Any]

# preset -> {"transductive" | "non_transductive": [percent, half-width of the interval or None]}
PAPER_RESULTS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("paper_results.json").read_text()
)

# The authors' loss is a sum over classes, N times the mean for which our inner step size is stated.
# In the outer loop it is queries / shots times larger again. For Adam that matters only by its
# epsilon, but it matters for the clip. Batch norm's beta is meta-learned and not adapted.
FINN: Changes = {"outer_loss": "sum", "adapt_norm": False}


def finn_omniglot(ways: int, shots: int) -> Omniglot:
    """Table 1, top. The inner step size is `ways` times the printed 0.4 or 0.1."""
    few = ways == 5
    return Omniglot(
        **FINN,
        rotation="task",
        num_meta_steps=60_000,
        meta_batch_size=32 if few else 16,
        ways=ways,
        shots=shots,
        queries=shots,
        eval_queries=shots,
        num_steps=1 if few else 5,
        validation_steps=3 if few else 5,
        inner_learning_rate=2.0,
        steps_per_call=50 if few else 10,
        validate_every=1_000,
        checkpoint_every=500 if few else 100,
    )


def finn_photographs(dataset: str, shots: int) -> Photographs:
    """Table 1, bottom. The inner step size is 5 times the printed 0.01."""
    return Photographs(
        **FINN,
        **_photographs(dataset, shots),
        num_meta_steps=60_000,
        meta_batch_size=4 if shots == 1 else 2,
        num_steps=5,
        validation_steps=10,
        inner_learning_rate=0.05,
        clip=10.0,
    )


def _photographs(dataset: str, shots: int) -> Changes:
    """The settings that all presets of photographs share."""
    return {
        "dataset": dataset,
        "ways": 5,
        "shots": shots,
        "queries": 15,
        "eval_queries": 15,
        "validation_tasks": 100,
        "steps_per_call": 10,
        "validate_every": 500,
        "checkpoint_every": 50,
    }


# Gamma and beta are adapted and meta-learned like all other parameters. The state of the inner Adam
# is never reset. The authors run one task after another (--carry=serial); "mean" is the parallel
# counterpart.
REPTILE: Changes = {
    "algorithm": "reptile",
    "network": "conv_nichol",
    "outer_loss": "mean",
    "adapt_norm": True,
    "clip": 0.0,
    "meta_batch_size": 5,
    "num_meta_steps": 100_000,
    "queries": 1,
    "inner_optimizer": "adam",
    "carry": "mean",
    "outer_optimizer": "sgd",
    "outer_schedule": "linear",
    "outer_learning_rate": 1.0,
    "eval_tasks": 10_000,
    "eval_queries": 1,
    "num_eval_steps": 50,
    "validation_steps": 50,
}
REPTILE_OMNIGLOT: Changes = {
    **REPTILE,
    "train_shots": 10,
    "num_steps": 5,
    "inner_batch": 10,
    "inner_learning_rate": 1e-3,
    "eval_inner_batch": 5,
    "steps_per_call": 100,
    "validate_every": 5_000,
    "checkpoint_every": 1_000,
}
REPTILE_PHOTOGRAPHS: Changes = {
    **REPTILE,
    "train_shots": 15,
    "num_steps": 8,
    "inner_batch": 10,
    "inner_learning_rate": 1e-3,
    "eval_inner_batch": 5,
    "validation_tasks": 100,
    "steps_per_call": 10,
    "validate_every": 1_000,
    "checkpoint_every": 50,
}


def nichol_omniglot(ways: int, shots: int) -> Omniglot:
    """Table 2, with the settings of table 3.

    Ink is dark. The 1,200 training characters, for which the authors have no validation set, count
    four times, once for every quarter turn; test characters are upright. The last state is tested.
    """
    many = {
        "num_meta_steps": 200_000,
        "num_steps": 10,
        "inner_batch": 20,
        "inner_learning_rate": 5e-4,
        "eval_inner_batch": 10,
        "steps_per_call": 20,
        "validate_every": 1_000,
        "checkpoint_every": 200,
    }
    changes = {
        **REPTILE_OMNIGLOT,
        **(many if ways == 20 else {}),
        "ways": ways,
        "shots": shots,
        "invert": False,
        "rotation": "classes",
        "train_on": "train+validation",
        "choose": "last",
    }
    return Omniglot(**changes)


def nichol_photographs(dataset: str, shots: int) -> Photographs:
    """Table 1, with the settings of table 4."""
    changes = {
        **_photographs(dataset, shots),
        **REPTILE_PHOTOGRAPHS,
        "eval_inner_batch": 5 if shots == 1 else 15,
    }
    return Photographs(**changes)


def tails(settings: FewShot) -> dict[str, FewShot]:
    """First-order MAML by the last mini-batch (section 6.3) in place of Reptile.

    The tail is a mini-batch of its own, as large as the others, when it is separate.
    """
    shared = dataclasses.replace(settings, algorithm="fomaml", tail="shared")
    queries = max(settings.inner_batch // settings.ways, 1)
    return {
        "fomaml": shared,
        "fomaml_separate_tail": dataclasses.replace(shared, tail="separate", queries=queries),
    }


# Ravi and Larochelle 2017, the source of the numbers, do not state the length of the classifier's
# training or its batches, so these are our choice. The inner step size here is for the
# meta-validation; the meta-test chooses among several.
PRETRAINED: Changes = {
    "num_meta_steps": 20_000,
    "meta_batch_size": 1,
    "outer_loss": "mean",
    "adapt_norm": True,
    "clip": 0.0,
    "steps_per_call": 50,
    "validate_every": 1_000,
    "checkpoint_every": 500,
}
BASELINES: dict[str, Changes] = {
    "fine_tuning": {
        **PRETRAINED,
        "algorithm": "fine_tuning",
        "inner_learning_rate": 0.03,
        "validation_steps": 50,
        "num_eval_steps": 50,
    },
    "nearest_neighbour": {
        **PRETRAINED,
        "algorithm": "nearest_neighbour",
        "validation_steps": 0,
        "num_eval_steps": 0,
    },
}

# Heads in closed form take no steps, and train with more classes than in tests: Snell 2017.
HEAD: Changes = {
    "outer_loss": "mean",
    "adapt_norm": True,
    "clip": 0.0,
    "meta_batch_size": 1,
    "num_steps": 0,
    "validation_steps": 0,
    "num_eval_steps": 0,
    "eval_tasks": 1_000,
    "outer_schedule": "halved",
}
HEAD_OMNIGLOT: Changes = {
    **HEAD,
    "num_meta_steps": 10_000,
    "network": "conv_pool",
    "split": "vinyals",
    "rotation": "classes",
    "train_ways": 60,
    "queries": 5,
    "eval_queries": 15,
    "steps_per_call": 50,
    "validate_every": 500,
    "checkpoint_every": 100,
}
HEAD_PHOTOGRAPHS: Changes = {
    **HEAD,
    "num_meta_steps": 20_000,
    "network": "conv_pool",
    "queries": 15,
    "eval_queries": 15,
    "eval_tasks": 600,
    "steps_per_call": 10,
    "validate_every": 1_000,
    "checkpoint_every": 100,
}


def snell_photographs(settings: Photographs) -> Photographs:
    """Snell 2017, section 3.2: 30-way training for 1 shot, 20-way for 5 shots."""
    ways = 30 if settings.shots == 1 else 20
    return dataclasses.replace(
        settings, **HEAD_PHOTOGRAPHS, algorithm="prototypical", train_ways=ways
    )


# The settings of algorithms beyond the two papers, as changes to Finn's protocols. All but MAML++
# adapt the normalizations as well, because the implicit gradient needs it.
BEYOND: dict[str, Changes] = {
    # Li 2017: one step of learned sizes.
    "meta_sgd": {
        "algorithm": "meta_sgd",
        "adapt_norm": True,
        "num_steps": 1,
        "inner_learning_rate": 0.5,
    },
    # Park and Oliva 2019 and Baik 2020, with the steps of Finn's protocol.
    "meta_curvature": {"algorithm": "meta_curvature"},
    "alfa": {"algorithm": "alfa"},
    # Raghu 2020, section 4, and Oh 2021, section 3.
    "anil": {"algorithm": "anil", "adapt_norm": True, "num_steps": 5, "inner_learning_rate": 0.5},
    "boil": {"algorithm": "boil", "adapt_norm": True, "inner_learning_rate": 0.5},
    # Rajeswaran 2019, section 4.2: the Hessian-free version.
    "imaml": {
        "algorithm": "imaml",
        "adapt_norm": True,
        "num_meta_steps": 20_000,
        "num_steps": 16,
        "validation_steps": 16,
        "num_eval_steps": 16,
        "inner_learning_rate": 0.1,
        "outer_epsilon": 1e-3,
        "outer_loss": "mean",
    },
    # Antoniou 2019 and the authors' code: 100 epochs of 500 updates, the first 10 with a loss that
    # counts all steps; gamma and beta for every step, not adapted. The code leaves out the paper's
    # first-order start, which is --first_order_updates=25000.
    "maml_plus_plus": {
        "algorithm": "maml_plus_plus",
        "network": "conv_per_step",
        "num_meta_steps": 50_000,
        "meta_batch_size": 8,
        "num_steps": 5,
        "validation_steps": 5,
        "num_eval_steps": 5,
        "inner_learning_rate": 0.1,
        "annealed_updates": 5_000,
        "outer_schedule": "cosine",
        "outer_loss": "mean",
        "clip": 0.0,
        "adapt_norm": False,
        "steps_per_call": 10,
        "checkpoint_every": 100,
    },
}
# Photographs need smaller steps.
BEYOND_PHOTOGRAPHS = {
    **{
        name: {**changes, "inner_learning_rate": 0.05 if name != "imaml" else 0.1}
        for name, changes in BEYOND.items()
    },
    "maml_plus_plus": {
        **BEYOND["maml_plus_plus"],
        "meta_batch_size": 2,
        "inner_learning_rate": 0.01,
        "annealed_updates": 7_500,
        "checkpoint_every": 50,
    },
}
# The settings that `--algorithm` changes in a preset of another algorithm.
BY_ALGORITHM: dict[type, dict[str, Changes]] = {
    Omniglot: {
        **BEYOND,
        "reptile": REPTILE_OMNIGLOT,
        **dict.fromkeys(HEADS, HEAD_OMNIGLOT),
    },
    Photographs: {
        **BEYOND_PHOTOGRAPHS,
        **BASELINES,
        "reptile": REPTILE_PHOTOGRAPHS,
        **dict.fromkeys(HEADS, HEAD_PHOTOGRAPHS),
    },
}


def omniglot() -> dict[str, FewShot]:
    """The presets of Omniglot."""
    cells = [(ways, shots) for ways in (5, 20) for shots in (1, 5)]
    finn: dict[str, FewShot] = {f"omniglot_{w}w{s}s": finn_omniglot(w, s) for w, s in cells}
    nichol: dict[str, FewShot] = {f"omniglot_{w}w{s}s": nichol_omniglot(w, s) for w, s in cells}
    presets = _papers(finn, nichol)
    for name in ("omniglot_5w1s", "omniglot_5w5s"):
        presets[f"finn2017/{name}_no_conv"] = dataclasses.replace(finn[name], network="mlp")
    for ways, shots in cells:
        presets[f"snell2017/omniglot_{ways}w{shots}s"] = Omniglot(
            **HEAD_OMNIGLOT, algorithm="prototypical", ways=ways, shots=shots
        )
    for algorithm, changes in BEYOND.items():
        for name, settings in finn.items():
            more = dict.fromkeys(("num_steps", "validation_steps", "num_eval_steps"), 25)
            steps = more if algorithm == "imaml" and settings.ways == 20 else {}
            presets[f"beyond/{algorithm}_{name}"] = dataclasses.replace(
                settings, **{**changes, **steps}
            )
    return presets


def mini_imagenet() -> dict[str, FewShot]:
    """The presets of Mini-ImageNet."""
    finn = {f"miniimagenet_5w{s}s": finn_photographs("mini_imagenet", s) for s in (1, 5)}
    nichol = {f"miniimagenet_5w{s}s": nichol_photographs("mini_imagenet", s) for s in (1, 5)}
    presets = _papers(finn, nichol)
    for name, settings in finn.items():
        for baseline, changes in BASELINES.items():
            presets[f"finn2017/{name}_{baseline}"] = dataclasses.replace(settings, **changes)
        for algorithm, changes in BEYOND_PHOTOGRAPHS.items():
            presets[f"beyond/{algorithm}_{name}"] = dataclasses.replace(settings, **changes)
        presets[f"snell2017/{name}"] = snell_photographs(settings)
        presets[f"beyond/resnet12_{name}"] = dataclasses.replace(
            settings, algorithm="fomaml", network="resnet12", inner_learning_rate=0.01
        )
    return presets


def photographs(datasets: Iterable[str]) -> dict[str, FewShot]:
    """The settings for Mini-ImageNet on data sets that have no table in the papers."""
    presets: dict[str, FewShot] = {}
    for dataset in datasets:
        for shots in (1, 5):
            name = f"{dataset}_5w{shots}s"
            presets[f"finn2017/{name}"] = finn_photographs(dataset, shots)
            presets[f"nichol2018/{name}"] = nichol_photographs(dataset, shots)
    return presets


def own_images() -> dict[str, FewShot]:
    """The settings for Mini-ImageNet on a folder, whose class sizes may differ."""
    presets = photographs(("folder",))
    return {name: OwnImages(**vars(settings)) for name, settings in presets.items()}


def _papers(finn: Any, nichol: Any) -> dict[str, FewShot]:
    """The cells of both papers' tables."""
    presets = {f"finn2017/{name}": settings for name, settings in finn.items()}
    for name, settings in finn.items():
        presets[f"finn2017/{name}_first_order"] = dataclasses.replace(settings, algorithm="fomaml")
    presets |= {f"nichol2018/{name}": settings for name, settings in nichol.items()}
    for name, settings in nichol.items():
        for suffix, changed in tails(settings).items():
            presets[f"nichol2018/{name}_{suffix}"] = changed
    return presets
