"""The language of subscriptions' filters (https://cloud.google.com/pubsub/docs/subscription-message-filter).

Google's emulator accepts any text, and Pub/Sub rejects a wrong one only when a subscription is created.
"""

import re

__all__ = ["fault_of"]

MAX_BYTES = 256

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\\n]|\\.)*")
        | (?P<operator>!=|[:=.,()])
        | (?P<word>[A-Za-z0-9_][A-Za-z0-9_-]*)
        | (?P<minus>-)
        | (?P<end>\Z)
        | (?P<wrong>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_RESERVED = ("AND", "OR", "NOT")


def fault_of(text: str) -> str | None:
    """Return what is wrong with a filter, or None."""
    if len(text.encode()) > MAX_BYTES:
        return f"has {len(text.encode())} bytes; the limit is {MAX_BYTES}"
    tokens = _Tokens(text)
    try:
        _expression(tokens)
        tokens.expect("end", "AND, OR or the end")
    except _Fault as fault:
        return str(fault)
    return None


class _Fault(Exception):
    pass


class _Tokens:
    """The tokens of a text, one of which is the current one."""

    def __init__(self, text: str) -> None:
        self._rest = _TOKEN.finditer(text)
        self.take()

    def take(self) -> None:
        found = next(self._rest)
        self.kind = str(found.lastgroup)
        self.text, self._at = found[self.kind], found.start(self.kind)

    def took(self, *texts: str) -> bool:
        """Take the current token if it is one of these."""
        if self.kind in ("string", "end") or self.text not in texts:
            return False
        self.take()
        return True

    def expect(self, kind: str, what: str) -> str:
        """Take a token of this kind, or the text that it must have, and return it."""
        if kind not in (self.kind, self.text) or (kind == "word" and self.text in _RESERVED):
            found = "the end" if self.kind == "end" else repr(self.text)
            raise _Fault(f"{what} is expected at character {self._at + 1}, not {found}")
        text = self.text
        if self.kind != "end":
            self.take()
        return text


def _expression(tokens: _Tokens) -> None:
    """Read terms between which there are only ANDs or only ORs."""
    _term(tokens)
    joined_by = ""
    while tokens.kind == "word" and tokens.text in ("AND", "OR"):
        if joined_by and tokens.text != joined_by:
            raise _Fault("AND and OR are mixed: add parentheses")
        joined_by = tokens.text
        tokens.take()
        _term(tokens)


def _term(tokens: _Tokens) -> None:
    while tokens.took("NOT", "-"):
        pass
    if tokens.took("("):
        _expression(tokens)
        tokens.expect(")", "a closing parenthesis")
    elif tokens.took("hasPrefix"):
        tokens.expect("(", "an opening parenthesis")
        tokens.expect("attributes", "attributes")
        _key(tokens, ".")
        tokens.expect(",", "a comma")
        tokens.expect("string", "a text in double quotes")
        tokens.expect(")", "a closing parenthesis")
    else:
        tokens.expect("attributes", "attributes or hasPrefix")
        if tokens.kind == "operator" and tokens.text == ":":
            _key(tokens, ":")
        else:
            _key(tokens, ".")
            if not tokens.took("!="):
                tokens.expect("=", "= or !=")
            tokens.expect("string", "a text in double quotes")


def _key(tokens: _Tokens, before: str) -> None:
    tokens.expect(before, f"{before} and an attribute's name")
    if tokens.kind == "string":
        tokens.take()
    else:
        tokens.expect("word", "an attribute's name")
