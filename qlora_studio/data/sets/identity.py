"""What a source of data is known by: the hash of its content, its size, and a name made for it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.files import list_files
from qlora_studio.data.readers.rows import shown_name


def hash_path(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's names and files. Raises a StudioError where it cannot be read."""
    try:
        if path.is_dir():
            digest = hashlib.sha256()
            for file in list_files(path)[0]:
                name = os.fsencode(file.relative_to(path).as_posix())
                digest.update(name + f"\0{hash_path(file)}\n".encode())
            return digest.hexdigest()
        if path.exists() and not path.is_file():
            raise StudioError(
                "This is neither a file nor a folder.", "Give a file of data.", where=shown_name(str(path))
            )
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise StudioError("There is no such file.", "Check the path.", where=shown_name(str(path))) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StudioError(
            f"This file cannot be read: {reason}.", "Check its rights.", where=shown_name(str(path))
        ) from None
    except ValueError:
        raise StudioError("This is not the name of a file.", "Check the path.", where=repr(str(path))) from None


def slug(text: str) -> str:
    """A name that every file system takes."""
    made = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60].strip("-._")
    if not made:  # nothing of it is Latin: what tells it from others of its kind is its hash
        made = f"data-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return f"set-{made}" if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", made) else made


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in list_files(path)[0]) if path.is_dir() else path.stat().st_size
