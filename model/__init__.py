"""The MRC U-Net, its checkpoints, and the eager pipeline that everything is held against (PyTorch)."""

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .unet import MRCUNet

__all__ = ["Checkpoint", "MRCUNet", "load_checkpoint", "save_checkpoint"]
