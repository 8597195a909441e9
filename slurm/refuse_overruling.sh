# shellcheck shell=bash
# Sourced with the script's name: ends it when a variable is set that sbatch would prefer to the lines of the job scripts,
# or add to them. cluster.env.example unsets the same ones. Those of a site's policy may stay: SBATCH_GPU_BIND, memory a CPU.
for name in SBATCH_GPUS SBATCH_GPUS_PER_NODE SBATCH_GPUS_PER_SOCKET SBATCH_GPUS_PER_TASK SBATCH_GRES SBATCH_CPUS_PER_GPU \
    SBATCH_MEM_PER_GPU SBATCH_EXCLUSIVE SBATCH_OVERCOMMIT SBATCH_USE_MIN_NODES; do
    [ -z "${!name+set}" ] || {
        echo "slurm/$1: $name ${!name}: overrules what the job scripts ask for; unset it, or correct slurm/cluster.env" >&2
        exit 2
    }
done
