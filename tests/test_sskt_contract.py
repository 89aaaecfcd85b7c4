"""A teacher's contract: what may be declared, where it is read, and what becomes of outputs."""

import json

import numpy as np
import pytest
import torch
from programs import Tiny, save_program

from sskt.errors import SourceError
from sskt.sources.contract import Contract, as_logits, assumed
from sskt.sources.declared import declared_of, parse_told, save_source, to_told
from sskt.sources.input_map import InputMap
from sskt.sources.registry import open_source, parse_source


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"std": 0, "mean": 0}, "std is 0, expected numbers above 0"),
        ({"mean": [0.5, 0.5], "std": 1}, "mean is 0.5/0.5, expected one number or three"),
        ({"mean": 0.5}, "mean is given without std; give both, std 1 for none"),
        ({"mean": [123.7, 116.8, 103.9], "std": 1}, "no pixels in 0..1 have; say in which range"),
        ({"mean": 0.5, "std": 58}, "std is 58, which no pixels in 0..1 have"),
        ({"range": [255, 0]}, "range is 255/0, expected the lowest and the highest"),
        ({"range": [1]}, "range is 1, expected the lowest and the highest"),
        ({"mean": float("nan"), "std": 1}, "mean is nan"),
        ({"mean": "a/b", "std": 1}, "mean is 'a/b', expected numbers such as"),
        ({"size": 0}, "size is 0"),
        ({"size": "224.5"}, "expected one whole number of pixels"),
        ({"returns": "logit"}, "returns is 'logit', expected one of logits, log-probabilities"),
        ({"channels": "RGBA"}, "expected one of rgb, bgr"),
        ({"classes": ["a", "b", "a"]}, "names 'a' twice"),
        ({"classes": "alphabetical"}, "expected one of target, numeric"),
        ({"retruns": "logits"}, "'retruns' is no field of a contract, did you mean returns"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(fields, said):
    with pytest.raises(SourceError) as caught:
        Contract.from_dict(fields)
    assert said in str(caught.value)


def test_contract_is_plain_data_and_comes_back():
    contract = Contract.from_dict(
        {"mean": 127.5, "std": "58.4/57.1/57.4", "range": [0, 255], "channels": "bgr", "classes": ["b", "a"]}
    )
    assert contract.mean == (127.5,) * 3
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert parse_told(to_told(Contract((0.1, 0.2, 0.3), (1.0,) * 3, size=64))) == Contract(
        (0.1, 0.2, 0.3), (1.0,) * 3, size=64
    )
    assert Contract().to_dict() == {}


@pytest.mark.parametrize(
    ("contract", "x_of_byte"),
    [
        (Contract((0.5,) * 3, (0.5,) * 3), lambda b: b / 127.5 - 1),
        (Contract(range=(0.0, 1.0)), lambda b: b / 255),
        (Contract(range=(0.0, 255.0)), lambda b: b),
        (Contract(range=(-1.0, 1.0)), lambda b: b / 127.5 - 1),
        (Contract((100.0,) * 3, (2.0,) * 3, (0.0, 255.0)), lambda b: (b - 100) / 2),
    ],
)
def test_range_mean_and_std_are_what_the_network_sees(contract, x_of_byte):
    mean, std = contract.normalisation
    pixels = torch.arange(0, 192, dtype=torch.uint8).view(1, 3, 8, 8)
    seen = InputMap(8, mean, std)(pixels).numpy()
    np.testing.assert_allclose(seen, x_of_byte(pixels.numpy().astype(np.float64)), atol=1e-4)


def test_bgr_exchanges_colours_before_their_own_mean_and_is_written_only_where_it_is():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    blue_first = (0.1, 0.2, 0.3)
    seen = InputMap(8, blue_first, (1.0,) * 3, channels="bgr")(pixels)
    for channel, (mean, of) in enumerate(zip(blue_first, (2, 1, 0), strict=True)):
        torch.testing.assert_close(seen[:, channel], pixels[:, of] / 255 - mean)
    clip = torch.randint(0, 256, (1, 3, 4, 8, 8), dtype=torch.uint8)
    assert torch.equal(
        InputMap(8, channels="bgr")(clip)[0, :, 2], InputMap(8, channels="bgr")(clip[:, :, 2])[0]
    )
    bgr = InputMap(8, channels="bgr")
    assert bgr.to_dict()["channels"] == "bgr"
    assert InputMap.from_dict(bgr.to_dict()) == bgr
    assert "channels" not in InputMap(8).to_dict()


def test_option_comes_before_the_file_and_that_before_what_lies_beside_it(tmp_path):
    path = tmp_path / "t.pt2"
    save_source(path, Tiny().eval(), size=32, mean=0.5, std=0.5, returns="logits")
    assert open_source(f"program:{path}", weights_dir=tmp_path).spec.mean == (0.5,) * 3
    beside = {"mean": [0.1, 0.2, 0.3], "std": 1, "returns": "probabilities", "classes": list("abcdefg")}
    path.with_suffix(".json").write_text(json.dumps(beside))
    declared = declared_of(path, Contract(channels="bgr", returns="sigmoids"))
    contract = declared.contract
    assert (contract.mean, contract.channels, contract.returns) == ((0.5,) * 3, "bgr", "sigmoids")
    assert contract.classes == tuple("abcdefg")
    contradictions = " ".join(declared.remarks)
    assert "t.json says returns probabilities, which returns sigmoids overrides" in contradictions
    assert "t.json says mean and std 0.1/0.2/0.3 and 1, which mean and std 0.5 and 0.5 over" in contradictions
    told = declared_of(path, Contract((0.0,) * 3, (1.0,) * 3)).contract
    assert (told.mean, told.std, told.range) == ((0.0,) * 3, (1.0,) * 3, None), "they are one statement"


def test_what_is_assumed_is_one_line(tmp_path):
    bare = declared_of(save_program(tmp_path / "t.pt2"))
    assert bare.contract == Contract()
    assert bare.sentence("program:t.pt2").startswith(
        "program:t.pt2 declares nothing; assumed: ImageNet's mean and std of pixels in 0..1, RGB, logits, "
        "classes unknown"
    )
    full = parse_source("imagenet").contract
    assert assumed(full) == ""


def test_saved_source_opens_as_any_other_program_and_answers_alike(tmp_path):
    network = Tiny().eval()
    save_source(tmp_path / "t.pt2", network, size=32, mean=0.5, std=0.5, returns="logits", channels="bgr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.pt2"]
    source = open_source(f"program:{tmp_path / 't.pt2'}", weights_dir=tmp_path)
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(source.module(x), network(x))
    program = torch.export.load(tmp_path / "t.pt2")
    save_source(tmp_path / "again.pt2", program, mean=0, std=1, returns="sigmoids")
    assert declared_of(tmp_path / "again.pt2").contract.returns == "sigmoids"
    with pytest.raises(SourceError, match=r"train mode; call network\.eval"):
        save_source(tmp_path / "x.pt2", Tiny().train(), size=32, mean=0, std=1, returns="logits")
    assert not (tmp_path / "x.pt2").exists()


def test_contract_that_does_not_fit_the_network_is_refused(tmp_path):
    name = f"program:{save_program(tmp_path / 't.pt2')}"
    with pytest.raises(SourceError, match=r"names 2 classes \(a, \.\.\.\) and it returns 7 numbers"):
        open_source(name, weights_dir=tmp_path, told=Contract(classes=("a", "b")))
    with pytest.raises(SourceError, match=r"an embedding, and logits are asked of it; name it .*@embedding"):
        open_source(name, weights_dir=tmp_path, told=Contract(returns="embedding"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True, "rescale_factor": 1 / 255,
             "do_normalize": True, "resample": 3, "size": {"height": 384, "width": 384}},
            Contract((0.5,) * 3, (0.25,) * 3, (0.0, 1.0), "rgb", "bicubic", 384),
        ),
        (
            {"do_rescale": True, "do_flip_channel_order": True, "do_center_crop": True,
             "size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}, "resample": 2,
             "id2label": {"1": "b", "0": "a"}},
            Contract(None, None, (0.0, 1.0), "bgr", "bilinear", 256, "center crop", ("a", "b")),
        ),
        (
            {"image_mean": [123.0] * 3, "image_std": [58.0] * 3, "do_rescale": False},
            Contract((123.0,) * 3, (58.0,) * 3, (0.0, 255.0), "rgb"),
        ),
        (
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
            Contract(None, None, (-1.0, 1.0), "rgb"),
        ),
        (
            {"architecture": "vit", "num_classes": 2, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3,
             "interpolation": "bicubic", "input_size": [3, 224, 224], "crop_pct": 0.9,
             "label_names": ["x", "y"]}},
            Contract((0.5,) * 3, (0.5,) * 3, None, None, "bicubic", 224, "center crop of 90.0%", ("x", "y")),
        ),
    ],
)  # fmt: skip
def test_other_tools_files_are_read(tmp_path, content, expected):
    path = save_program(tmp_path / "t.pt2")
    path.with_suffix(".json").write_text(json.dumps(content))
    assert declared_of(path).contract == expected


