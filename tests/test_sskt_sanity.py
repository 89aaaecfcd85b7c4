"""Weights and logits that no sound network has end a run or a unit, and are never kept."""

import json

import numpy as np
import pytest
import torch
from programs import Tiny, save_program

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.train.divergence import DivergedError
from pipeline.train.evaluate import Evaluator
from pipeline.train.trainer import Trainer
from sskt import sanity
from sskt.errors import RunError, SourceError
from sskt.sanity import insane_rows, insane_weight, worst_value


def test_bounds_are_by_kind_and_the_first_that_breaks_one_is_named():
    state = {
        "conv.weight": torch.tensor([1.0, -9e3]),
        "bn.running_var": torch.tensor([1e9, 0.1]),
        "bn.num_batches_tracked": torch.tensor(10**9),
        "empty": torch.empty(0),
    }
    assert insane_weight(state, ["bn.running_var"]) is None
    assert insane_weight({}, []) is None
    name, value = insane_weight(state | {"head.weight": torch.tensor([-2e4])}, ["bn.running_var"])
    assert (name, value) == ("head.weight", 2e4)
    assert insane_weight(state, []) == ("bn.running_var", 1e9)
    assert insane_weight({"a": torch.tensor([1.0, torch.nan])}, [])[0] == "a"
    assert insane_weight({"a": torch.tensor([1e34])}, [])[0] == "a"


def test_rows_of_logits_beyond_a_bound_are_found():
    rows = torch.tensor([[1.0, -9e3], [0.0, 2e4], [torch.nan, 0.0], [0.0, -torch.inf]])
    assert insane_rows(rows) == [1, 2, 3]
    assert insane_rows(rows.half()) == [1, 2, 3]
    assert [worst_value(row) for row in rows[[0, 1, 3]]] == [-9e3, 2e4, -torch.inf]
    assert np.isnan(worst_value(rows[2]))


def train(folder, **more):
    return api.train(
        "digits",
        out=folder / "run",
        paths=Paths(folder / "data", folder / "stores"),
        limit=40,
        method="scratch",
        execution=choose_execution(device="cpu", threads=1),
        epochs=2,
        batch_size=20,
        lr=0.01,
        amp="bf16",
        **more,
    )


def test_a_student_with_absurd_weights_is_never_kept(tmp_path, monkeypatch):
    """Batch norm hides them from the loss, which stays finite."""
    step = Trainer._take_step

    def spoilt(self, batch):
        step(self, batch)
        with torch.no_grad():
            next(p for n, p in self.method.named_parameters() if n.endswith("layer2.0.conv1.weight")).mul_(
                1e7
            )

    monkeypatch.setattr(Trainer, "_take_step", spoilt)
    with pytest.raises(DivergedError) as caught:
        train(tmp_path)
    said = str(caught.value)
    assert "the largest value of student.backbone.layer2.0.conv1.weight is " in said
    assert (
        "in epoch 1, after step 2; lower --lr (it is 0.01), or add --clip-norm 1, or try --amp fp32" in said
    )
    assert "nothing was saved yet" in said
    run = tmp_path / "run"
    assert not {"student.safetensors", "best.safetensors", "summary.json", "last.pt"} & {
        path.name for path in run.iterdir()
    }
    assert json.loads((run / "diverged.json").read_text())["step"] == 2


def test_a_student_with_absurd_answers_is_never_kept_and_not_scored(tmp_path, monkeypatch):
    train(tmp_path)
    predict = Evaluator._sane
    monkeypatch.setattr(
        Evaluator,
        "_sane",
        lambda self, logits, *rest: predict(self, logits.index_fill(0, torch.tensor([3]), 3e4), *rest),
    )
    monkeypatch.setattr(sanity, "_SETTLED_AFTER", 1)
    with pytest.raises(
        RunError, match=r"1 of \d+ samples of digits/test make no sense, 3e\+04 for sample \d+"
    ):
        api.evaluate(tmp_path / "run")
    other = tmp_path / "other"
    with pytest.raises(
        DivergedError, match=r"make no sense, .*in epoch 1, after step 2; lower --lr"
    ) as caught:
        train(other)
    assert len(caught.value.found["ids"]) == 1
    assert not (other / "run" / "summary.json").exists()


def test_stage_one_names_source_sample_and_value_of_an_absurd_row(tmp_path):
    class Loud(Tiny):
        def forward(self, x):
            return super().forward(x) + 3e4

    source = f"program:{save_program(tmp_path / 'loud.pt2', Loud())}"
    with pytest.raises(
        SourceError,
        match=r"program:loud.pt2 gave .* over 10000 logits for 60 of 60 rows, 3e.04 .*samples",
    ):
        api.precompute(
            ["digits"],
            [source],
            views=1,
            limit=60,
            paths=Paths(tmp_path / "data", tmp_path / "stores"),
            execution=choose_execution(device="cpu", threads=1),
        )
    (path,) = find_stores(tmp_path / "stores")
    assert not Store.open(path).whole_views
