"""Methods: what one training step computes; taught (scratch, sskt), distilled (kd), mutual (dml), maxl."""

from sskt.methods.distilled import Distilled
from sskt.methods.maxl import AUXILIARY, MetaAuxiliary
from sskt.methods.method import Losses, Method, Pairs, Terms
from sskt.methods.mutual import Mutual
from sskt.methods.taught import GATES, GRADIENT_COSINE, Taught

METHODS = ("sskt", "scratch", "kd", "dml", "maxl")
TAUGHT = ("sskt", "kd")  # those that have sources

__all__ = [
    "AUXILIARY",
    "GATES",
    "GRADIENT_COSINE",
    "METHODS",
    "TAUGHT",
    "Distilled",
    "Losses",
    "MetaAuxiliary",
    "Method",
    "Mutual",
    "Pairs",
    "Taught",
    "Terms",
]
