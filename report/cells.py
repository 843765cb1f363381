"""A bench's cells, which are the conditions that rows were measured under, in words; and its rows' notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wmlc.records import Profile, Row

TITLES = {"ort": "ONNX Runtime", "torch": "PyTorch", "trt": "TensorRT", "openvino": "OpenVINO"}  # of engines


class Cell(NamedTuple):
    """Conditions of a bench; on a GPU the threads do not matter and are None."""

    engine: str
    threads: int | None
    batch: int

    @property
    def words(self) -> str:
        """ONNX Runtime, 1 thread, batch 8."""
        count = "" if self.threads is None else f"{self.threads} thread{'s' * (self.threads != 1)}, "
        return f"{TITLES.get(self.engine, self.engine)}, {count}batch {self.batch}"


def cell_of(row: Row) -> Cell:
    """Under which conditions a row was measured."""
    return Cell(row.engine, None if row.device == "cuda" else row.threads, row.batch)


def profile_cell(profile: Profile) -> Cell:
    """Under which conditions a profile was taken."""
    return Cell(profile.engine, profile.threads, profile.batch)


def all_cells(rows: Iterable[Row]) -> list[Cell]:
    """Every cell once, in the order of the rows."""
    return list(dict.fromkeys(cell_of(row) for row in rows))


def grouped_notes(rows: Sequence[Row]) -> list[str]:
    """Each note once, after the networks that it is about, and the cells if not about all of them."""
    cells = dict.fromkeys(_parts(row) for row in rows)
    varying = [i for i in range(3) if len({cell[i] for cell in cells}) > 1]
    about: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        where = ", ".join(_parts(row)[i] for i in varying)
        for line in row.notes:
            about.setdefault(line, {}).setdefault(row.name, []).append(where)
    everyone = {row.name for row in rows}
    lines = []
    for line, found in about.items():
        names = [name if len(at) == len(cells) else f"{name} ({' and '.join(at)})" for name, at in found.items()]
        lines.append(f"{'all' if set(names) == everyone else ', '.join(names)}: {line}")
    return lines


def _parts(row: Row) -> tuple[str, str, str]:
    return row.engine, f"threads {row.threads}", f"batch {row.batch}"
