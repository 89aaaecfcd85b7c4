"""Read the preprocessing files of timm (pretrained_cfg) and Hugging Face (preprocessor_config.json,
config.json) as contracts; fields that a contract lacks are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sskt.sources.contract import INTERPOLATIONS, Contract

_MARKS = (
    *("pretrained_cfg", "input_size", "crop_pct", "label_names"),
    *("image_mean", "image_std", "do_rescale", "do_normalize", "do_resize", "resample", "rescale_factor"),
    *("image_processor_type", "feature_extractor_type", "id2label"),
)
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's


def is_foreign(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of these files, judged by the names of its fields."""
    return any(mark in content for mark in _MARKS)


def read_foreign(content: Mapping[str, Any]) -> tuple[Contract, list[str]]:
    """The contract that such a file describes, and short remarks on what cannot be honoured.

    Raises SourceError for values that a contract cannot have.
    """
    config = content.get("pretrained_cfg")
    flat: Mapping[str, Any] = {**content, **config} if isinstance(config, dict) else content
    fields, remarks = _pixels(flat)
    interpolation = flat.get("interpolation", _RESAMPLE.get(flat.get("resample", -1)))
    if interpolation in INTERPOLATIONS:
        fields["interpolation"] = interpolation
    elif interpolation is not None:
        remarks.append(f"its interpolation {interpolation} is not available, bilinear is used")
    if (size := _size(flat)) is not None:
        fields["size"] = size
    if (crop := _crop(flat)) is not None:
        fields["crop"] = crop
    if (classes := _classes(flat)) is not None:
        fields["classes"] = classes
    return Contract.from_dict(fields), remarks


def _pixels(flat: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Mean, std, range and channels, and remarks about them."""
    fields: dict[str, Any] = {}
    mean, std = flat.get("image_mean", flat.get("mean")), flat.get("image_std", flat.get("std"))
    transformers_fields = ("do_rescale", "do_normalize", "rescale_factor", "image_mean", "image_std")
    if any(name in flat for name in transformers_fields):
        normalises = flat.get("do_normalize", mean is not None)
        if normalises and None in (mean, std):
            return fields, ["normalises and does not say with which mean and std"]
        low, high = 0.0, 255.0
        if flat.get("do_rescale", True):
            factor = float(flat.get("rescale_factor", 1 / 255))
            offset = -1.0 if flat.get("rescale_offset") else 0.0
            low, high = offset, round(255 * factor, 9) + offset
        fields["range"] = [low, high]
        if not normalises:
            mean = std = None
        fields["channels"] = "bgr" if flat.get("do_flip_channel_order") else "rgb"
    if mean is not None and std is not None:
        fields |= {"mean": mean, "std": std}
    return fields, []


def _size(flat: Mapping[str, Any]) -> int | None:
    """The side of the network's input, that of the crop if there is one; None if it is not square."""
    for size in (flat.get("crop_size") if flat.get("do_center_crop", True) else None, flat.get("size")):
        if isinstance(size, int):
            return size
        if isinstance(size, dict):
            if "height" in size:
                sides = {size.get("height"), size.get("width")}
            else:
                sides = {size.get("shortest_edge")}
            if len(sides) == 1 and isinstance(side := sides.pop(), int):
                return side
    shape = flat.get("input_size")
    if isinstance(shape, list | tuple) and len(shape) == 3 and shape[1] == shape[2]:
        return int(shape[1])
    return None


def _crop(flat: Mapping[str, Any]) -> str | None:
    """A description of how it crops, for the record."""
    if "crop_pct" in flat:
        return f"{flat.get('crop_mode', 'center')} crop of {float(flat['crop_pct']):.1%}"
    if flat.get("do_center_crop"):
        return "center crop"
    return None


def _classes(flat: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the outputs; None if there are none, or only placeholders."""
    if isinstance(names := flat.get("label_names"), list):
        return [str(name) for name in names]
    by_id = flat.get("id2label")
    if not isinstance(by_id, dict) or not all(str(key).isdecimal() for key in by_id):
        return None
    names = [str(by_id[key]) for key in sorted(by_id, key=int)]
    are_placeholders = names == [f"LABEL_{i}" for i in range(len(names))]
    return None if are_placeholders or len(set(names)) < len(names) else names
