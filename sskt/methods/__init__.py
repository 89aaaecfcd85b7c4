"""Methods: what one training step computes; taught (scratch, sskt), distilled (kd), mutual (dml), maxl."""

from sskt.methods.dml import Dml
from sskt.methods.kd import Kd
from sskt.methods.maxl import AUXILIARY, Maxl
from sskt.methods.method import Losses, Method, Pairs, Terms
from sskt.methods.sskt import GATES, GRADIENT_COSINE, Sskt

METHODS = ("sskt", "scratch", "kd", "dml", "maxl")
TAUGHT = ("sskt", "kd")  # those that have sources

__all__ = [
    "AUXILIARY",
    "GATES",
    "GRADIENT_COSINE",
    "METHODS",
    "TAUGHT",
    "Dml",
    "Kd",
    "Losses",
    "Maxl",
    "Method",
    "Pairs",
    "Sskt",
    "Terms",
]
