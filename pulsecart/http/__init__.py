"""HTTP in front of the core: routes, bodies, problems and health."""
