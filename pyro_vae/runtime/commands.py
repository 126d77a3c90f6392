r"""Commands of the console that refuse what would be ignored."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from pyro_vae.errors import InputError, near_match

# What a command is called elsewhere.
_ELSEWHERE = {
    **dict.fromkeys(("train", "fit", "run", "benchmark"), "compare"),
    **dict.fromkeys(("generate", "draw"), "sample"),
    **dict.fromkeys(("evaluate", "log-prob", "predict"), "score"),
    **dict.fromkeys(("embed", "transform"), "encode"),
}


class Commands(TyperGroup):
    """The commands; for a name that none of them has, it says the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that the arguments name; see `TyperGroup`."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            other = _ELSEWHERE.get(args[0])
            hint = near_match(args[0], names) if other is None else f"`{other}` does that."
            raise InputError(f"pyro-vae has no command `{args[0]}`; {hint}")
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command that refuses an option that is given twice, where one of the two would be ignored."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments; see `TyperCommand`."""
        before = args[: args.index("--")] if "--" in args else args
        for parameter in self.params:
            if getattr(parameter, "multiple", False):
                continue
            given = [arg for arg in before for name in parameter.opts if arg == name or arg.startswith(f"{name}=")]
            if len(given) > 1 and all(name.startswith("-") for name in parameter.opts):
                name = parameter.opts[0]
                raise InputError(f"{name}: given {len(given)} times; give it once.")
        return super().parse_args(ctx, args)
