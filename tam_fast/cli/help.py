"""Help texts of commands with many options: options in groups, in plain text."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["Grouped", "Spreading"]


class Grouped(TyperCommand):
    """A command whose help shows options under the headings that they name as ``rich_help_panel``.

    Typer itself does so in rich's boxes only. Groups come in the order of the function's arguments; options without one
    come last, as "Options".
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        last: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                sections["Arguments"].append(record)
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            (last if panel is None else sections.setdefault(panel, [])).append(record)
        for title, records in (*sections.items(), ("Options", last)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Spreading(Grouped):
    """A command whose repeatable options take all values that follow: ``--models A B`` is ``--models A --models B``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the option before each of its values."""
        names = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spread: list[str] = []
        option: str | None = None
        place = 0
        while place < len(args):
            argument = args[place]
            if argument == "--":
                spread += args[place:]
                break
            if argument in names:
                # The first value may be anything, the next ones no option.
                spread += args[place : place + 2]
                option, place = argument, place + 2
                continue
            if argument.startswith("-") and argument != "-":
                named = argument.partition("=")[0]
                spread.append(argument)
                option, place = named if named in names and "=" in argument else None, place + 1
                continue
            spread += [argument] if option is None else [option, argument]
            place += 1
        return super().parse_args(ctx, spread)
