"""What must not change when the house does: a store's bytes, fingerprints, configs, commands and settings.

Written once by `python tests/test_golden.py`, which is for a change that is meant; the commit says why.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
from cache.manifest import digest
from pipeline.api import Augmentation, choose_execution
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.plan import plan_from
from pipeline.runtime.distributed import World
from pipeline.stores.fingerprint import identity, source_identity
from pipeline.studies.reproduce.published import published_rows
from pipeline.studies.reproduce.rows import Shrink, attempts
from pipeline.train.config import SETTLED_BY_DATA
from pipeline.train.resolve import resolve
from sskt.sources.input_map import InputMap
from sskt.sources.registry import parse_source

GOLDEN = Path(__file__).with_name("golden")
PROGRAM = GOLDEN / "program.pt2"
METHODS = {
    "scratch": ("--method", "scratch"),
    "sskt": ("--source", f"program:{PROGRAM}"),
    "kd": ("--method", "kd", "--source", "run:scratch"),
    "dml": ("--method", "dml"),
    "maxl": ("--method", "maxl"),
}
STORES = {"dense": (), "top-k": ("--top-k", "3")}


class Grid(nn.Module):
    """Sixteen logits in steps of a half, so that no processor's last bit shows."""

    def __init__(self):
        super().__init__()
        weight = torch.randint(-8, 9, (16, 12), generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", weight.float() / 4)

    def forward(self, x):
        pooled = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return torch.round(2 * pooled @ self.weight.T) / 2


def run(folder, *arguments):
    """A command of ours in this process; returns what it prints as its result."""
    lie = ("--data-dir", str(folder / "data"), "--cache-dir", str(folder / "stores"))
    result = CliRunner().invoke(cli.main, [*arguments, *lie], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def stores(folder):
    """Every file of two small stores: the sha256 of its bytes, and of zarr.json the values."""
    found = {}
    for name, options in STORES.items():
        asked = ("--source", f"program:{PROGRAM}", "--target", "digits", "--limit", "40", "--views", "2")
        run(folder / name, "precompute", *asked, *options, "--device", "cpu", "--amp", "fp32")
        root = folder / name / "stores"
        (store,) = root.rglob("*.zarr")
        files = {store.relative_to(root).as_posix(): "the store"}
        for path in sorted(p for p in store.rglob("*") if p.is_file()):
            at = path.relative_to(store).as_posix()
            if at != "backup.json":  # of zarr.json, with what is of the time
                files[at] = _plain(path) if path.name == "zarr.json" else _sha256(path)
        found[name] = files
    return found


def _plain(path):
    """zarr.json without what is of the machine and the time."""

    def scrubbed(value):
        if isinstance(value, list):
            return [scrubbed(each) for each in value]
        if not isinstance(value, dict):
            return value
        kept = {k: scrubbed(v) for k, v in value.items() if k != "attributes_sha256"}
        if "made_by" in value:
            kept.pop("sha256")
            kept["made_by"] = sorted(value["made_by"])
        return kept

    return scrubbed(json.loads(path.read_text()))


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprints(folder):
    """Digests of stores of images and of clips, of named sources, a program and a run."""
    dataset = load_dataset(parse_target("digits"), "train", data_dir=folder, index_dir=folder).limit(40)
    run_folder = folder / "student"
    run_folder.mkdir()
    config = {"model": "resnet3d18", "classes": ["no", "yes"], "clip_mean": "activitynet"}
    (run_folder / "config.json").write_text(json.dumps(config))
    names = {
        "imagenet": ["cifar10", "voc", "ucf101"],
        "places365:resnet18": ["stl10"],
        "kinetics:r3d_18": ["ucf101"],
        f"program:{PROGRAM}": ["cifar10", "hmdb51"],
        f"run:{run_folder}": ["ucf101"],
    }
    found = {}
    for name, targets in names.items():
        spec = parse_source(name)
        for target in targets:
            for top_k in (None, 8):
                augmentation, of = Augmentation(seed=3), parse_target(target)
                plan = augmentation.training_plan(of)
                about = source_identity(spec, "ab" * 32, spec.n_classes or 9)
                shown = augmentation.input_map(of, spec)
                assert plan_from(plan.to_dict(), "") == plan
                assert InputMap.from_dict(shown.to_dict()) == shown
                fields = identity(about, shown, plan, dataset, top_k=top_k)
                found[f"{spec.name} {target} {top_k}"] = digest(fields)
    return found


def configs(folder):
    """config.json of a short run of every method."""
    asked = ("--source", f"program:{PROGRAM}", "--target", "digits", "--limit", "40", "--views", "2")
    run(folder, "precompute", *asked, "--device", "cpu")
    found = {}
    for method, options in METHODS.items():
        options = [str(folder / "scratch").join(("run:", "")) if o == "run:scratch" else o for o in options]
        settings = ("--epochs", "1", "--batch-size", "20", "--limit", "40", "--amp", "fp32")
        live = ("--labels", "live") if method == "kd" else ()
        out = folder / method
        run(folder, "train", "--target", "digits", *options, *live, *settings, "--out", str(out))
        config = json.loads((out / "config.json").read_text())
        if method == "kd":
            config["source_weights"] = sorted(config["source_weights"])
        found[method] = json.loads(json.dumps(config).replace(str(folder), "FOLDER"))
    return found


def published(_folder):
    """The settings of every published row, as its config has them before data and weights are there."""
    execution, found = choose_execution(device="cpu", threads=1), {}
    for table in dict.fromkeys(row.table for row in published_rows() if row.method != "cited"):
        if table == "G":
            continue
        for attempt in attempts(table, (), shrink=Shrink(), stand_ins={}):
            row = attempt.row
            config = resolve(
                row.target,
                execution=execution,
                world=World(),
                augmentation=Augmentation(),
                model=row.model,
                eval_every=attempt.eval_every(None),
                amp="fp32",
                **attempt.settings(attempt.sources, 10),
            )
            planned = {k: v for k, v in config.to_dict().items() if k not in (*SETTLED_BY_DATA, "gates")}
            about = {"sources": list(attempt.sources), "metric": attempt.metric, "views": config.views}
            rows = found.setdefault(table, {})
            rows[f"{len(rows)} {row.name}"] = planned | about
    return _brief(found)


def _brief(tables):
    """Each row's settings without those that it shares with most."""
    rows = [json.loads(text_of(row)) for rows in tables.values() for row in rows.values()]
    texts = {name: [json.dumps(row[name]) for row in rows] for name in rows[0]}
    common = {name: json.loads(max(sorted(set(values)), key=values.count)) for name, values in texts.items()}
    assert all(set(row) == set(common) for row in rows)
    own = {
        table: {
            name: json.dumps({k: v for k, v in json.loads(text_of(row)).items() if v != common[k]})
            for name, row in rows.items()
        }
        for table, rows in tables.items()
    }
    return {"most rows": common, **own}


def interface(_folder):
    """Every command's options: what they are called, take and are without being given."""
    found = {}
    for name, command in _commands(cli.main):
        found[name] = {
            " ".join((*option.opts, *option.secondary_opts)): {
                "type": option.type.to_info_dict(),
                "default": repr(option.default) if option.default is not None else None,
                "required": option.required,
                "multiple": getattr(option, "multiple", False),
                "envvar": option.envvar,
                "nargs": option.nargs,
            }
            for option in command.params
        }
    return found


def _commands(group, before="sskt"):
    yield before, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def help_of(name):
    """The help page, 100 columns wide."""
    words = [*name.split()[1:], "--help"]
    return CliRunner().invoke(cli.main, words, prog_name="sskt", terminal_width=100).output


KINDS = {
    "stores": stores,
    "fingerprints": fingerprints,
    "configs": configs,
    "published": published,
    "interface": interface,
}


def text_of(value):
    """As it is kept: JSON."""
    return json.dumps(value, indent=1, sort_keys=True, default=asdict).replace(str(PROGRAM), "PROGRAM") + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_it_was(kind, tmp_path):
    assert json.loads(text_of(KINDS[kind](tmp_path))) == json.loads((GOLDEN / f"{kind}.json").read_text())


@pytest.mark.parametrize("name", [name for name, _ in _commands(cli.main)])
def test_a_help_page_is_as_it_was(name):
    assert help_of(name) == (GOLDEN / "help" / f"{name.replace(' ', '-')}.txt").read_text()


def write():
    """Keep what there is now."""
    import tempfile

    from programs import save_program

    if not PROGRAM.is_file():
        save_program(PROGRAM, Grid())
    for kind, values in KINDS.items():
        folder = Path(tempfile.mkdtemp())
        (GOLDEN / f"{kind}.json").write_text(text_of(values(folder)))
        shutil.rmtree(folder)
    for name, _ in _commands(cli.main):
        (GOLDEN / "help" / f"{name.replace(' ', '-')}.txt").write_text(help_of(name))


if __name__ == "__main__":
    write()
