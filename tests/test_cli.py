"""The command line: a mistyped name is rejected with the nearest one that exists; no advice names what does not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders.shards import make_shards

from benchmarks import __main__ as benchmarks
from fer import cli
from fer.commands import doctor


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped params.yaml, in a folder of its own."""
    shutil.copy(Path(cli.__file__).parents[1] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> None:
    """A `fer` command; a benchmark without a process of its own."""
    command, *words = line.split()
    if command == "bench":
        benchmarks.main(words)
    else:
        cli._main([command, *words])


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("predit", "predict"),
        ("wieghts list", "weights"),
        ("weights pul", "pull"),
        ("weights import x --dataset ferpuls --out y", "ferplus"),
        ("predict w p --detector yunnet", "yunet"),
        ("predict w p --tta flop", "flip"),
        ("submit trian", "train"),
        ("bench model", "models"),
        ("synth shet", "sheet"),
        ("study noise --tta flop", "flip"),
    ],
)
def test_mistyped_choice_is_rejected_with_the_nearest(
    line: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(line)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f" - did you mean {nearest!r}?\n")


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("shards synthetik", "synthetic"),
        ("study nois", "noise"),
        ("study poster_v2_components --rows POSTERV2", "POSTER V2"),
        ("tune --dataset syntetic --model ddamfn_nano", "synthetic"),
        ("tune --dataset synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("explore synthetic ddamfn_nan", "ddamfn_nano"),
        ("audit synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("submit train --dataset synthetic --model ddamfn_nan", "ddamfn_nano"),
        ("bench models --models ddamfm", "ddamfn"),
        ("bench train --model ddamfn_nan", "ddamfn_nano"),
        ("bench crop --detectors yunte", "yunet"),
        ("weights pull poster_v2_rafbd", "poster_v2_rafdb"),
        ("weights list ir5", "ir50"),
    ],
)
@pytest.mark.usefixtures("project")
def test_mistyped_name_is_rejected_with_the_nearest(line: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        run(line)


def test_shards_advises_only_stages_that_exist(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no dataset 'synthetik'") as caught:
        cli._main(["shards", "synthetik"])
    assert "dvc repro" not in str(caught.value)
    with pytest.raises(ValueError, match=r"data/shards/synthetic: no shards yet; run `dvc repro shard@synthetic`"):
        cli._main(["shards", "synthetic"])
    with pytest.raises(ValueError, match=r"fer2013: no shards yet; add it to run\.datasets in params\.yaml, then"):
        cli._main(["shards", "fer2013"])
    with pytest.raises(ValueError, match=r"no dataset '\.\./shards/tiny'"):
        cli._main(["shards", "../shards/tiny"])
    make_shards(project / "data" / "shards" / "tiny")  # of a dataset that params.yaml no longer names
    cli._main(["shards", "tiny"])
    assert capsys.readouterr().out.startswith("tiny: 128 faces")


# ------------------------------------------------------------------------------------------------ programs, shells


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), **variables},
    )


def test_the_package_is_the_command() -> None:
    done = python("-m", "fer", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "fer")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fer pr", {"predict"}),
        ("fer weights ", {"list", "pull", "verify", "import", "-h", "--help"}),
        ("fer predict --detector-", {"--detector-weights"}),
        ("fer study --he", {"--help"}),
        ("fer bench ", {"-h", "--help"}),
    ],
)
def test_a_shell_completes_commands_and_options_without_anything_heavy(
    line: str, expected: set[str], tmp_path: Path
) -> None:
    written = tmp_path / "completions"
    script = "import sys, os\nend = os._exit\ndef report(code):\n    print(*sys.modules)\n    sys.stdout.flush()\n"
    script += "    end(code)\nos._exit = report\nfrom fer.cli import main\nmain()\n"
    done = python(
        "-c",
        script,
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="|",
        _ARGCOMPLETE_STDOUT_FILENAME=str(written),
    )
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in written.read_text().split("|")} - {""} == expected
    assert not {"torch", "ray", "mlflow", "numpy", "cv2"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("models --json", {"name", "title", "parameters", "input_size", "options"}),
        ("weights list --json", {"name", "model", "files", "here"}),
        ("weights list ir50 --json", {"name", "model", "files", "here"}),
        ("check --json", {"params", "recipes", "runs"}),
        ("shards tiny --json", {"dataset", "parts", "labels", "class_histogram"}),
    ],
)
def test_json_is_one_document_on_standard_output(
    line: str, keys: set[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(project / "data" / "shards" / "tiny")
    run(line)
    found = json.loads(capsys.readouterr().out)
    assert keys <= set(found[0] if isinstance(found, list) else found)


def test_json_of_findings_says_level_state_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    bad = doctor.Finding("fail", "disk", "full", "free some")
    monkeypatch.setattr(doctor, "check", lambda params: [bad])
    assert cli._main(["doctor", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["what"] == "params.yaml"
    assert second == {"level": "fail", "what": "disk", "found": "full", "remedy": "free some"}