def test_what_lies_beside_and_says_nothing_is_told_and_what_is_misspelt_refused(tmp_path):
    path = save_program(tmp_path / "t.pt2")
    beside = path.with_suffix(".json")
    beside.write_text('{"epochs": 90, "optimizer": "sgd"}')
    assert declared_of(path).remarks == (
        "t.json: has no field of a contract, so it says nothing of its program",
    )
    beside.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1}')
    assert declared_of(path).remarks == (
        "t.json: its interpolation lanczos is not available, bilinear is used",
    )
    for text, said in (('{"retruns": "logits"}', "did you mean returns"), ("{", "cannot be read as JSON")):
        beside.write_text(text)
        with pytest.raises(SourceError, match=said):
            declared_of(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_of_either_kind_become_the_logits_they_came_from(dtype):
    z = torch.tensor([[2.0, -1.0, 0.5, -3.0], [0.0, 0.0, 4.0, 1.0]], dtype=torch.float64)
    slack = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    for factor in (1, 100):
        rows = as_logits((factor * z.softmax(dim=1)).to(dtype), "probabilities").double()
        torch.testing.assert_close(rows, z.log_softmax(dim=1), atol=slack, rtol=slack)
    rows = as_logits(z.sigmoid().to(dtype), "sigmoids").double()
    torch.testing.assert_close(rows, z, atol=4 * slack, rtol=10 * slack)
    assert torch.equal(as_logits(z.to(dtype), "log-probabilities"), z.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_certain_answers_stay_finite_in_float16_and_in_their_order(dtype):
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]], dtype=dtype)
    for kind in ("probabilities", "sigmoids"):
        logits = as_logits(rows, kind).half()
        assert torch.isfinite(logits).all()
        assert logits.argmax(dim=1).tolist() == [0, 1]
        assert logits[1, 2] < logits[1, 0] < logits[1, 1]


def test_rows_that_are_no_probabilities_come_out_as_nan():
    rows = torch.tensor([[0.5, 0.5], [-0.5, 1.5], [torch.nan, 0.5]])
    assert as_logits(rows, "probabilities").isnan().any(dim=1).tolist() == [False, True, True]
    assert as_logits(rows, "sigmoids").isnan().any(dim=1).tolist() == [False, True, True]


def test_published_sources_say_what_their_weights_say():
    import torchvision

    for name in ("resnet18", "efficientnet_v2_l", "inception_v3", "googlenet", "vit_b_16"):
        contract = parse_source(f"imagenet:{name}").contract
        made = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
        assert (list(contract.mean), list(contract.std)) == (made.mean, made.std)
        assert f"crop {made.crop_size[0]}, {made.interpolation.value}" in contract.crop
        assert (contract.size, contract.interpolation) == (None, None), "f_s stays the paper's"
