"""The forms in which events arrive: content codings, arrays, lines and CloudEvents."""
