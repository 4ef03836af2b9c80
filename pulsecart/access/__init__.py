"""Access: the sources that may send events, and how a source is recognised by a key or a token."""
