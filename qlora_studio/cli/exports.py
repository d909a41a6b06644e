"""`qlora-studio exports`: what runs were exported to, opened and deleted."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli.show import print_table, when
from qlora_studio.core.words import gib
from qlora_studio.studio import Studio

app = typer.Typer(help="List what was exported, open it, delete it.", no_args_is_help=True)


@app.command("list")
def list_exports() -> None:
    """All exports that still lie where they were written, newest first."""
    exports = Studio().exports.written()
    if not exports:
        print("There are no exports. `qlora-studio export RUN --to FOLDER` makes one.")
        return
    table = Table("Run", "What", "Size", "Written", "Folder", box=None, pad_edge=False)
    for one in exports:
        table.add_row(escape(one.run), one.kind, gib(one.bytes), when(one.written), escape(one.path))
    table.columns[-1].overflow = "fold"  # a folder is there to be copied
    print_table(table)


@app.command("open")
def open_folder(folder: Annotated[str, typer.Argument(help="Folder of an export.")]) -> None:
    """Show an export in the file manager."""
    Studio().exports.open_folder(folder)


@app.command("delete")
def delete(
    folders: Annotated[list[str], typer.Argument(help="Folders of exports.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete exports. The runs stay, and so does what was measured of them."""
    studio = Studio()
    for folder in folders:
        export = studio.exports.find_written(folder)
        for sentence in studio.references.to_export(export.path):
            print(sentence)
        if not yes and not typer.confirm(f"Delete {export.path} ({export.kind} of {export.run}, {gib(export.bytes)})?"):
            print(f"{export.path} stays.")
            continue
        studio.exports.delete(export.path)
        print(f"{export.path} is deleted; {gib(export.bytes)} are free again.")
