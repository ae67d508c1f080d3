#!/bin/bash
# One run, or an array of runs, in as many processes as there are tasks:
#
#   sbatch --ntasks=8 --gpus-per-task=1 experiments/jobs/slurm.sh \
#       python -m experiments.omniglot --preset=finn2017/omniglot_5w1s --workdir=runs/omniglot
#
#   python -m experiments.sweep finn2017/omniglot_5w1s --seeds=0:3 --vary shots=1,5 >runs.txt
#   sbatch --array=1-$(wc -l <runs.txt) --gpus-per-task=1 experiments/jobs/slurm.sh runs.txt
#
# Two minutes before its time is up, or when it is preempted, the run saves a checkpoint and ends;
# the job is then requeued, and continues. `scancel --signal=TERM JOB` has the same effect, while a
# plain `scancel JOB` ends it for good. A run that fails is not requeued.
#SBATCH --job-name=metajax
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

if [ -n "$SLURM_ARRAY_TASK_ID" ]; then # a file of commands, and its line
    read -ra command <<<"$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
else
    command=("$@")
fi
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun does not take over by itself
# JAX asks for the GPU of its process's number on the node, but with --gpus-per-task Slurm shows each
# process its own GPUs alone, as numbers 0, 1, ...
if [ -n "$SLURM_GPUS_PER_TASK" ] && [ -z "$JAX_LOCAL_DEVICE_IDS" ]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_PER_TASK##*:} - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi
# One process that is lost ends the others: JAX's processes do that by themselves, and say why.
srun --kill-on-bad-exit=0 "${command[@]}"
status=$?
if [ $status -eq 143 ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
