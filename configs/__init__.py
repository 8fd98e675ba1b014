"""Bundled configs: `zoo fit --config NAME` takes the path below this folder, without `.yaml`."""

if __name__ != "zoo.configs":
    raise ImportError("this folder installs as zoo.configs: import zoo.configs, after `pip install -e .`")
