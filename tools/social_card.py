"""Draw nbs/images/social_card.png, the picture that a link to the site shows: `python
tools/social_card.py`, a few seconds.

What the method is given: a scene of the embedded corpus, the quarter of its patches that the image encoder
sees, and its spoken caption. 1200 × 630 pixels.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CARD = ROOT / "nbs/images/social_card.png"
SIDE, PATCH, KEPT = 256, 32, 16  # pixels, pixels, patches of 64
INK, PAPER, BLUE, ORANGE, GREY = "#20262e", "#ffffff", "#0072b2", "#d55e00", "#e4e7ea"


def draw():
    "The card as a figure."
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sgmim.scenes.corpus import make_item
    from sgmim.scenes.pictures import draw_scene

    scene, spoken = make_item("train", 3, captions=3)
    said = spoken[0][2]
    image, grid = np.asarray(draw_scene(scene, SIDE)), SIDE // PATCH
    seen = np.zeros(grid * grid, bool)
    seen[np.random.default_rng(4).permutation(grid * grid)[:KEPT]] = True
    seen = seen.reshape(grid, grid).repeat(PATCH, 0).repeat(PATCH, 1)
    grey = np.array([int(GREY[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)

    fig = Figure((12, 6.3), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(fig)
    fig.text(0.055, 0.80, "sgmim", fontsize=64, weight="bold", color=INK, va="center")
    fig.text(
        0.055,
        0.60,
        "Speech Guided\nMasked Image Modeling\nfor Visually Grounded Speech",
        fontsize=21,
        color=INK,
        va="center",
        linespacing=1.35,
    )
    fig.text(0.055, 0.425, "a notebook-first reproducibility kit", fontsize=17, color=BLUE, va="center")
    for left, picture, title in (
        (0.495, image, "an image"),
        (0.745, np.where(seen[..., None], image, grey), "the quarter that is seen"),
    ):
        ax = fig.add_axes([left, 0.44, 0.22, 0.419])
        ax.imshow(picture)
        ax.set_title(title, fontsize=15, color=INK)
        ax.axis("off")
    wave = np.asarray(said.wave)
    times = np.arange(len(wave)) / 16_000
    ax = fig.add_axes([0.055, 0.08, 0.91, 0.23])
    ax.plot(times, wave / abs(wave).max(), lw=0.6, color=BLUE)
    for word, start, end in said.words:
        ax.axvline(start, color=ORANGE, lw=1)
        ax.text((start + end) / 2, 1.12, word, ha="center", va="bottom", fontsize=15, color=INK)
    ax.set(xlim=(0, times[-1]), ylim=(-1.05, 1.05))
    ax.axis("off")
    return fig


if __name__ == "__main__":
    CARD.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(CARD, dpi=100, metadata={"Software": None})
    print(f"wrote {CARD.relative_to(ROOT)}")
