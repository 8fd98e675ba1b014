"""The parts of the command line (`zoo.cli` puts them together)."""
