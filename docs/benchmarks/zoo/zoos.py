"""torchvision's and timm's models, with random weights and small inputs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Operators live as long as what defines them.
_LIBRARIES: list[torch.library.Library] = []
#: Classification models whose sizes are fixed or that a smaller image does not get through.
_SIDES = {
    "inception_v3": 128, "vit": 224, "swin": 64, "maxvit": 224, "googlenet": 64,
    "densenet": 64, "squeezenet": 64, "alexnet": 64, "vgg": 64, "s3d": 224,
}  # fmt: skip
#: Larger models than these take too long or too much memory; smaller ones have the same layers.
_TOO_LARGE = {"vit_h_14", "regnet_y_128gf", "vit_l_16", "vit_l_32", "regnet_y_32gf"}


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes stay, best first: a box goes if it overlaps a better one."""
    order = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for place in order.tolist():
        if not alive[place]:
            continue
        kept.append(place)
        low = torch.maximum(boxes[:, :2], boxes[place, :2])
        high = torch.minimum(boxes[:, 2:], boxes[place, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        alive &= shared / (areas + areas[place] - shared) <= iou_threshold
    return torch.tensor(kept, dtype=torch.int64)


def _import_torchvision() -> None:
    """Import torchvision, with operators in Python where its own do not load.

    Its CUDA build does not find its libraries beside a CPU torch, and then fails at the first
    operator that it describes. Its own come first: to define them twice ends the process.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _define()


def _define() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _LIBRARIES.append(library)
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None


def _images(*shape: int, dtype: torch.dtype = torch.float64) -> Callable[[int, int], Any]:
    def inputs(seed: int, batch: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, *shape, generator=generator, dtype=dtype),), {}

    return inputs


def _lists(side: int) -> Callable[[int, int], Any]:
    def inputs(seed: int, batch: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.rand(3, side, side - 16 * i, generator=generator, dtype=torch.float64)
                 for i in range(batch)]  # fmt: skip
        return (drawn,), {}

    return inputs


def _pairs(side: int) -> Callable[[int, int], Any]:
    def inputs(seed: int, batch: int) -> Any:
        draw = _images(3, side, side, dtype=torch.float32)
        return (*draw(seed, batch)[0], *draw(seed + 99, batch)[0]), {}

    return inputs


class AllHeads(nn.Module):
    """A detector with the raw outputs of its heads: random weights find few boxes to compare."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        names = ("head", "rpn.head", "roi_heads.box_predictor")
        self.raw: list[Any] = []
        for name in names:
            try:
                module = detector.get_submodule(name)
            except AttributeError:
                continue
            module.register_forward_hook(lambda module, args, out: self.raw.append(out))

    def forward(self, images: list[Tensor]) -> Any:
        """Return the detections and what the heads said."""
        self.raw.clear()
        found = self.detector(images)
        return found, list(self.raw)


def torchvision() -> dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Any]]]:
    """Return torchvision's classification, segmentation, detection, video and flow models."""
    _import_torchvision()
    from torchvision import models

    found = {}
    for name in models.list_models():
        package = models.get_model_builder(name).__module__
        if name in _TOO_LARGE or ".quantization." in package:
            continue
        make = _maker(models, name, package)
        if ".detection." in package:
            found[name] = (make, _lists(128))
        elif ".video." in package:
            found[name] = (make, _images(3, 8 if "mvit" in name else 16, *_side(name, 64)))
        elif ".optical_flow." in package:
            found[name] = (make, _pairs(128))
        else:
            found[name] = (make, _images(3, *_side(name, 64)))
    return found


def _side(name: str, default: int) -> tuple[int, int]:
    side = default
    for start, size in _SIDES.items():
        if name.startswith(start):
            side = size
    return side, side


def _maker(models: Any, name: str, package: str) -> Callable[[], nn.Module]:
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if ".detection." in package or ".segmentation." in package:
        options["weights_backbone"] = None
    if ".detection." in package:
        twice = "rcnn" in name
        options["box_score_thresh" if twice else "score_thresh"] = 0.0
        options["box_detections_per_img" if twice else "detections_per_img"] = 10
        # Without its C++ part torchvision aligns each region in Python: few regions.
        options.update(
            {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20}
            if twice
            else {"topk_candidates": 100}
        )
        if not name.startswith("ssd"):
            options.update(min_size=128, max_size=128)

    def make() -> nn.Module:
        torch.manual_seed(0)
        if "mvit" in name:
            # The builders insist on 16 frames of 224 x 224; the class does not.
            small = {"spatial_size": (64, 64), "temporal_size": 8}
            module, kind = models.video.mvit, models.video.mvit.MViT
            module.MViT = lambda **given: kind(**{**given, **small})
        model = models.get_model(name, **options).eval()
        if ".optical_flow." in package:
            # Its coordinates are float32 in the code.
            return model
        return AllHeads(model.double()) if ".detection." in package else model.double()

    return make


def timm() -> dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Any]]]:
    """Return the smallest model of each family of timm, as ``timm_models.json`` has them."""
    _import_torchvision()
    import timm

    text = Path(__file__).with_name("timm_models.json").read_text(encoding="utf-8")

    def maker(name: str) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            torch.manual_seed(0)
            model: nn.Module = timm.create_model(name).double().eval()
            return model

        return make

    return {
        name: (maker(name), _images(*map(int, re.findall(r"\d+", shape))))
        for name, shape in json.loads(text).items()
    }
