"""One thread a process, the same bits in every run, and no network: set before anything imports torch, and inherited by every process started."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    MKL_CBWR="AUTO,STRICT",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="disabled",
)
