"""The HTTP interface: dispatcher, endpoints, request bodies and problem details."""
