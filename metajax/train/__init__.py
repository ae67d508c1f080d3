"""Training runs: compiled loops, checkpoints, metrics, resume."""

from metajax.extras import require

require(
    "metajax.train",
    "experiments",
    "PIL",
    "filelock",
    "orbax.checkpoint",
    "safetensors",
    "tensorboardX",
    "tqdm",
)

from metajax.train.arguments import check_counts as check_counts
from metajax.train.checkpoints import Checkpoint as Checkpoint
from metajax.train.checkpoints import load as load
from metajax.train.checkpoints import load_meta_params as load_meta_params
from metajax.train.files import claimed as claimed
from metajax.train.finite import NonFiniteError as NonFiniteError
from metajax.train.fit import FitResult as FitResult
from metajax.train.fit import fit as fit
from metajax.train.places import WorkdirError as WorkdirError
from metajax.train.places import accessing as accessing
from metajax.train.places import place as place
from metajax.train.processes import is_first as is_first
from metajax.train.processes import local as local
from metajax.train.scoring import scorer as scorer
from metajax.train.task_sources import Stream as Stream
from metajax.train.tensorboard import summarize as summarize
from metajax.train.validation import Validation as Validation
from metajax.train.weights import WeightsError as WeightsError
from metajax.train.weights import load_params as load_params
from metajax.train.weights import load_weights as load_weights
from metajax.train.weights import save_weights as save_weights
from metajax.train.weights import weights_digest as weights_digest
from metajax.train.workdir import claim as claim
from metajax.train.workdir import provenance as provenance
from metajax.train.workdir import read_config as read_config
from metajax.train.workdir import read_json as read_json
from metajax.train.workdir import write_json as write_json
from metajax.train.writers import read_metrics as read_metrics
