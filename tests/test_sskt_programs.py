"""Exported programs as people write them: attention, dropout and norms in either mode, outputs in any
structure, inputs in any precision, batches of any range.
"""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from processes import run_python
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from sskt.errors import SourceError
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource
from sskt.sources.input_map import InputMap
from sskt.sources.registry import open_source

CPU = torch.device("cpu")
SIDE = 16
# torch 2.11's own `run_decompositions` copies what it has deprecated itself
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")


class Net(nn.Module):
    """Logits from four means and whatever a test puts in between."""

    def __init__(self, between=None, end=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 7)
        self.between = between or nn.Identity()
        self.end = end or (lambda z: z)

    def forward(self, x):
        return self.end(self.linear(self.between(self.conv(x)).to(x.dtype).mean(dim=(2, 3))))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, dropout_p=0.0):
        super().__init__()
        self.dropout_p = dropout_p

    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(t, t, t, dropout_p=self.dropout_p).transpose(1, 2)[..., None]


class Tokens(nn.Module):
    """torch's own attention layers over the pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]


class Under(nn.Module):
    """A module whose calls are exported as a nested graph."""

    def __init__(self, module, context):
        super().__init__()
        self.module, self.context = module, context

    def forward(self, x):
        with self.context():
            return self.module(x)


def export(network, path, *, batch="dynamic", x=None, decomposed=False, kwargs=None):
    x = torch.zeros(4, 3, SIDE, SIDE) if x is None else x
    shapes = {0: Dim("batch", min=1, max=64) if batch == "dynamic" else batch} if batch else None
    args, kwargs = ((x,), None) if kwargs is None else ((), {"pixel_values": x} | kwargs)
    dynamic = (shapes,) if not kwargs else {"pixel_values": shapes} | dict.fromkeys(list(kwargs)[1:])
    program = torch.export.export(network, args, kwargs, dynamic_shapes=dynamic if shapes else None)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def open_program(path):
    return open_source(f"program:{path}", weights_dir=path.parent)


def frozen(source, batch_size=None):
    forward = batch_size and Forward(batch_size=batch_size)
    return FrozenSource(source, InputMap(SIDE), device=CPU, forward=forward, threads=1)


def pixels(n):
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(1))


def assert_gives(source, network, x=None):
    """The program's logits are the network's."""
    x = torch.randn(4, 3, SIDE, SIDE) if x is None else x
    with torch.inference_mode():
        torch.testing.assert_close(source.module(x), network(x))


QUIET = {
    "attention": Attention(),
    "torch's encoder layer": Tokens().eval(),
    "dropout in eval mode": nn.Dropout(0.5).eval(),
    "dropout of nothing in train mode": nn.Dropout(0.0).train(),
    "rrelu in eval mode": nn.RReLU().eval(),
    "feature and alpha dropout in eval mode": nn.Sequential(
        nn.Dropout2d(0.5), nn.FeatureAlphaDropout(0.5)
    ).eval(),
    "batch norm in eval mode": nn.BatchNorm2d(4).eval(),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "random numbers that nothing uses": Call(lambda x: (torch.rand_like(x), x)[1]),
    "attention under autocast": Under(Attention(), lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "dropout in eval mode without gradient": Under(nn.Dropout(0.5).eval(), torch.no_grad),
}
RANDOM = {
    "attention that drops": (Attention(0.1), "scaled_dot_product_attention"),
    "dropout": (nn.Dropout(0.1).train(), "dropout"),
    "feature dropout": (nn.Dropout2d(0.1).train(), "feature_dropout"),
    "rrelu": (nn.RReLU().train(), "rrelu"),
    "noise": (Call(lambda x: x + torch.randn_like(x)), "randn_like"),
    "noise in place": (Call(lambda x: x * torch.empty(x.shape[1:]).bernoulli_(0.9)), "bernoulli_"),
    "stochastic depth": (torchvision.ops.StochasticDepth(0.2, "row").train(), "bernoulli"),
    "batch norm": (nn.BatchNorm2d(4).train(), "batch_norm"),
    "batch norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False).eval(), "batch_norm"),
    "dropout under autocast": (
        Under(nn.Dropout(0.1).train(), lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        "dropout",
    ),
    "dropout without gradient": (Under(nn.Dropout(0.1).train(), torch.no_grad), "dropout"),
}


DECOMPOSED = ("attention", "instance norm", "dropout", "batch norm")  # their operators are others then


def forms(names):
    return [(n, False) for n in names] + [(n, True) for n in names if n in DECOMPOSED]


@pytest.mark.parametrize(("name", "decomposed"), forms(QUIET))
def test_what_is_a_function_of_its_picture_is_accepted(tmp_path, name, decomposed):
    network = Net(QUIET[name])
    source = open_program(export(network, tmp_path / "net.pt2", decomposed=decomposed))
    frozen(source)
    if "autocast" not in name:
        assert_gives(source, network)


@pytest.mark.parametrize(("name", "decomposed"), forms(RANDOM))
def test_what_draws_or_mixes_rows_is_refused_by_its_operators_name(tmp_path, name, decomposed):
    between, operator = RANDOM[name]
    path = export(Net(between), tmp_path / "net.pt2", decomposed=decomposed)
    with pytest.raises(
        SourceError, match=r"net\.pt2: aten::\w+ is in train mode or random.*module\.eval"
    ) as e:
        open_program(path)
    assert decomposed or operator in str(e.value)


@torch.library.custom_op("sskt_tests::noisy", mutates_args=())
def noisy(x: torch.Tensor) -> torch.Tensor:
    """Random without saying so."""
    return x + torch.rand(x.shape)


noisy.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda x: x - x.mean(dim=0, keepdim=True), "gives a picture other logits beside other pictures"),
        (lambda x: x + x.flip(0), "gives a picture other logits beside other pictures"),
        (lambda x: x / x.abs().amax(), "gives a picture other logits beside other pictures"),
        (noisy, "gives other logits when it is asked again about the same picture"),
    ],
)
def test_what_no_operators_arguments_tell_is_told_by_what_it_does(tmp_path, between, said):
    source = open_program(export(Net(Call(between)), tmp_path / "net.pt2"))
    with pytest.raises(SourceError, match=said):
        frozen(source)


def test_statistics_of_a_batch_of_one_are_the_pictures_own(tmp_path):
    network = Net(nn.BatchNorm2d(4, track_running_stats=False))
    x = torch.zeros(1, 3, SIDE, SIDE)
    source = open_program(export(network, tmp_path / "net.pt2", batch=None, x=x))
    got, each = (
        frozen(source).logits(pixels(3)),
        [frozen(source).logits(pixels(3)[i : i + 1]) for i in range(3)],
    )
    assert torch.equal(got, torch.cat(each))


Answer = namedtuple("Answer", ["features", "logits"])
pytree._register_namedtuple(Answer, serialized_type_name="tests.Answer")


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (lambda z: {"logits": z}, None),
        (lambda z: (z,), None),
        (lambda z: [z], None),
        (lambda z: ((z,), {}), None),
        (lambda z: z[..., None, None], None),
        (lambda z: {"out": z[..., None]}, None),
        (lambda z: (z, z), "its output 0 is taken for the logits, of 2 outputs"),
        (lambda z: (z.argmax(1), z), "its output 1 is taken for the logits, of 2 outputs"),
        (
            lambda z: {"features": z * 2, "logits": z},
            "its output logits is taken for the logits, of 2 outputs",
        ),
        (lambda z: {"x": {"a": z * 2, "cls_logits": z}}, "its output x.cls_logits is taken for the logits"),
        (lambda z: Answer(z * 2, z), "its output logits is taken for the logits, of 2 outputs"),
    ],
)
def test_logits_are_found_in_any_structure(tmp_path, end, note):
    source = open_program(export(Net(end=end), tmp_path / "net.pt2"))
    assert_gives(source, Net())
    assert note in source.notes[0] if note else source.notes == ()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda z: (z, z * 2), r"returns 2 outputs, .*found 0 torch.float32 .*`return net\(x\)\[0\]`"),
        (lambda z: {"a": z, "b": z * 2}, r"returns 2 outputs, .*found a .*`return net\(x\)\['a'\]`"),
        (
            lambda z: z[:, :, None, None].expand(-1, -1, 5, 5),
            r"expected one .*forward averages each of them",
        ),
        (lambda z: z[:, None, :].expand(-1, 9, -1), r"ends in a classification head"),
        (lambda z: {"labels": z.argmax(1)}, "returns torch.int64 .* as labels, expected one"),
        (lambda z: z.argmax(1), r"expected one .*returns the logits, not what is made"),
    ],
)
def test_outputs_that_could_mean_anything_are_refused_with_what_helps(tmp_path, end, said):
    with pytest.raises(SourceError, match=said):
        open_program(export(Net(end=end), tmp_path / "net.pt2"))


_ELSEWHERE = """
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
import torch
from torch.utils import _pytree as pytree

