"""A process that runs ``zoo check`` and ``zoo fit`` on hostile configs, watched from outside and from inside.

From outside: `Worker` kills it when a config takes too long, and starts another. From inside: an audit hook
notes connections (and refuses them), programs that are started, and files that are written outside the
config's own folder; a canary notes what a config made Python import.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from fuzz import CANARY, Case

SECONDS = 20.0  # for the check and the fit of a config
MEMORY = 12 << 30  # bytes of address space: what asks for more is refused by the machine
SHORT = """trainer:
  max_steps: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""


class Worker:
    """Runs configs one after the other, each in a folder of its own below ``root``.

    Args:
        root: Where the folders are made.
        python: Folders that the process finds modules in first.
        seconds: After these, a config counts as a hang and the process is killed.
    """

    def __init__(self, root: Path, python: str = "", seconds: float = SECONDS) -> None:
        self.root, self.seconds = root, seconds
        (root / "path").mkdir(parents=True, exist_ok=True)
        (root / "path" / f"{CANARY}.py").write_text(
            "import pathlib\npathlib.Path('mark').touch()\nNet = int\n"
        )
        (root / "tmp").mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [python, str(root / "path"), str(Path(__file__).parent)]))
        self.environment = os.environ | {
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(root / "tmp"),
            "HOME": str(root / "tmp"),
        }
        for name in ("HF_HUB_OFFLINE", "ZOO_TRUST", "ZOO_DEBUG", "ZOO_ALLOW_DOWNLOAD"):
            self.environment.pop(name, None)
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, case: Case, fit: bool = True) -> dict[str, Any]:
        """What came of a config: ``verdict`` is "ok", "refused", or what went wrong."""
        folder = self.root / f"case-{case.number}"
        folder.mkdir()
        (folder / "case.yaml").write_bytes(case.content)
        (folder / "short.yaml").write_text(SHORT)
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(self.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
                start_new_session=True,
            )
            self._answer(120)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "fit": fit}).encode() + b"\n")
        self.process.stdin.flush()
        return {"number": case.number, "kind": case.kind} | self._answer(self.seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        self.close()
        return {"verdict": "died" if ready else "hang", "said": ""}

    def close(self) -> None:
        """Ends the process and all that it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def watch(root: Path) -> list[str]:
    """Installs the audit hook.

    Returns:
        What it noted, in order; the caller empties it.
    """
    noted: list[str] = []
    inside = (str(root), "/dev/null", "/proc/self/", "/dev/shm/")

    def is_outside(path: Any) -> bool:
        if not isinstance(path, str | bytes):
            return False  # an open descriptor
        return not os.path.abspath(os.fsdecode(path)).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
            if event == "socket.connect" and isinstance(arguments[1], str | bytes):
                return  # between processes of one machine
            noted.append(f"fetched: {event} {arguments[1:]}")
            raise ConnectionRefusedError(f"{event} is refused by the test")
        started = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
        if started and arguments[0] != sys.executable:  # which a library asks for its own settings
            noted.append(f"started: {event} {arguments[:2]}")
        writes = event == "open" and isinstance(arguments[2], int)
        if writes and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and is_outside(arguments[0]):
            noted.append(f"wrote: {arguments[0]!r}")
        last = event in ("os.rename", "os.symlink", "os.link")
        changes = last or event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        if changes and is_outside(arguments[int(last)]):
            noted.append(f"wrote: {event} {arguments[:2]}")

    sys.addaudithook(hook)
    return noted


def roots() -> set[str]:
    """The packages that are imported."""
    return {name.partition(".")[0] for name in sys.modules}


def one(folder: Path, fit: bool, noted: list[str], known: set[str]) -> dict[str, Any]:
    """Runs one config in its folder."""
    from zoo.cli import main

    os.chdir(folder)
    lines = [["check", "case.yaml"]]
    lines += [["fit", "--config", "case.yaml", "--config", "short.yaml"]] if fit else []
    noted.clear()
    said, verdicts = [], []
    for words in lines:
        log = folder / f"{words[0]}.txt"
        saved = os.dup(2), os.dup(1)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
        os.dup2(handle, 1)
        status: Any = None
        sys.argv = ["zoo", *words]
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
            status = "raised"
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(saved, (2, 1), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(handle)
        text = log.read_text(errors="replace")
        said.append(text[-3000:])
        traced = "Traceback (most recent call last)" in text
        verdicts.append("traceback" if traced or status not in (0, 2) else {0: "ok", 2: "refused"}[status])
    os.chdir("/")
    new = sorted(roots() - known)
    problems = [*noted, *(f"imported: {name}" for name in new if name == CANARY)]
    problems += ["ran: the canary"] if (folder / "mark").exists() else []
    verdict = next((v for v in ("traceback", "refused") if v in verdicts), "ok")
    return {"verdict": verdict, "each": verdicts, "said": "\n".join(said), "problems": problems, "new": new}


def serve(root: Path) -> None:
    """Warms up, then runs the configs that come on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    torch.set_num_threads(1)
    from zoo._cli.trainer_cli import import_components

    import_components()
    noted = watch(root)
    known = roots()
    answers.write('{"verdict": "ready"}\n')
    answers.flush()
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(one(Path(task["folder"]), task["fit"], noted, known)) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
