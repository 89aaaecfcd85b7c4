"""Does `--recipe finetune` suit a folder of few images, and are its values sane? The Places365 SqueezeNet of
an exported program becomes a student with its weights, or with fresh ones.

    python benchmarks/finetune.py imagefolder:scene15 --program places365_squeezenet.pt2

Plan, before any run: every arm changes one thing about the recipe; seeds 0, 1, 2 for the recipe and for fresh
weights, seed 0 for the others, and three seeds for what beats the recipe by more than 3 points there. A value
of the recipe changes if another is better by more than the larger spread of the two. Test top-1 of the last
epoch, no validation part. Finished runs in --out are reused.
"""

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.commands.output import show_remarks
from pipeline.studies.series import train_or_resume
from sskt.recipes import finetune_length

SLOPE = 0.55  # of the program's leaky ReLUs
POOLED_AFTER = (1, 3)  # the fire modules that max-pooling follows
# by arm: whether it starts from the program's weights, and factors or values of the recipe's settings
ARMS: dict[str, tuple[bool, dict[str, float]]] = {
    "finetune": (True, {}),
    "fresh weights": (False, {"layer_decay": 1.0}),
    "a third of the rate": (True, {"lr": 1 / 3}),
    "three times the rate": (True, {"lr": 3.0}),
    "a third of the epochs": (True, {"epochs": 1 / 3}),
    "no layer decay": (True, {"layer_decay": 1.0}),
    "no average": (True, {"ema": 0.0}),
}
FACTORS = {"lr", "epochs"}


class Fire(nn.Module):
    """A squeeze to few channels, then 1 x 1 and 3 x 3 kernels side by side."""

    def __init__(self, state: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.squeeze, self.expand1, self.expand3 = (
            _conv(state, f"{prefix}.{name}") for name in ("squeeze", "expand1", "expand3")
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.squeeze(x), SLOPE)
        return F.leaky_relu(torch.cat([self.expand1(x), self.expand3(x)], dim=1), SLOPE)


class Normalise(nn.Module):
    """From what the program takes, ImageNet's normalisation, to what its first convolution was trained on."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("scale", state["isd"].clone())
        self.register_buffer("shift", (state["im"] - state["pm"]).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def squeezenet(program: Path, *, pretrained: bool) -> nn.Module:
    """Normalised RGB (N, 3, H, W) to features (N, 512); the program's last convolution is left out."""
    state = torch.export.load(program).state_dict
    parts: list[nn.Module] = [
        Normalise(state), _conv(state, "conv1", stride=2), nn.LeakyReLU(SLOPE), nn.MaxPool2d(3, 2)
    ]  # fmt: skip
    for i in range(8):
        parts += [Fire(state, f"fires.{i}"), *([nn.MaxPool2d(3, 2)] if i in POOLED_AFTER else [])]
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if not pretrained:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)
    return network


def _conv(state: dict[str, Tensor], name: str, stride: int = 1) -> nn.Conv2d:
    weight = state[f"{name}.weight"]
    n_out, n_in, side, _ = weight.shape
    conv = nn.Conv2d(n_in, n_out, side, stride, padding=side // 2)
    conv.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
    return conv


def main() -> None:
    args = _arguments()
    paths, execution = Paths(args.data_dir), choose_execution(threads=args.threads)
    usual = finetune_length(len(open_dataset(args.target, "train", paths=paths)))
    top1 = dict[str, list[float]]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm in args.arms.split(","):
            pretrained, changed = ARMS[arm]
            settings = dict(changed)
            for name in FACTORS & settings.keys():
                settings[name] *= usual[name]
            if "epochs" in settings:
                settings["epochs"] = round(settings["epochs"])
            torch.manual_seed(seed)
            summary = train_or_resume(
                args.target,
                args.out / f"{arm.replace(' ', '-')}-{seed}",
                method="scratch",
                model=squeezenet(args.program, pretrained=pretrained),
                recipe="finetune",
                seed=seed,
                augmentation=Augmentation(side_px=args.size),
                val_share=0.0,
                eval_every=20,
                amp="fp32",
                paths=paths,
                execution=execution,
                **settings,
            )
            top1.setdefault(arm, []).append(summary["test_top1"])
            print(
                f"{arm}, seed {seed}: {summary['test_top1']:.2f} %, {summary['epoch_s']:.2f} s/epoch",
                flush=True,
            )
    print("\n| arm | top-1 | by seed |\n|---|---|---|")
    for arm, found in top1.items():
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        each = ", ".join(f"{value:.2f}" for value in found)
        print(f"| {arm} | {statistics.mean(found):.2f} ± {spread:.2f} % | {each} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
