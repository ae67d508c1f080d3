"""Writes the interactive introduction: `python -m experiments.explore`."""

from pathlib import Path

from experiments import explore
from experiments.parser import Parser


def main() -> None:
    """Writes the page and prints its path."""
    parser = Parser(
        "python -m experiments.explore",
        "Writes an interactive introduction to MAML, FOMAML, Reptile and iMAML: one page of HTML "
        "that opens from disk.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/explore.html"), help="the file")
    out = parser.parse_args().out
    if out.is_dir():
        parser.error(f"--out={out} is a folder: name a file, such as {out / 'explore.html'}")
    page = explore.html()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        parser.error(f"--out={out} cannot be written ({error.strerror}): name another file")
    print(out)


if __name__ == "__main__":
    main()
