"""Draw 700 colour emoji as PNG files, a folder of pictures to try a training on one's own images with.

    apt-get install fonts-noto-color-emoji
    python examples/emoji.py --out emoji
    esvae train --data folder:emoji --out runs/emoji

The pictures are those of the font, 136x128 pixels with a transparent background. They lie in three folders by their
Unicode block, which `esvae classify` takes as classes: all 80 emoticons, all 242 supplemental symbols (faces, people,
animals, food), and the first 378 miscellaneous symbols and pictographs. The same font gives the same files.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PACKAGE = "fonts-noto-color-emoji"
FONT_SIZE = 109  # the one that its bitmaps have
SIZE = (136, 128)
COUNT = 700
BLOCKS = {  # of Unicode, in the order in which they are drawn
    "emoticons": range(0x1F600, 0x1F650),
    "supplemental": range(0x1F900, 0x1FA00),
    "miscellaneous": range(0x1F300, 0x1F600),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("emoji"), help="the folder to make, by default ./emoji")
    parser.add_argument("--font", type=Path, default=FONT, help=f"Noto Color Emoji, by default {FONT}")
    options = parser.parse_args()
    try:
        write(options.font, options.out)
    except (OSError, ValueError) as error:
        print(f"emoji.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {COUNT} images; next: esvae train --data folder:{options.out} --out runs/emoji")
    return 0


def write(path: Path, out: Path) -> None:
    """Draw the emoji of the font file `path` into the new or empty folder `out`.

    Raises:
        ValueError: the font is missing, or has fewer emoji; `out` holds something.
        OSError: the disk refuses.
    """
    if not path.is_file():
        raise ValueError(f"--font: got {path}, which is not there; the Debian package {PACKAGE} has it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: got {out}, which is there already; accepted is a new or empty folder")
    try:
        font = ImageFont.truetype(path, FONT_SIZE)
    except OSError as error:
        raise ValueError(
            f"--font: got {path}, which is not Noto Color Emoji ({error}); the Debian package {PACKAGE} has it"
        ) from None
    found = list(itertools.islice(drawn(font), COUNT))
    if len(found) < COUNT:
        raise ValueError(f"--font: got {path} with {len(found)} of the {COUNT} emoji; the package {PACKAGE} has all")
    for block, code, image in found:
        (out / block).mkdir(parents=True, exist_ok=True)
        image.save(out / block / f"{code:x}.png")


def drawn(font: ImageFont.FreeTypeFont):
    """(block, code point, picture) of every emoji that the font has."""
    for block, codes in BLOCKS.items():
        for code in codes:
            image = Image.new("RGBA", SIZE)
            ImageDraw.Draw(image).text((0, 0), chr(code), font=font, embedded_color=True)
            if image.getbbox():  # a code point without a picture draws nothing
                yield block, code, image


if __name__ == "__main__":
    sys.exit(main())
