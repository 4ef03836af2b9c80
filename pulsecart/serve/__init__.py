"""Running pulsecart as a service: its settings, and the HTTP server."""
