"""The configurations of the paper's language models and of BERT-base, as folders without weights."""

import shutil
from pathlib import Path

from pipeline.cost.shipped import folder_of

SHIPPED = {
    "bert": "bert-base-uncased",
    "opt2.7b": "facebook/opt-2.7b",
    "opt6.7b": "facebook/opt-6.7b",
    "flant5xl": "google/flan-t5-xl",
    "flant5xxl": "google/flan-t5-xxl",
}


def save_configs(root: Path) -> None:
    """Write ROOT/bert and ROOT/NAME for each language model."""
    for name, hub_id in SHIPPED.items():
        shutil.copytree(folder_of(hub_id), root / name)
