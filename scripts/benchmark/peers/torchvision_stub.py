"""Imported before `streaming`, which imports torchvision, whose compiled operators cannot be loaded beside a CPU build of
torch; it then misses two of their names, which are declared here. Nothing uses them.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
