"""Settings of few-shot classification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import metajax
from experiments.settings import UsageError, setting
from experiments.supervised import ALGORITHMS, Supervised

BASELINES = ("fine_tuning", "nearest_neighbour")  # see `experiments.baselines`
# Heads that the support determines in closed form: they take no steps.
HEADS: dict[str, Callable[[], metajax.Head]] = {
    "prototypical": metajax.prototypes,
    "matching": metajax.matching,
    "r2d2": metajax.ridge,
    "metaoptnet": metajax.svm,
}
# Settings of inner steps in training.
OF_STEPS = (
    "num_steps",
    "inner_optimizer",
    "inner_batch",
    "eval_inner_batch",
    "batches",
    "carry",
    "adapt_norm",
)
_STEP_SIZES = (
    "Step size of the inner optimizer, on a mean loss. Finn 2017 prints it for classification on a "
    "loss that is a sum over classes: 2.0 is the printed 0.4 of 5 ways and 0.1 of 20 on Omniglot, "
    "0.05 the printed 0.01 on Mini-ImageNet. Steps of Adam do not depend on that."
)


@dataclasses.dataclass(frozen=True)
class FewShot(Supervised):
    """Few-shot classification."""

    algorithm: str = setting(
        "maml",
        "The meta-learning algorithm; a head in closed form on learned features (prototypical, "
        "matching, r2d2, metaoptnet); or a baseline: a classifier of all classes, fine-tuned or "
        "with nearest neighbours.",
        choices=(*ALGORITHMS, *HEADS, *BASELINES),
    )
    inner_learning_rate: float = setting(2.0, _STEP_SIZES, least=0.0)
    dataset: str = "omniglot"
    ways: int = setting(5, "Classes per task.", least=2)
    train_ways: int = setting(
        0,
        "Classes per task in training; 0: as many as --ways.",
        least=0,
        only={"algorithm": tuple(HEADS)},
    )
    train_shots: int = setting(
        0, "Support examples per class in training; 0: as many as --shots.", least=0
    )
    eval_queries: int = setting(1, "Query examples per class in evaluation.", least=1)
    eval_inner_batch: int = setting(0, "Like --inner_batch, in evaluation.", least=0)
    train_on: str = setting(
        "train", "The classes of meta-training.", choices=("train", "train+validation")
    )
    choose: str = setting(
        "validation",
        "Which state is tested: the best one on the meta-validation classes, or the last one.",
        choices=("validation", "last"),
    )
    validation_tasks: int = setting(200, "Tasks of the meta-validation.", least=1)
    rotation: str = setting(
        "none",
        "Quarter turns: none; a random one for every class of a task, also in testing (task); or "
        "four new classes from each class, in training only (classes).",
        choices=("none", "task", "classes"),
    )
    network: str = setting(
        "conv",
        "The convolutions of Finn 2017 for the data set (conv); those of Nichol 2018, with another "
        "head and normalization; those of MAML++, with a normalization for every inner step; 64 "
        "channels with maximum pooling (conv_pool); layers of 256, 128, 64 and 64 units (mlp); or "
        "12 residual convolutions.",
        choices=("conv", "conv_nichol", "conv_per_step", "conv_pool", "mlp", "resnet12"),
    )
    outer_loss: str = setting(
        "mean",
        "The query loss whose gradient the outer optimizer receives: the mean over the query, or "
        "its sum divided by the shots, as in Finn 2017.",
        choices=("mean", "sum"),
    )
    adapt_norm: bool = setting(
        True, "Whether the inner loop adapts the parameters of batch normalizations."
    )
    compute_dtype: str = setting(
        "float32", "The number type of the hidden layers.", choices=("float32", "bfloat16")
    )
    pretrain_batch: int = setting(
        64,
        "Images per batch of the baselines' classifier.",
        least=1,
        only={"algorithm": BASELINES},
    )

    @property
    def loss_scale(self) -> float | None:
        if self.outer_loss == "mean" or not self.has_query_loss:
            return None
        shots = self.train_shots or self.shots
        return (self.train_ways or self.ways) * self.queries / shots

    @property
    def has_query_loss(self) -> bool:
        """Whether the outer loop descends a query loss."""
        return self.algorithm not in ("reptile", *BASELINES) and self.tail == "none"

    @property
    def validates(self) -> bool:
        """Whether the training is interrupted by validations."""
        return self.choose == "validation"

    def check(self) -> None:
        super().check()
        whole = self.adapt_norm and self.network != "conv_per_step"
        if self.algorithm in ("imaml", "meta_sgd") and not whole:
            raise UsageError(
                f"{self.algorithm} adapts all parameters: --adapt_norm, and no network per step."
            )
        still = (*HEADS, "nearest_neighbour")
        if self.algorithm in still and (self.num_eval_steps or self.validation_steps):
            raise UsageError(
                f"{self.algorithm} takes no steps: --num_eval_steps=0 --validation_steps=0."
            )
        if self.train_on == "train+validation" and self.algorithm == "fine_tuning":
            raise UsageError(
                "fine_tuning chooses its step size on classes that are not trained on: use "
                "--train_on=train."
            )
        if self.train_on == "train+validation" and self.choose == "validation":
            raise UsageError(
                "--choose=validation needs classes that are not trained on: use --choose=last or "
                "--train_on=train."
            )

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if self.algorithm in (*HEADS, "nearest_neighbour"):
            yield f"{self.algorithm} takes no inner steps", (*OF_STEPS, "inner_learning_rate")
        if self.algorithm == "fine_tuning":
            yield "fine_tuning takes steps of SGD on the whole support, in testing only", OF_STEPS
        if self.algorithm == "anil":
            yield "anil adapts the head alone, which has no normalization", ("adapt_norm",)
        if not self.validates and self.algorithm == "fine_tuning":
            yield "the step size is chosen at the end", ("inner_learning_rate",)
        elif not self.validates:
            yield "the last state is tested, without validations", ("validation_tasks",)
        if not self.has_query_loss:
            yield "no query loss is descended", ("outer_loss",)
        if self.algorithm in BASELINES:
            episodes = ("queries", "train_shots", "task_chunk")
            yield f"{self.algorithm} is not trained on episodes", episodes
        yield from super().unused()

    def support_sizes(self) -> dict[str, int]:
        return {
            "inner_batch": self.ways * (self.train_shots or self.shots),
            "eval_inner_batch": self.ways * self.shots,
        }


@dataclasses.dataclass(frozen=True)
class Omniglot(FewShot):
    """Drawings of characters."""

    split: str = setting(
        "finn",
        "The classes of training: 1,100 characters of all alphabets, or 1,028 by alphabet.",
        choices=("finn", "vinyals"),
    )
    # Pillow resizes the 1-bit drawings by the nearest pixel, whatever filter is asked for.
    resample: str = setting(
        "nearest", "The filter that makes the drawings smaller.", choices=("lanczos", "nearest")
    )
    invert: bool = setting(True, "Whether the ink of a drawing is bright, 1 on paper of 0.")


@dataclasses.dataclass(frozen=True)
class Photographs(FewShot):
    """Small color photographs."""

    dataset: str = "mini_imagenet"


@dataclasses.dataclass(frozen=True)
class OwnImages(Photographs):
    """The images of a folder."""

    dataset: str = "folder"
    size: int = setting(84, "Height and width in pixels to which images are resized.", least=1)
    grey: bool = setting(False, "Whether images are read without their colours.")
