"""Few-shot classification of Omniglot: Finn 2017, section 5.2, table 1; Nichol 2018, table 2.

Command:   python -m experiments.omniglot --preset=finn2017/omniglot_5w1s
Hardware:  2 CPU cores
Wall time: about 0.1 s a meta-step, so 1.5 to 2 hours for all 60,000
Expected:  98.7 +- 0.4 % (transductive) after 3 adaptation steps, the paper's
Ours:      benchmarks/results/omniglot/finn2017/omniglot_5w1s/maml/seed0, and docs/results.md
"""

from experiments import few_shot, protocols
from experiments.command import run

EXPERIMENT = few_shot.experiment(
    "omniglot",
    "Few-shot classification of Omniglot: Finn 2017, table 1; Nichol 2018, table 2.",
    protocols.omniglot(),
)

if __name__ == "__main__":
    run(EXPERIMENT)