class ModelOutput(OrderedDict):
    pass

@dataclass
class Plain:
    features: torch.Tensor
    logits: torch.Tensor
    hidden: tuple | None = None

Named = namedtuple("Named", ["features", "logits"])
flat = lambda o: (list(o.values()), list(o))
pytree.register_pytree_node(
    ModelOutput, flat, lambda v, c: ModelOutput(zip(c, v)), serialized_type_name="elsewhere.ModelOutput"
)
torch.export.register_dataclass(Plain, serialized_type_name="elsewhere.Plain")
pytree._register_namedtuple(Named, serialized_type_name="elsewhere.Named")
ends = dict(
    one=lambda z: ModelOutput(logits=z),
    model_output=lambda z: ModelOutput(logits=z, hidden_states=(z * 2, z * 3)),
    dataclass=lambda z: Plain(z * 2, z), named_tuple=lambda z: Named(z * 2, z),
    headless=lambda z: ModelOutput(last_hidden_state=z, pooler_output=z * 2),
)

class Net(torch.nn.Module):
    def __init__(self, end):
        super().__init__()
        self.linear, self.end = torch.nn.Linear(3, 7), end
        torch.nn.init.eye_(self.linear.weight)

    def forward(self, x):
        return self.end(self.linear(x.mean(dim=(2, 3))))

