"""The bundled configs, in the three kinds that their names tell apart."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("zoo.configs")))
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))

# callbacks/<name> and flow/strict_official/<stage> are put after another config; flow/<data set>/<stage> and
# lm/<source>/<size> are of full scale; all others, such as lm/<name>, run on a CPU in minutes.
OVERLAYS = [name for name in NAMES if name.startswith("callbacks/") or "/strict_official/" in name]
RECIPES = [name for name in NAMES if name.count("/") == 2 and name not in OVERLAYS]
SMALL = [name for name in NAMES if name not in OVERLAYS + RECIPES]
