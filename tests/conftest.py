"""One thread a process, the same bits in every run, no network: set before torch is imported, and inherited."""

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
