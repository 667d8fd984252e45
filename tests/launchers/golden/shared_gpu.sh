#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=debug_sweep_seed
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=@FOLDER@/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=90

# setup
export PYTHONPATH=@ROOT@"${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output @FOLDER@/%A_%a_%t_log.out --kill-on-bad-exit=1 @PYTHON@ -u -m submitit.core._submit @FOLDER@
