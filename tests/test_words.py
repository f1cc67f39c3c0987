"""The field's words: code, docs and configuration use the vocabulary of CONTRIBUTING.md, and not words of their own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("fer", "benchmarks", "pipelines", "infra", "docs", "README.md", "params.yaml", "dvc.yaml", "Makefile")
ENDINGS = {".py", ".md", ".yaml", ".yml", ".html", ".css", ".toml", ""}

WORDS = {
    r"pictures?": "image; photo for a whole photograph",
    r"trainings": "runs",
    r"go(es|ing)? on|gone on|went on": "resume, continue",
    r"knobs?": "parameter, option, configuration",
    r"strangers?'?|foreign(ers?)?": "untrusted, external",
    r"wanted": "required, expected; targets",
    r"honest(ly)?": "validation-selected; true",
    r"yardsticks?": "reference implementation, baseline",
    r"silence_told|told of|is told|are told|was told": "reported, logged, given",
    r"dealt|deals?": "assigned, divided, split",
    r"drawn anew|made anew|anew": "re-initialized, again",
    r"(is|are) no keys? of": "unknown key",
    r"to come": "planned",
    r"climb(s|ed|ing)?|descend(s|ed|ing)?": "perturb and restore, first_step and second_step",
    r"who stands where|where it stands|what stood": "assignment; results; existing outputs",
    r"looks at services|a look at": "health checks; checks",
    r"what learns|eat": "the model and its optimizer; input specification",
    r"colour(s|ed|ing)?": "color",
    r"grey(s|ed|scale)?": "gray",
    r"(normal|initial|recogn|optim|minim)is(e|es|ed|er|ers|ing|able|ation)": "American spelling",
}
"""Pattern -> what to write instead. Matched without regard to case, between characters that are not letters."""

ALLOWED = {
    ("*", r"(shared|near)_pictures|\.colour|colour[=:]"): "keys of manifest.json",
    ("fer/weights/store.py", r"colour"): "a key of the description in weights files",
    ("*", r"boxes_without_picture|pictures_without_label|pictures of people|\"pictures\""): "keys of source.json",
    ("*", r"pictures-"): "files of data/raw",
    ("*", r"outside_picture|picture_size|\"colour\""): "reasons in rejects.parquet",
    ("*", r"\"grey\""): "a key of statistics.json",
    ("*", r"validation picture"): "a word that is hashed",
    ("*", r"grey_probability|min_pictures"): "keys of params.yaml",
    ("*", r"--pictures|--grey"): "options of commands",
    ("fer/report/study_table.py", r"\"honest\""): "a key of results.json of earlier versions",
}
"""(Files, words in them) -> why they stay: names in file formats and in the configuration of users."""


def files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        yield from sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def matches(text: str, path: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word found and word to use."""
    spared = [pattern for (place, pattern) in ALLOWED if Path(path).match(place)]
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in spared:
            line = re.sub(pattern, "", line)
        for pattern, better in WORDS.items():
            for found in re.finditer(rf"(?<![A-Za-z])({pattern})(?![A-Za-z])", line, re.IGNORECASE):
                yield number, found[0], better


def test_words_are_those_of_the_field() -> None:
    hits = [
        f"{name}:{number}: {found!r} -> {better}"
        for path in files()
        if path.suffix in ENDINGS and "__pycache__" not in path.parts
        for name in [path.relative_to(ROOT).as_posix()]
        for number, found, better in matches(path.read_text("utf-8"), name)
    ]
    if hits:
        pytest.fail(f"{len(hits)} words:\n" + "\n".join(hits), pytrace=False)


def test_words_are_found_in_identifiers_and_prose_and_spared_where_allowed() -> None:
    assert [found for _, found, _ in matches("Picture_size\nthe training goes on\nwanted_keys", "fer/x.py")] == [
        "Picture", "goes on", "wanted",
    ]  # fmt: skip
    assert not list(matches("depicture, unwanted, heat, shared_pictures: 1", "fer/shards/manifest.py"))
    assert list(matches("colour", "fer/shards/read.py"))


@pytest.mark.parametrize(("place", "pattern"), ALLOWED)
def test_every_exception_is_needed(place: str, pattern: str) -> None:
    assert any(
        re.search(pattern, path.read_text("utf-8"))
        for path in files()
        if path.suffix in ENDINGS and path.relative_to(ROOT).match(place)
    )
