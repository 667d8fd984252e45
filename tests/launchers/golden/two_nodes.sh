#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --array=0-8%9
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=4
#SBATCH --exclude=node7
#SBATCH --exclusive
#SBATCH --gpus-per-node=2
#SBATCH --job-name=debug_sweep_seed
#SBATCH --mail-type=FAIL
#SBATCH --mem=66048M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=@FOLDER@/%A_%a_0_log.out
#SBATCH --partition=long
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=3600

# setup
module load cuda
ulimit -n 65536
export PYTHONPATH=@ROOT@"${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output @FOLDER@/%A_%a_%t_log.out --kill-on-bad-exit=1 apptainer exec --nv /images/dino.sif python -u -m submitit.core._submit @FOLDER@
