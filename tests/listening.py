"""What the program remarks on while a test runs."""

import logging
from weakref import ref

from pipeline.commands.output import ROOTS


class Remarks(list[str]):
    """Hears every remark from its making on, for as long as the test holds it, but for those with some
    words.
    """

    def __init__(self, but_for: str | None = None) -> None:
        super().__init__()
        self.but_for = but_for
        handler = _Into(self)
        for logger in map(logging.getLogger, ROOTS):
            logger.handlers = [h for h in logger.handlers if not (isinstance(h, _Into) and h.is_dead)]
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)


class _Into(logging.Handler):
    def __init__(self, remarks: Remarks) -> None:
        super().__init__()
        self._remarks = ref(remarks)

    @property
    def is_dead(self) -> bool:
        return self._remarks() is None

    def emit(self, record: logging.LogRecord) -> None:
        remarks = self._remarks()
        if remarks is None:
            return
        if remarks.but_for is None or remarks.but_for not in record.getMessage():
            remarks.append(record.getMessage())
