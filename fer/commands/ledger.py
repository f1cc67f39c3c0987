"""`fer ledger`: every printed number of the five papers, checked or accounted for."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where else the lines go; whether to print what is wrong in print."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the lines to FILE")
    parser.add_argument("--findings", action="store_true", help="print what the papers' numbers contradict, as a table")


def main(args: argparse.Namespace) -> None:
    """Writes reports/ledger.html and reports/ledger.csv; prints the counts by verdict."""
    from fer import params
    from fer.io.files import FileError, write_atomic
    from fer.ledger import build
    from fer.ledger.page import counted, findings_table, is_ledger, to_csv, to_html

    if args.csv and not args.csv.resolve().parent.is_dir():
        raise FileError(f"fer ledger --csv {args.csv}: no such folder")
    if args.csv and args.csv.exists() and not is_ledger(args.csv):
        raise FileError(
            f"fer ledger --csv {args.csv}: holds something else than a ledger; remove it or name another file"
        )
    loaded = params.load()
    book = build(loaded)
    table = to_csv(book)
    reports = loaded.home / "reports"
    for path, text in ((reports / "ledger.html", to_html(book)), (reports / "ledger.csv", table), (args.csv, table)):
        if path:
            write_atomic(path, text)
    print("\n".join(findings_table(book) if args.findings else counted(book)))
    print(f"\n{len(book.lines)} numbers, {len(book.findings)} findings -> {reports / 'ledger.html'}, ledger.csv")
