"""Chooses the device on which the models of a worker run."""

from pipeline.distributed.process_group import device_name


def choose_device(name: str) -> str:
    """The device for `--device`. `cuda` is the GPU with this rank's number on its node; `auto` too, if there is a GPU.

    Raises ValueError when the name is not that of a device, or names a GPU that torch does not see or cannot use.
    """
    import torch

    if name == "auto":
        return device_name()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: is not a device; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: is not supported; use cpu, cuda, cuda:N or auto")
    if device.type == "cuda":
        device_name()  # raises for a driver that does not fit, which would look like no GPU
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= visible:
        raise ValueError(f"--device {name}: torch sees {visible} GPUs on this machine; use --device auto or cpu")
    return device_name() if name == "cuda" else str(device)
