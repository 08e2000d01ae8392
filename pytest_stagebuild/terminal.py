"""What a run says in the terminal: the header, the summary, and how to resume, as pure functions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

from pytest_stagebuild.options import RebuildFrom, Settings
from pytest_stagebuild.pipeline import PlannedStage
from pytest_stagebuild.stage import STAGES, Outcome, RunReport, StageResult
from pytest_stagebuild.values import dataclass

Markup = Literal["plain", "good", "bad", "warning"]

_COMMAND_WIDTH: Final = 44
_MANY_BYTES: Final = 5 * 2**30
"""Checkpoints that take more than this are mentioned."""

_WORDS: Final[dict[Outcome, tuple[str, Markup]]] = {
    "cached": ("CACHED", "good"),
    "forced": ("FORCED", "warning"),
    "ran": ("ran", "good"),
    "failed": ("FAILED", "bad"),
    "error": ("ERROR", "bad"),
    "interrupted": ("STOPPED", "bad"),
    "skipped": ("skipped", "warning"),
}


@dataclass(frozen=True)
class Line:
    """A line of the summary and how it is to be marked up."""

    text: str
    markup: Markup = "plain"


def outcome_word(outcome: Outcome) -> str:
    """``CACHED``, ``ran``, and so on."""
    return _WORDS[outcome][0]


def header(
    settings: Settings, engine: str, why_engine: str, source: str, image: str, more: Iterable[str] = ()
) -> list[str]:
    """The lines of pytest's header: the engine and why, the source, the commands in force."""
    detected = ", detected" if settings.image_detected and image == settings.image else ""
    lines = [
        f"stagebuild: engine {engine} ({why_engine})",
        f"stagebuild: source {shown_path(settings.source)} ({source}), image {image}{detected}",
    ]
    for name in STAGES:
        stage = settings.stages[name]
        lines.append(f"stagebuild: {name:<7} {stage.command}{'  (detected)' if stage.detected else ''}")
    lines.extend(f"stagebuild: {line}" for line in (*settings.detected_notes, *more))
    return lines


def summary(
    report: RunReport, resume: Sequence[str], *, show_output: bool = False, show_hint: bool = False
) -> list[Line]:
    """The section at the end of a run. ``resume`` is the command as it was typed, without what chooses checkpoints.

    ``show_output`` adds the end of a failed stage's output, ``show_hint`` what to do about it, where nothing else has
    shown them.
    """
    commands = [_cut(one.command) for one in report.results]
    width = max([len(command) for command in commands] + [len(report.base.reference) if report.base else 0])
    lines: list[Line] = []
    if report.base:
        lines.append(
            Line(f"{'base':<8} {report.base.reference:<{width}}  {report.base.title or _short_id(report.base.id)}")
        )
    lines.extend(_row(result, command, width) for result, command in zip(report.results, commands, strict=True))
    notes = [*report.notes, *(f"{note}" for result in report.results for note in result.notes)]
    if report.checkpoint_bytes > _MANY_BYTES:
        notes.append(
            f"{report.checkpoint_count} checkpoints take {report.checkpoint_bytes / 2**30:.1f} GiB: "
            "keep fewer with --stagebuild-prune=KEEP"
        )
    if notes:
        lines.append(Line(""))
        lines.extend(Line(f"note             {note}", "warning") for note in notes)
    lines.extend(_after_failure(report, resume, show_output=show_output, show_hint=show_hint))
    return lines


def _row(result: StageResult, command: str, width: int) -> Line:
    word, markup = _WORDS[result.outcome]
    row = f"{result.stage:<8} {command:<{width}}  {word:<7}"
    if result.outcome == "skipped":
        return Line(f"{row}         {result.reason}", markup)
    row += f" {result.duration:5.1f}s"
    if result.failure:
        row += f"  {result.failure.cause}"
        row += f", {result.tests}" if result.tests else ""
    elif result.tests:
        row += f"  {result.tests}"
    elif result.checkpoint:
        row += f"  {result.checkpoint.short}  {result.checkpoint.name}"
    if result.reason:
        row += f"  ({result.reason})"
    return Line(row.rstrip(), markup)


def _after_failure(report: RunReport, resume: Sequence[str], *, show_output: bool, show_hint: bool) -> list[Line]:
    failed = next((one for one in report.results if one.failure), None)
    if failed is None or failed.failure is None:
        return []
    log = f", log: {shown_path(failed.failure.log)}" if failed.failure.log else ""
    ended = "stopped" if failed.outcome == "interrupted" else "failed"
    points = ", ".join(str(point) for point in report.rollback_points)
    target = report.rollback_points[0].name if report.rollback_points else "base"
    output = [Line(""), *map(Line, failed.failure.tail.splitlines())] if show_output and failed.failure.tail else []
    hint = [Line(""), *map(Line, failed.failure.hint.splitlines())] if show_hint and failed.failure.hint else []
    return [
        *output,
        *hint,
        Line(""),
        Line(f"{ended + ' stage':<17}{failed.stage} ({failed.failure.cause}){log}", "bad"),
        Line(f"rollback points  {points or 'none but the base image'}"),
        Line(f"resume           {shlex.join([*resume, f'--stagebuild-from={target}'])}"),
    ]


def plan(planned: Sequence[PlannedStage], base: str) -> list[Line]:
    """What ``--stagebuild-plan`` says: one line for each stage."""
    lines = [Line(f"base:    {base}")]
    for one in planned:
        if one.reuse:
            forced = f", {one.reason}" if one.reason else ""
            lines.append(Line(f"{one.stage.name + ':':<8} would be reused, {one.reuse}{forced}", "good"))
        else:
            lines.append(Line(f"{one.stage.name + ':':<8} would run, {one.reason}"))
    return lines


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line to repeat: every argument as it was given, but for those that choose checkpoints."""
    kept = ["pytest"]
    before = ""
    for argument in arguments:
        value_of, before = before, argument
        chosen = value_of == "--stagebuild-rebuild" and argument in get_args(RebuildFrom)
        if (
            not chosen
            and "--stagebuild-from" not in (value_of, argument)
            and not argument.startswith(("--stagebuild-from=", "--stagebuild-rebuild", "--stagebuild-plan"))
        ):
            kept.append(argument)
    return kept


def shown_path(path: Path | None) -> str:
    """A path as the user would type it here: relative where it lies below the current folder."""
    if path is None:
        return ""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _cut(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= _COMMAND_WIDTH else line[: _COMMAND_WIDTH - 1] + "…"


def _short_id(image: str) -> str:
    algorithm, _, value = image.rpartition(":")
    return f"{algorithm}:{value[:12]}" if algorithm else image[:12]
