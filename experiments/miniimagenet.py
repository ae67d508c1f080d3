"""Few-shot classification of Mini-ImageNet: Finn 2017, section 5.2, table 1; Nichol 2018, table 1.

Command:   python -m experiments.miniimagenet --preset=finn2017/miniimagenet_5w1s
Hardware:  one accelerator; 2 CPU cores take days for all 60,000 meta-steps
Expected:  48.70 +- 1.84 % (transductive) after 10 adaptation steps, the paper's; independent runs
           of the authors' code end between 46 and 48
Ours:      in docs/results.md, where it is recorded
"""

from experiments import few_shot, protocols
from experiments.command import run

EXPERIMENT = few_shot.experiment(
    "miniimagenet",
    "Few-shot classification of Mini-ImageNet: Finn 2017, table 1; Nichol 2018, table 1.",
    protocols.mini_imagenet(),
)

if __name__ == "__main__":
    run(EXPERIMENT)
