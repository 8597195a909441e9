# shellcheck shell=bash
# Sourced with the script's name and the command's options by those that are submitted as arrays: sets `task` and `tasks`, its number and their count.
# SLURM counts only the tasks of this submission, so a part of an array does not say how many share the work.
: "${SLURM_ARRAY_TASK_ID:?is not set; submit an array: sbatch --array=0-15 slurm/$1 ...}"
tasks=${BLIP2_TASK_COUNT:-}
if [ -z "$tasks" ] && [[ " ${*:2} " == *" --task-count"[\ =]* ]]; then
    tasks=$SLURM_ARRAY_TASK_COUNT # the option comes after it, and counts
elif [ -z "$tasks" ]; then
    tasks=$SLURM_ARRAY_TASK_COUNT first=${SLURM_ARRAY_TASK_MIN:-0} last=${SLURM_ARRAY_TASK_MAX:-$((SLURM_ARRAY_TASK_COUNT - 1))}
    if [ "$first" -ne 0 ] || [ "$last" -ne $((tasks - 1)) ] || [ "$tasks" -eq 1 ]; then
        echo "slurm/$1: --array: task $SLURM_ARRAY_TASK_ID of $first to $last does not say how many tasks share the work;" \
            "BLIP2_TASK_COUNT=16 sbatch --array=... for tasks of 0-15, BLIP2_TASK_COUNT=1 for one that does all" >&2
        exit 2
    fi
fi
# shellcheck disable=SC2034  # for the script that sources this one
task=$((SLURM_ARRAY_TASK_ID + ${BLIP2_TASK_OFFSET:-0})) # several arrays share the tasks when MaxArraySize is too small for one
