"""How work is run, never what is computed: device, precision, threads, memory, ranks, paths."""

from pipeline.runtime.cpu_contention import CpuContention
from pipeline.runtime.device import CPU, InUse, to_device
from pipeline.runtime.distributed import World, join_world
from pipeline.runtime.execution import (
    Execution,
    autocast,
    channels_last,
    choose_execution,
    render_batch_size,
    student_precision,
)
from pipeline.runtime.figures import fitted, lettering, write_figure
from pipeline.runtime.kernels import How, sentence, wrong_layers
from pipeline.runtime.memory import (
    ask_for_large_pages,
    memory_for_images,
    peak_memory,
    reuse_freed_memory,
)
from pipeline.runtime.paths import Paths, folder_words, require_named
from pipeline.runtime.prefetch import prefetch
from pipeline.runtime.progress import Progress
from pipeline.runtime.remarks import mute_remarks
from pipeline.runtime.results import write_result
from pipeline.runtime.tables import csv_text

__all__ = [
    "CPU",
    "CpuContention",
    "Execution",
    "How",
    "InUse",
    "Paths",
    "Progress",
    "World",
    "ask_for_large_pages",
    "autocast",
    "channels_last",
    "choose_execution",
    "csv_text",
    "fitted",
    "folder_words",
    "join_world",
    "lettering",
    "memory_for_images",
    "mute_remarks",
    "peak_memory",
    "prefetch",
    "render_batch_size",
    "require_named",
    "reuse_freed_memory",
    "sentence",
    "student_precision",
    "to_device",
    "write_figure",
    "write_result",
    "wrong_layers",
]
