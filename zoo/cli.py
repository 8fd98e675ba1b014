"""The command line."""


def main() -> int:
    """Runs the ``zoo`` command."""
    return 0
