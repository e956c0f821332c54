"""Where each key of a TOML document stands: `key_lines(text)[("models", 1, "price")]` is a line number, counted from 1.

tomllib says what a document means and forgets where. This scanner finds the places and forgets the meaning. It is for
text that tomllib has accepted; it checks nothing, so on other text its answers are worth nothing.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' '''
    r"""| \#[^\n]* | [ \t\r]+ | [\[\]{}=,.\n] | [^\s\[\]{}=,.\#"']+""",
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """The line of every key, table header and list element of a valid TOML document, by its path."""
    return _Scanner(text).scan()


class _Scanner:
    """Walks the tokens once. `_next` is the index of the first token not read yet."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        self._next = 0
        self._lines: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}
        line = 1
        for match in _TOKEN.finditer(text):
            token = match.group()
            if token[0] not in "# \t\r":
                self._tokens.append((token, line))
            line += token.count("\n")
        self._tokens.append(("", line))

    def __repr__(self) -> str:
        return f"_Scanner(token {self._next} of {len(self._tokens)})"

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._peek():
            if self._peek() == "\n":
                self._take()
            elif self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`. A list of tables on the way means its last element, as in TOML."""
        line = self._tokens[self._next][1]
        self._take()
        is_element = self._peek() == "["
        if is_element:
            self._take()
        parts = self._key()
        path: Path = ()
        for part in parts[:-1]:
            path = self._last_element((*path, part))
            self._lines.setdefault(path, line)
        path = (*path, parts[-1])
        self._lines.setdefault(path, line)
        if is_element:
            self._elements[path] = self._elements.get(path, -1) + 1
        path = self._last_element(path)
        self._lines[path] = line
        while self._peek() == "]":
            self._take()
        return path

    def _last_element(self, path: Path) -> Path:
        return (*path, self._elements[path]) if path in self._elements else path

    def _pair(self, table: Path) -> None:
        line = self._tokens[self._next][1]
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._take()  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._peek() == "[":
            self._list(path)
        elif self._peek() == "{":
            self._inline_table(path)
        else:
            while self._peek() not in (",", "]", "}", "\n", ""):
                self._take()

    def _list(self, path: Path) -> None:
        self._take()
        index = 0
        while self._past_separators() != "]":
            self._lines[(*path, index)] = self._tokens[self._next][1]
            self._value((*path, index))
            index += 1
        self._take()

    def _inline_table(self, path: Path) -> None:
        self._take()
        while self._past_separators() != "}":
            self._pair(path)
        self._take()

    def _key(self) -> Path:
        parts = [_bare(self._take())]
        while self._peek() == ".":
            self._take()
            parts.append(_bare(self._take()))
        return tuple(parts)

    def _past_separators(self) -> str:
        while self._peek() in (",", "\n"):
            self._take()
        return self._peek()

    def _peek(self) -> str:
        return self._tokens[self._next][0]

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token


def _bare(key: str) -> str:
    return str(tomllib.loads(f"key = {key}")["key"]) if key[0] in "\"'" else key
