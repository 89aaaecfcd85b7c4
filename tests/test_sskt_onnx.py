"""onnx:FILE: held against plain arithmetic; its contract, its shapes, and the bad files of that door."""

import json

import numpy as np
import onnx
import pytest
import torch
from teachers import save_onnx

import sskt.extras
from sskt.download import digest_of
from sskt.errors import MissingExtraError, SourceError
from sskt.sources import Contract, Forward, FrozenSource, InputMap, kind_of, open_source
from sskt.sources.frozen import NonFiniteLogitsError

CPU = torch.device("cpu")


def frozen(path, output="", told=None, forward=None, threads=2):
    source = open_source(f"onnx:{path}{output}", weights_dir=path.parent, told=told)
    spec = source.spec
    input_map = InputMap(spec.contract.size or 16, spec.mean, spec.std)
    return FrozenSource(source, input_map, device=CPU, forward=forward or Forward("fp32", 4), threads=threads)


def pixels(n, side=16):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def by_hand(x, weight, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    colour = (x.double().numpy() / 255).mean(axis=(2, 3))
    return (colour - mean) / std @ weight.T.astype(np.float64)


def test_rows_are_plain_arithmetic_in_any_batch(tmp_path):
    path, x = tmp_path / "net.onnx", pixels(10)
    weight = save_onnx(path)
    source = frozen(path)
    rows = source.logits(x)
    np.testing.assert_allclose(rows.double().numpy(), by_hand(x, weight), rtol=1e-3, atol=1e-3)
    assert torch.equal(source.logits(x[3:5]), rows[3:5])
    assert source.source.spec.n_classes == 7
    vectors = frozen(path, "@embedding").logits(x)
    assert torch.equal(vectors, rows)


def test_half_precision_is_taken_as_it_is(tmp_path):
    path, x = tmp_path / "net.onnx", pixels(4)
    weight = save_onnx(path, dtype="FLOAT16")
    np.testing.assert_allclose(frozen(path).logits(x).double().numpy(), by_hand(x, weight), atol=2e-2)


def test_contract_in_its_metadata_is_what_our_export_writes(tmp_path):
    path, x = tmp_path / "net.onnx", pixels(4)
    declared = {"mean": [0, 0, 0], "std": [1, 1, 1], "size": 16, "returns": "probabilities"}
    weight = np.abs(np.random.default_rng(0).normal(size=(7, 3))).astype(np.float32)
    save_onnx(path, weight=weight, metadata={"sskt_contract": json.dumps(declared)}, tail="Softmax")
    source = frozen(path)
    assert source.source.spec.contract == Contract.from_dict(declared)
    z = by_hand(x, weight, 0.0, 1.0)
    expected = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(source.logits(x).double().numpy(), expected, atol=2e-3)
    with pytest.raises(SourceError, match="is declared to return probabilities, and an embedding is asked"):
        frozen(path, "@embedding")
    told = Contract(returns="logits")
    assert frozen(path, told=told).source.spec.contract.returns == "logits"


def test_fixed_batch_and_size_are_kept_to(tmp_path):
    path, x = tmp_path / "net.onnx", pixels(5)
    weight = save_onnx(path, shape=(3, 3, 16, 16))
    source = open_source(f"onnx:{path}", weights_dir=tmp_path)
    assert (source.batch_range, source.side_range_px) == ((3, 3), (16, 16))
    with pytest.raises(SourceError, match="takes batches of 3, asked for 4; pass --batch-size 3"):
        frozen(path)
    rows = frozen(path, forward=Forward("fp32", 3)).logits(x)  # 5 images in two batches of 3
    np.testing.assert_allclose(rows.double().numpy(), by_hand(x, weight), rtol=1e-3, atol=1e-3)
    with pytest.raises(SourceError, match="reads pictures of 16 px, this target gives it 20 px"):
        FrozenSource(source, InputMap(20), device=CPU, forward=Forward("fp32", 3))


def test_a_file_whose_weights_lie_beside_it_is_recognised_by_both(tmp_path):
    path = tmp_path / "net.onnx"
    save_onnx(path)
    kind = kind_of("onnx:net.onnx")
    assert kind.digest(path) == digest_of(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    frozen(path)
    first, own = kind.digest(path), digest_of(path)
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    assert digest_of(path) == own
    assert kind.digest(path) != first
    (tmp_path / "net.data").unlink()
    with pytest.raises(SourceError, match=r"keeps its weights in net.data, which is not beside it"):
        frozen(path)


def test_nan_weights_are_named(tmp_path):
    path = tmp_path / "nan.onnx"
    save_onnx(path, weight=np.full((7, 3), np.nan, dtype=np.float32))
    with pytest.raises(NonFiniteLogitsError, match=r"onnx:nan.onnx gave NaN, .* check its weights"):
        frozen(path).logits(pixels(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"second_input": True},
            r"takes 2 input\(s\), images .*, mask .*, expected one float \(N, 3, H, W\)",
        ),
        ({"shape": ("batch", 16, 16, 3)}, "moves the channels"),
        ({"shape": ("batch", 3, 16, 20)}, "takes images of 16x20, expected square"),
        ({"shape": ("batch", 1, 16, 16)}, r"expected one float \(N, 3, H, W\)"),
    ],
)
def test_networks_of_other_inputs_are_refused(tmp_path, options, message):
    path = tmp_path / "net.onnx"
    save_onnx(path, **options)
    with pytest.raises(SourceError, match=message):
        frozen(path)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(SourceError, match="no such ONNX file"):
        frozen(path)
    save_onnx(path, dtype="DOUBLE")  # with a matrix of float32
    with pytest.raises(SourceError, match=r"ONNX Runtime .* cannot run it"):
        frozen(path)
    save_onnx(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="is not a whole ONNX file"):
        frozen(path)
    path.write_text("not a network")
    with pytest.raises(SourceError, match="is not a whole ONNX file"):
        frozen(path)
    save_onnx(path, metadata={"sskt_contract": '{"meen": 0}'})
    with pytest.raises(SourceError, match="did you mean mean"):
        frozen(path)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    save_onnx(path)
    monkeypatch.setattr(sskt.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, .*pip install 'sskt\[onnx\]'"):
        frozen(path)
    assert kind_of("onnx:net.onnx").digest(path) == digest_of(path)
