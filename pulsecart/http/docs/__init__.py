"""Documents for programs: the schemas of events, and descriptions of the routes (OpenAPI) and topics (AsyncAPI)."""

from pulsecart.http.docs.asyncapi import asyncapi
from pulsecart.http.docs.openapi import openapi
from pulsecart.http.docs.routes import routes

__all__ = ["asyncapi", "openapi", "routes"]
