"""A killed or failed transfer or extraction leaves nothing under a final name; the same command resumes. The faults of
servers and the attacks of archives are in tests/io/test_transfer.py and test_archives.py.
"""

import hashlib
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from flaky_server import BODY, Site, serve

from fer.io.archives import extract
from fer.io.transfer import download

DIGEST = hashlib.sha256(BODY).hexdigest()
_FETCH = "import sys, pathlib; from fer.io.transfer import download; download(sys.argv[1], pathlib.Path(sys.argv[2]))"


def fetching(url: str, target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _FETCH, url, str(target)])


def test_download_killed_at_any_byte_resumes_and_has_no_name_until_it_is_complete(tmp_path: Path) -> None:
    target, part = tmp_path / "data.bin", tmp_path / ".data.bin.part"
    draw = random.Random(1)
    with serve(Site(piece=1 << 15, pause=0.01)) as site:
        for share in (0.0, 0.1, 0.3, 0.35, 0.8):
            threshold = share * len(BODY) + draw.randrange(1 << 15)
            child = fetching(f"{site.url}/a", target)
            while not part.exists() or part.stat().st_size < threshold:
                assert child.poll() is None, "ended before it was killed"
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert not target.exists()
        site.pause = 0.0
        assert fetching(f"{site.url}/a", target).wait() == 0
        assert hashlib.sha256(target.read_bytes()).hexdigest() == DIGEST
        assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]
        assert site.starts == sorted(site.starts), "each resumed where the last was killed"
        assert site.starts[-1] > 0.8 * len(BODY)


def test_download_killed_before_the_rename_needs_no_byte_more(tmp_path: Path) -> None:
    script = f"import os; os.replace = lambda *names: os.kill(os.getpid(), 9)\n{_FETCH}"
    with serve(Site()) as site:
        command = [sys.executable, "-c", script, f"{site.url}/a", str(tmp_path / "data.bin")]
        # The record of the version is written by rename too: let that one through.
        command[2] = script.replace(
            "lambda *names: os", "lambda a, b, real=os.replace: real(a, b) if '.json' in str(b) else os"
        )
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "data.bin").exists()
        download(f"{site.url}/a", tmp_path / "data.bin")
        assert (tmp_path / "data.bin").read_bytes() == BODY
        assert len(site.asked) == 1


def test_extraction_killed_at_any_file_is_repeated_by_the_next_run(tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    names = [f"{number:04}" for number in range(1500)]
    with zipfile.ZipFile(archive, "w") as writer:
        for name in names:
            writer.writestr(name, name * 10)
    script = (
        "import sys; from pathlib import Path; from fer.io.archives import extract; extract(*map(Path, sys.argv[1:]))"
    )
    for share in (0.0, 0.5, 0.9):
        child = subprocess.Popen([sys.executable, "-c", script, str(archive), str(out)])
        while len(list(tmp_path.glob(f".out.tmp-{child.pid}-*/*"))) < share * len(names):
            if child.poll() is not None:
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if out.exists():  # it was done before the signal came
            assert len(list(out.iterdir())) == len(names)
            return
        assert len(list(tmp_path.iterdir())) <= 2, "one killed extraction at most is left"
    extract(archive, out)
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
