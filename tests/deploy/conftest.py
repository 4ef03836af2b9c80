from importlib.util import find_spec

# What validates manifests has requirements of its own; nox -s deploy installs them.
collect_ignore = [] if find_spec("kubernetes_validate") else ["test_manifests.py"]
