"""Which device a worker's models run on."""

from pipeline.distributed.process_group import device_name


def choose_device(name: str) -> str:
    """The device of `--device`: cuda is the GPU of this rank's own number on its node, auto as well where there is one.

    Raises ValueError when the name is no device's, or that of a GPU which this machine does not show.
    """
    import torch

    if name == "auto":
        return device_name()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no device; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: use cpu, cuda, cuda:N or auto")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= visible:
        raise ValueError(f"--device {name}: torch sees {visible} GPUs here; use --device auto or cpu")
    return device_name() if name == "cuda" else str(device)
