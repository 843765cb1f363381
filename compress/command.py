"""What `wmlc train` is asked to do. What cannot be is refused before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlc.compress.recipes import check_place, choose_config
from wmlc.errors import InputError
from wmlc.ranks import joined
from wmlc.settings import TrainConfig

if TYPE_CHECKING:
    from wmlc.compress.latency import Clocks


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `wmlc train` shall do with its settings."""

    out: Path | None = None  # the run's directory
    resume: bool = False
    dry_run: bool = False
    force: bool = False  # replace the run that is there
    as_json: bool = False


def train(
    recipe: str | None, asked: Mapping[str, Any], wanted: Wanted, command: str = "", clocks: Clocks | None = None
) -> None:
    """Start a run of the settings `asked` over those of a `recipe`, go on with one, or only show its family.

    Args: the `command` that the record shall name; what measures latencies, where one is asked for.
    """
    with joined() as ranks:
        said = {"the recipe": recipe} | vars(wanted) | dict(asked)
        ranks.agree(said, "start all processes with the same command")
        config = _chosen(recipe, asked, wanted)
        from wmlc.compress.session import train_as_asked

        train_as_asked(config, asked, wanted, command, clocks, ranks)


def _chosen(recipe: str | None, asked: Mapping[str, Any], wanted: Wanted) -> TrainConfig | None:
    """The settings of a new run; None for one that goes on, with its own. Raises `InputError` for what cannot be."""
    if wanted.resume:
        if asked.keys() - {"arch"} or recipe or wanted.force or wanted.dry_run or wanted.as_json:
            raise InputError(
                "--resume takes all settings from the run; pass only --out with it, and --arch for code of yours"
            )
        return None
    if wanted.as_json and not wanted.dry_run:
        raise InputError("--json goes with --dry-run; a finished run's record is its family.json")
    config = choose_config(recipe, asked)
    check_place(asked, config)
    return config
