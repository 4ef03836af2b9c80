"""The published factory of the ASGI application: `uvicorn --factory pulsecart.app:create_app`."""

from pulsecart.serve.wiring import create_app

__all__ = ["create_app"]
