"""How our processes end: exit codes, locks, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fer import processes


def _start(body: str, *arguments: str) -> subprocess.Popen[str]:
    script = f"import sys, time\nfrom fer import processes\ndef main():\n    {body}\nprocesses.run(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise ValueError('params.yaml: bad')", 1, "error: params.yaml: bad"),
        ("raise OSError(28, 'No space left on device')", 1, "error: No space left on device; make room and run"),
        ("raise OSError(5, 'said otherwise', 'a.db')", 1, "error: a.db: Input/output error; the disk or its network"),
        ("raise OSError(28, 'said otherwise', 'from', None, 'to')", 1, "error: to: No space left on device; make room"),
        ("open('/proc/self/mounts/below')", 1, "error: /proc/self/mounts/below: Not a directory; a part of this"),
        ("raise PermissionError('not for you')", 1, "error: not for you"),
        ("raise OSError('no number')", 1, "Traceback"),
    ],
)
def test_exit_codes(body: str, code: int, text: str) -> None:
    process = _start(body)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert text in out
    assert ("Traceback" in out) == (text == "Traceback")
    assert text == "Traceback" or len(out.splitlines()) <= 1


def test_the_traceback_of_a_full_disk_is_shown_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_DEBUG", "1")
    out, _ = _start("raise OSError(28, 'No space left on device')").communicate(timeout=60)
    assert "Traceback" in out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_and_end_with_their_code(signum: signal.Signals, code: int) -> None:
    process = _start(
        "\n    try:\n        print('up', flush=True); time.sleep(60)\n    finally:\n        print('cleaned')"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "cleaned" in out


def test_a_signal_that_is_swallowed_decides_the_code_of_work_that_ends_before_it_comes_again() -> None:
    body = """
    try:
        print('up', flush=True); time.sleep(60)
    except BaseException:
        pass
    print('done')"""
    process = _start(body)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "done" in out
    assert "stopped by SIGTERM" in out
    assert "Traceback" not in out


def test_a_signal_met_where_nothing_can_be_raised_is_not_told_as_a_defect_and_comes_again() -> None:
    body = """
    import os, signal, weakref
    class Module: pass
    module = Module()
    reference = weakref.ref(module, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del module
    time.sleep(60)"""
    process = _start(body)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in out
    assert "Traceback" not in out


def test_another_error_where_nothing_can_be_raised_is_told() -> None:
    body = """
    import weakref
    class Module: pass
    module = Module()
    reference = weakref.ref(module, lambda _: 1 / 0)
    del module"""
    process = _start(body)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "ZeroDivisionError" in out


def test_a_signal_that_is_swallowed_comes_again_but_never_into_the_clean_up() -> None:
    body = """
    try:
        print('up', flush=True); time.sleep(60)
    except BaseException:
        pass
    try:
        time.sleep(60)
    finally:
        time.sleep(2.5); print('cleaned')"""
    process = _start(body)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out.count("cleaned") == 1
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("when", ["later", "while it is still starting"])
def test_a_stage_ends_with_its_parent(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    mark = tmp_path / "pid"
    tell = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid()))"
    start = "from fer import processes; processes.run(lambda: time.sleep(60))"
    begin = "from fer import processes; processes.prepare()"
    child = f"{begin}\n{tell}; time.sleep(60)" if when == "later" else f"{tell}; time.sleep(2)\n{start}"
    parent_script = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_script])
    pid = _wait_for(mark)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + (5 if when == "later" else 30)
    while Path(f"/proc/{pid}").exists() and not _zombie(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def _wait_for(mark: Path) -> int:
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(mark.read_text())


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_second_holder_of_a_lock_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = f"from pathlib import Path; from fer import processes\nwith processes.lock(Path({str(path)!r})): pass"
    with processes.lock(path):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "held by process" in done.stderr
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_who_waits_for_a_folder_that_is_removed_meanwhile_holds_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits, told = tmp_path / "work" / "one", threading.Event(), []
    monkeypatch.setattr(processes.console.log, "info", lambda *line: (told.append(line), waits.set()))

    def wait() -> None:
        with processes.lock(folder / "lock", wait=True):
            with pytest.raises(processes.HeldError, match="held by process"), processes.lock(folder / "lock"):
                told.append("two hold it")
            told.append([path.name for path in folder.iterdir()])

    thread = threading.Thread(target=wait)
    with processes.lock(folder / "lock"):
        (folder / "files").mkdir()
        (folder / "files" / "state").touch()
        (folder / "link").symlink_to(tmp_path)
        thread.start()
        assert waits.wait(60)
        processes.remove_held(folder)
        assert not (tmp_path / "work").exists()
    thread.join(60)
    assert [line[1:] for line in told[:1]] == [(folder / "lock", str(os.getpid()))]
    assert told[1:] == [["lock"]]
