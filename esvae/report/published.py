"""Published figures, as data: what the report sets ours beside. Each row says where it is from.

The protocols differ from ours and among each other, so every row of a table carries its own: `PAPER_PROTOCOL` is that
of the paper's own models, as its published code (github.com/QgZhan/ESVAE) computes them; `FSVAE_PROTOCOL` that of what
it cites from FSVAE's paper, whose Table 1 has the same figures.
"""

from __future__ import annotations

from typing import NamedTuple

PAPER = "arXiv 2310.14839"
PAPER_PROTOCOL = (
    "T = 16, 300 epochs, best epoch of each measure, chosen on test statistics; last incomplete batch of the test set "
    "dropped"
)
FSVAE_PROTOCOL = "from FSVAE's paper (arXiv 2110.00375), by its own protocol"
CITED = "another paper's figure, by its own protocol"


class Published(NamedTuple):
    """One row of a published table."""

    data: str
    system: str
    source: str
    protocol: str
    figures: dict[str, float]


def _rows(table: str, keys: tuple[str, ...], rows: dict[tuple[str, str], tuple], protocol: str) -> list[Published]:
    source = f"{PAPER}, {table}"
    return [
        Published(data, system, source, protocol, {k: v for k, v in zip(keys, values, strict=True) if v is not None})
        for (data, system), values in rows.items()
    ]


# Reconstruction MSE, Inception Score, FID, FAD.
TABLE1 = [
    *_rows(
        "Table I",
        ("mse", "inception_score", "fid", "fad"),
        {
            ("mnist", "ANN VAE"): (0.048, 5.947, 112.5, 17.09),
            ("mnist", "FSVAE"): (0.031, 6.209, 97.06, 35.54),
            ("fashion-mnist", "ANN VAE"): (0.050, 4.252, 123.7, 18.08),
            ("fashion-mnist", "FSVAE"): (0.031, 4.551, 90.12, 15.75),
            ("cifar10", "ANN VAE"): (0.105, 2.591, 229.6, 196.9),
            ("cifar10", "FSVAE"): (0.066, 2.945, 175.5, 133.9),
            ("celeba", "ANN VAE"): (0.059, 3.231, 92.53, 156.9),
            ("celeba", "FSVAE"): (0.051, 3.697, 101.6, 112.9),
        },
        FSVAE_PROTOCOL,
    ),
    *_rows(
        "Table I",
        ("mse", "inception_score", "fid", "fad"),
        {
            ("mnist", "ESVAE"): (0.013, 5.612, 117.8, 10.99),
            ("fashion-mnist", "ESVAE"): (0.019, 6.227, 125.3, 11.13),
            ("cifar10", "ESVAE"): (0.045, 3.758, 127.0, 14.74),
            ("celeba", "ESVAE"): (0.034, 3.868, 85.33, 51.93),
        },
        PAPER_PROTOCOL,
    ),
    *_rows(
        "Table I",
        ("inception_score", "fid", "fad"),
        {
            ("mnist", "SWGAN (spiking GAN)"): (None, 100.29, None),
            ("mnist", "SGAD (spiking GAN)"): (None, 69.64, None),
            ("fashion-mnist", "SWGAN (spiking GAN)"): (None, 175.34, None),
            ("fashion-mnist", "SGAD (spiking GAN)"): (None, 165.42, None),
            ("cifar10", "SWGAN (spiking GAN)"): (None, 178.40, None),
            ("cifar10", "SGAD (spiking GAN)"): (None, 181.50, None),
            ("cifar10", "TAID"): (3.53, 171.1, 120.5),
            ("celeba", "SWGAN (spiking GAN)"): (None, 238.42, None),
            ("celeba", "SGAD (spiking GAN)"): (None, 151.36, None),
            ("celeba", "TAID"): (4.31, 99.54, 105.3),
        },
        CITED,
    ),
    Published("fashion-mnist", "Spiking-Diffusion (VQ)", "its paper", CITED, {"fid": 91.98}),
    Published("fashion-mnist", "FSDDIM, T = 8", "its paper", CITED, {"fid": 11.78, "fad": 4.91}),
    Published("fashion-mnist", "FSDDIM, T = 4", "its paper", CITED, {"fid": 9.17, "fad": 9.25}),
    Published("cifar10", "FSDDIM, T = 8", "its paper", CITED, {"fid": 46.14, "fad": 12.61}),
    Published("cifar10", "SDDPM", "its paper", CITED, {"fid": 19.73}),
    Published("celeba", "FSDDIM, T = 4", "its paper", CITED, {"fid": 36.08, "fad": 66.52}),
]

# MSE of time-shuffled latents against the original image, and against the vanilla reconstruction.
TABLE2 = _rows(
    "Table II",
    ("original", "vanilla"),
    {
        ("mnist", "FSVAE"): (0.0270, 0.0074),
        ("mnist", "ESVAE"): (0.0105, 0.0021),
        ("fashion-mnist", "FSVAE"): (0.0529, 0.0265),
        ("fashion-mnist", "ESVAE"): (0.0169, 0.0030),
        ("cifar10", "FSVAE"): (0.0707, 0.0060),
        ("cifar10", "ESVAE"): (0.0434, 0.0031),
        ("celeba", "FSVAE"): (0.0553, 0.0099),
        ("celeba", "ESVAE"): (0.0330, 0.0037),
    },
    "one unstated order of the time steps; no spread given",
)

# Additions, multiplications, mean firing rate, energy in joules.
TABLE3 = _rows(
    "Table III",
    ("additions", "multiplications", "firing_rate", "energy_j"),
    {
        ("mnist", "ANN VAE"): (7.4e9, 7.4e9, None, 0.6808),
        ("mnist", "FSVAE"): (5.0e10, 5.6e8, 0.3390, 0.2468),
        ("mnist", "ESVAE"): (1.9e8, 1.8e6, 0.4491, 0.0012),
    },
    "ANN and FSVAE: per batch of 250 images; ESVAE: per image",
)

# Accuracy in percent of a four-layer classifier on frozen firing rates.
TABLE4 = _rows(
    "Table IV",
    ("accuracy",),
    {
        ("mnist", "FSVAE"): (98.00,),
        ("mnist", "ESVAE"): (98.09,),
        ("fashion-mnist", "FSVAE"): (86.28,),
        ("fashion-mnist", "ESVAE"): (88.59,),
        ("cifar10", "FSVAE"): (46.65,),
        ("cifar10", "ESVAE"): (53.59,),
    },
    "d = 32 in the published configs of MNIST and Fashion-MNIST; no spread given",
)

# Inception Score, FID, FAD of the attention modules TAID and PFA.
TABLE5 = [
    *_rows(
        "Table V",
        ("inception_score", "fid", "fad"),
        {("cifar10", "TAID"): (3.53, 171.1, 120.5), ("cifar10", "PFA"): (3.84, 166.4, 92.83)},
        CITED,
    ),
    *_rows(
        "Table V",
        ("inception_score", "fid", "fad"),
        {("cifar10", "ESVAE + TAID"): (3.719, 130.7, 18.32), ("cifar10", "ESVAE + PFA"): (3.655, 135.4, 19.10)},
        PAPER_PROTOCOL,
    ),
]

TABLES = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5)


def known(data: str, *tables: list[Published]) -> bool:
    """Whether there are published figures of a data set, in these tables or, without any, in one of all."""
    return any(row.data == data for table in tables or TABLES for row in table)


# How the published code, and FSVAE's, on which it is built, compute what has the same name here.
FID = "clean-fid"
INCEPTION_SCORE = "values in 0..255"
UNKNOWN = "by its own code"  # how others do
