"""Tiny networks of timm, Transformers and ONNX with random weights, written to files."""

from pathlib import Path

import numpy as np
import torch

SIDE = 32  # pixels
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
_WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "photo", "sketch", "of", "red", "green", "blue", ".")


def save_timm(path: Path, name: str = "test_vit", n_classes: int = 1000) -> Path:
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model(name, num_classes=n_classes).state_dict(), path)
    return path


def save_classifier(folder: Path, classes: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    """A Transformers ViT with a classifier."""
    import transformers as hf

    torch.manual_seed(0)
    names = dict(enumerate(classes))
    config = hf.ViTConfig(
        **_VIT, intermediate_size=64, id2label=names, label2id={c: i for i, c in names.items()}
    )
    hf.ViTForImageClassification(config).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_backbone(folder: Path) -> Path:
    """A DINOv2, whose processor resizes to 40 px and crops 32."""
    import transformers as hf

    torch.manual_seed(0)
    hf.Dinov2Model(hf.Dinov2Config(**_VIT)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}}
    hf.BitImageProcessor(**crop).save_pretrained(folder)
    return folder


def save_pair(folder: Path, family: str = "CLIP") -> Path:
    """A CLIP or a SigLIP with a tokenizer of a dozen words."""
    import transformers as hf

    torch.manual_seed(0)
    text = {
        **{name: _VIT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        "vocab_size": len(_WORDS),
        "max_position_embeddings": 16,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {**_VIT, "intermediate_size": 64}
    if family == "CLIP":
        config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = hf.CLIPModel(config)
    else:
        config = hf.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
        model = hf.SiglipModel(config)
        torch.nn.init.constant_(model.logit_bias, -1.5)
    model.save_pretrained(folder)
    tokenizer(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> None:
    """Save a tokenizer of whole words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=words, **special, model_max_length=16)
    fast.save_pretrained(folder)


def save_onnx(
    path: Path,
    *,
    shape=("batch", 3, "height", "width"),
    n_numbers: int = 7,
    weight: np.ndarray | None = None,
    second_input: bool = False,
    metadata: dict[str, str] | None = None,
    dtype: str = "FLOAT",
    tail: str = "",
) -> np.ndarray:
    """The mean of every channel times a matrix, which is returned; `tail` is an operator after it."""
    import onnx
    from onnx import helper, numpy_helper

    if weight is None:
        weight = np.random.default_rng(0).normal(size=(n_numbers, shape[1])).astype(np.float32)
    kind = getattr(onnx.TensorProto, dtype)
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    if second_input:
        inputs.append(helper.make_tensor_value_info("mask", kind, shape))
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colour"]),
        helper.make_node("Gemm", ["colour", "weight"], ["rows" if tail else "z"], transB=1),
    ]
    if second_input:
        nodes[0] = helper.make_node("GlobalAveragePool", ["both"], ["pooled"])
        nodes.insert(0, helper.make_node("Add", ["images", "mask"], ["both"]))
    if tail:
        nodes.append(helper.make_node(tail, ["rows"], ["z"]))
    outputs = [helper.make_tensor_value_info("z", kind, [shape[0], n_numbers])]
    numbers = weight.astype(np.float16 if dtype == "FLOAT16" else np.float32)
    graph = helper.make_graph(nodes, "colour", inputs, outputs, [numpy_helper.from_array(numbers, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return weight
