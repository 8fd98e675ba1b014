"""Bundled configs: `zoo fit --config NAME` takes the path below this folder, without `.yaml`."""

if __name__ != "zoo.configs":
    raise ImportError("import zoo.configs, not configs: this folder installs inside zoo (pip install -e .)")
