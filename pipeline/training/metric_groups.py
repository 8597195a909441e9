"""The names of metrics.jsonl's numbers in TensorBoard and other viewers, which fold what stands before a stroke."""

SPEED = ("samples_per_s", "tokens_per_s", "memory_mib", "model_flop_utilisation")
DATA = ("samples", "corrupt_samples")
ENDS = {"_loss": "loss", "_accuracy": "accuracy", "_perplexity": "perplexity"}


def grouped(name: str, split: str = "") -> str:
    """Such as `loss/itc` for `itc_loss`, or `validation/itc_loss`."""
    if split:
        return f"{split}/{name}"
    if name == "loss":
        return "loss/total"
    if name.startswith("learning_rate"):
        return f"optimizer/lr{name.removeprefix('learning_rate')}"
    if name in DATA:
        return f"data/{name}"
    if name in SPEED or name.endswith("_share"):
        return f"speed/{name}"
    group = next((group for end, group in ENDS.items() if name.endswith(end)), None)
    return f"{group}/{name.rpartition('_')[0]}" if group else f"optimizer/{name}"
