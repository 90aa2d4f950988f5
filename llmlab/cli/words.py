"""What the command line is given as text: its arguments, and the file that holds a prompt."""

from __future__ import annotations

import argparse
import codecs
import os
from pathlib import Path

from llmlab.errors import Refused

PATHS = frozenset({"json", "trace", "prompt_file", "folder", "out", "average"})
"""Arguments that name files, whose names may be any bytes."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LARGEST = 4_000_000
"""Bytes of a prompt file that are read at most; a prompt may have a tenth as many letters."""


def as_text(what: str, value: str) -> str:
    """An argument as text. Python hands on bytes that its locale does not know as surrogates: here they are read as
    UTF-8. Raises Refused where they are not."""
    if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value):
        return value
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError as e:
        raise Refused(what, "is not UTF-8 text", "Give it in UTF-8") from e


def read_arguments(a: argparse.Namespace) -> None:
    """Turn a command's arguments into text, in place, but for the names of files. Raises Refused."""
    for name, value in vars(a).items():
        if name in PATHS:
            continue
        what = f"The argument of --{name.replace('_', '-')}"
        if isinstance(value, str):
            setattr(a, name, as_text(what, value))
        elif isinstance(value, list):
            setattr(a, name, [as_text(what, v) if isinstance(v, str) else v for v in value])


def read_prompt(file: str, what: str = "prompt") -> str:
    """The prompt that a file holds: UTF-8, or UTF-16 or UTF-32 with their mark; its line ends become \\n.

    Raises Refused for a file that cannot be read, is too large, holds no text, or nothing.
    """
    who = f"The {what} file {file}"
    try:
        with Path(file).open("rb") as f:
            data = f.read(LARGEST + 1)
    except (OSError, ValueError) as e:
        raise Refused(who, f"cannot be read ({getattr(e, 'strerror', None) or e})", "Check it") from e
    if len(data) > LARGEST:
        raise Refused(who, f"is larger than {LARGEST // 1_000_000} MB", "Shorten it")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeError as e:
        raise Refused(who, "cannot be read (it is not UTF-8 text)", "Save it as UTF-8") from e
    if "\0" in text:
        raise Refused(who, "holds NUL characters, so it is no text", "Save it as UTF-8")
    if not text.strip():
        raise Refused(who, "is empty, so there is nothing to continue", "Write something into it")
    return text.replace("\r\n", "\n").replace("\r", "\n")