shapes = ({0: torch.export.Dim("batch")},)
for name, end in ends.items():
    program = torch.export.export(Net(end).eval(), (torch.zeros(4, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, name + ".pt2")
"""


def test_structures_whose_classes_are_not_here_are_opened(tmp_path):
    """As Hugging Face's ModelOutput without transformers: the program was exported in another process."""
    assert run_python("-c", _ELSEWHERE, cwd=tmp_path).returncode == 0
    x = torch.randn(3, 3, SIDE, SIDE)
    registered = dict(pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)
    for name, n in (("one", 1), ("model_output", 3), ("dataclass", 2), ("named_tuple", 2)):
        source = open_program(tmp_path / f"{name}.pt2")
        with torch.inference_mode():
            z = source.module(x)
        torch.testing.assert_close(z[:, :3] - z[:1, :3], x.mean(dim=(2, 3)) - x[:1].mean(dim=(2, 3)))
        taken = f"its output logits is taken for the logits, of {n} outputs"
        assert (taken in source.notes[0]) if n > 1 else source.notes == ()
        assert frozen(source).logits(pixels(3)).shape == (3, 7)
    with pytest.raises(
        SourceError,
        match=r"found last_hidden_state .*pooler_output .*classification head .*`return net\(x\)\.logits`",
    ):
        open_program(tmp_path / "headless.pt2")
    assert dict(pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE) == registered, "stand-ins stay with their file"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_are_given_in_the_precision_that_a_program_takes(tmp_path, dtype):
    x = torch.zeros(4, 3, SIDE, SIDE, dtype=dtype)
    source = open_program(export(Net().to(dtype), tmp_path / "net.pt2", x=x))
    assert f"takes {str(dtype)[6:]} pictures" in source.notes[0]
    with torch.inference_mode():
        got, x = frozen(source).logits(pixels(3)), InputMap(SIDE)(pixels(3))
        torch.testing.assert_close(got.float(), Net()(x), rtol=2e-2, atol=2e-2)


def test_pixels_as_bytes_are_refused_with_what_helps(tmp_path):
    class Bytes(Net):
        def forward(self, x):
            return super().forward(x.float() / 255)

    x = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
    with pytest.raises(SourceError, match=r"takes torch\.uint8 .*undoes the normalisation and rounds"):
        open_program(export(Bytes(), tmp_path / "net.pt2", x=x))


def test_a_picture_given_by_keyword_beside_constants_is_found(tmp_path):
    class Keyword(Net):
        def forward(self, pixel_values=None, interpolate=None, return_dict=None):
            z = super().forward(pixel_values)
            return {"logits": z} if return_dict else z * 5

    path = export(Keyword(), tmp_path / "net.pt2", kwargs={"interpolate": None, "return_dict": True})
    assert_gives(open_program(path), Net())


@pytest.mark.parametrize(
    ("batch", "n", "rows"),
    [
        (None, 1, 1),
        (None, 3, 3),
        (Dim("batch", min=1, max=8), 2, 8),
        (Dim("batch", min=20, max=30), 20, 20),
        (Dim("batch", min=4), 4, 16),
        (Dim("batch"), 2, 16),
    ],
)
def test_rows_of_a_forward_keep_to_the_batches_that_a_program_takes(tmp_path, batch, n, rows):
    x = torch.zeros(n, 3, SIDE, SIDE)
    source = open_program(export(Net(), tmp_path / "net.pt2", batch=batch, x=x))
    found = frozen(source)
    assert found.forward.batch_size == rows
    with torch.inference_mode():
        torch.testing.assert_close(
            found.logits(pixels(9)).float(), Net()(InputMap(SIDE)(pixels(9))), rtol=2e-3, atol=2e-3
        )
    high = source.batch_range[1]
    if high is not None:
        with pytest.raises(
            SourceError, match=rf"takes batches of .*, asked for {high + 1}; pass --batch-size {high}"
        ):
            frozen(source, batch_size=high + 1)


def test_a_program_of_an_operator_that_is_not_here_is_not_called_damaged(tmp_path):
    path = export(Net(Call(noisy)), tmp_path / "net.pt2")
    path.write_bytes(path.read_bytes().replace(b"sskt_tests.noisy", b"sskt_tests.quiet"))
    with pytest.raises(SourceError, match="needs an operator that this torch does not have"):
        open_program(path)
