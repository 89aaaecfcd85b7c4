"""What a network returns, told apart by rows, and the order of its classes by names and labels."""

import pytest
import torch

from sskt.errors import SourceError
from sskt.sources.answers import remarks_on, require_known_kind, returned_kind
from sskt.sources.class_order import columns_of, known_orders


def logits(n=32, k=7, scale=3.0, seed=0):
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.05, 1.0, 8.0])
@pytest.mark.parametrize("k", [2, 7, 1000])
def test_kinds_are_told_apart(k, scale):
    z = logits(k=k, scale=scale)
    assert returned_kind(z) == "logits"
    assert returned_kind(z + 100) == "logits"
    assert returned_kind(z.softmax(dim=1)) == "probabilities"
    assert returned_kind(100 * z.softmax(dim=1)) == "probabilities"
    assert returned_kind(z.softmax(dim=1).half().float()) == "probabilities"
    assert returned_kind(z.log_softmax(dim=1)) == "log-probabilities"
    assert returned_kind(z.sigmoid()) == "sigmoids"


@pytest.mark.parametrize(
    ("rows", "declared", "said"),
    [
        (logits().softmax(1), None, "returns probabilities, not logits: all 32 rows.*=returns=probabilities"),
        (logits().softmax(1), "logits", "returns probabilities, not logits"),
        (100 * logits().softmax(1), None, "returns probabilities times 100, not logits"),
        (logits().sigmoid(), None, "seems to return sigmoids.*returns=sigmoids.*or returns=logits"),
        (logits(), "probabilities", "declared to return probabilities, but all 32 rows.*returns=logits"),
        (logits().log_softmax(1), "probabilities", "declare returns=log-probabilities"),
        (logits(), "sigmoids", "declared to return sigmoids, but all 32 rows"),
        (logits(k=1), None, "one number per image, whose softmax is always 1"),
        (logits(k=1).sigmoid(), "sigmoids", "one number per image"),
    ],
)
def test_what_teaches_nothing_or_contradicts_its_contract_is_refused(rows, declared, said):
    with pytest.raises(SourceError, match=f"(?s)^program:t.pt2 .*{said}"):
        require_known_kind(rows, declared, "program:t.pt2")


@pytest.mark.parametrize(
    ("rows", "declared", "said"),
    [
        (logits(), None, None),
        (logits(scale=8.0), "logits", None),
        (logits().log_softmax(1), "log-probabilities", None),
        (logits().softmax(1), "probabilities", None),
        (logits().sigmoid(), "sigmoids", None),
        (logits().log_softmax(1), None, "serve as logits as they are"),
        (logits(), "log-probabilities", "do not add up to 1"),
        (logits().sigmoid(), "logits", "all of 32 rows tried lie in 0..1"),
        (logits(scale=1e-3), None, "entropy of its softmax is 100.0% of log 7 on 32 images"),
        (logits(scale=1e6), None, "saturated: 32 of 32 rows tried are one class even at T = 3"),
        (logits(n=1).repeat(32, 1), None, "the same of all 32 images"),
        (torch.full((32, 7), torch.nan), None, None),
    ],
)
def test_what_is_odd_is_said_and_what_is_sound_passes(rows, declared, said):
    require_known_kind(rows, declared, "t")
    remarks = remarks_on(rows, declared, "t")
    assert len(remarks) == (said is not None)
    assert all(said in remark for remark in remarks)


def test_confident_and_sound_teachers_are_no_warning():
    margin = torch.nn.functional.one_hot(torch.arange(32) % 10, 10) * 12.0
    assert remarks_on(margin + logits(k=10, scale=1.0), None, "t") == []


NUMBERED = tuple(sorted(map(str, range(1, 13))))  # as folders are listed


def test_known_orders_say_where_each_class_is():
    orders = known_orders(NUMBERED)
    assert set(orders) == {"numeric", "reversed"}
    teacher = [str(i) for i in range(1, 13)]
    assert [teacher[column] for column in orders["numeric"]] == list(NUMBERED)
    assert set(known_orders(("Zebra", "ape", "bee"))) == {"case-insensitive", "reversed"}
    assert set(known_orders(("class_10", "class_2"))) == {"numeric"}, "reversed is the same"


def test_declared_names_give_the_columns_whatever_their_order_and_spelling():
    classes = ("hot_dog", "ice cream", "Tea")
    assert columns_of(("Tea", "hot_dog", "ice cream"), classes).tolist() == [1, 2, 0]
    assert columns_of(("tea", "Hot Dog", "ice-cream"), classes).tolist() == [1, 2, 0]
    assert columns_of(("tea", "hot dog", "cake"), classes) is None
    assert columns_of(("a", "A", "b"), ("A", "a", "b")).tolist() == [1, 0, 2]
    assert columns_of("numeric", NUMBERED).tolist() == [int(name) - 1 for name in NUMBERED]
    assert columns_of("target", NUMBERED).tolist() == list(range(12))
