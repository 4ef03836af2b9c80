"""What a user would write instead, from the frameworks' own documentation: each does pulsecart's work on an event."""
