"""The paper's tables I to V, ours beside the published rows of the same data set, where there are some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import preset
from ..errors import InputError
from . import published
from .measure import ANALYSES, FOLDER, KINDS, Results, Subject, System, by_data, data_name
from .published import Published
from .section import Cell, Section, Table, Value


class Reader:
    """Results for one section, which is told what is missing."""

    def __init__(self, results: Results, section: Section) -> None:
        self.results, self.section = results, section

    def get(self, subject: Subject, analysis: str, prior: str | None = None) -> dict[str, Any] | None:
        """None where it cannot be measured; the section then says why."""
        try:
            result = self.results.get(subject, analysis, prior)
        except InputError as error:
            needs, why = ANALYSES[analysis].needs, str(error)
            if needs and not hasattr(subject.model, needs):  # of the kind, in words of the page and not of the code
                what = "spikes" if hasattr(subject.model, "encode") else "encoder"
                why = f"{KINDS[subject.model.kind]} has no {what}"
            self.section.missing[f"{analysis} of {subject.folder}"] = why
            return None
        for what, why in result.get("not_measured", {}).items():
            self.section.missing[f"{what} of {data_name(subject.data)}"] = why
        return result

    def over_runs(
        self,
        system: System,
        analysis: str,
        pick: Callable[[dict[str, Any]], float | None],
        form: str,
        prior: str | None = None,
        *,
        note: str = "",
        repeats: Callable[[dict[str, Any]], tuple[float, str]] | None = None,
    ) -> Value | None:
        """`pick` of each run's result; None where no run has it."""
        results = [self.get(subject, analysis, prior) for subject in system.subjects]
        found = [(pick(r), r) for r in results if r is not None]
        values = tuple(value for value, _ in found if value is not None)
        if not values:
            return None
        return Value(values, form, repeats(found[0][1]) if repeats and len(found) == 1 else None, note)


def published_rows(rows: list[Published], data: str) -> Iterator[Published]:
    return (row for row in rows if row.data == data)


def _figure(row: Published, key: str, form: str, note: str = "") -> Cell:
    return Value((row.figures[key],), form, note=note) if key in row.figures else None


def _source(row: Published) -> str:
    return f"{row.source}: {row.protocol}"


def runs_text(system: System) -> str:
    """From which weights a row is: last epoch of how many, after how many images, how many runs."""
    if system.first.notes:
        return "weights so far, 1 run"
    count = len(system.subjects)
    runs = f"{count} run{'s' * (count > 1)}"
    if system.first.config is None:
        return runs
    images = system.first.images_seen()
    seen = f" ({images:,} images seen)" if images else ""
    return f"last epoch of {system.first.config.train.epochs}{seen}, {runs}"


# -------------------------------------------------------------------------------------------------------------- table 1

MSE, FAD, FAD_AGAIN, FID, SCORE = "MSE ↓", "FAD ↓", "FAD of reconstructions ↓", "FID ↓", "IS ↑"  # columns
_MEASURES = [
    "MSE (mean squared error) compares test images with their reconstructions, pixel by pixel on the scale -1 to 1: "
    "0 would be a copy. It says nothing about drawn images.",
    "FAD and FID (Fréchet autoencoder and inception distance) compare a few thousand drawn images with real ones by "
    "what a network sees in them: 0 would be images that are distributed like the real ones. FAD's network is a small "
    "autoencoder trained on the data set itself, FID's is a classifier of photographs. IS (Inception Score) asks that "
    "classifier whether each drawn image is one definite thing, and whether they are different ones: higher is better.",
]


REAL = "real training images"
SHARES = ("precision", "recall", "density", "coverage")
_SHARES = (
    "Precision is the share of drawn images that look, to FAD's network (or one of ours where none is published), like "
    "some real one; recall the share of real images that look like some drawn one; density and coverage are their "
    "sturdier relatives. They are read together: a model that draws a few blurred averages has a high precision and "
    "density, above those of real images even, and a recall near 0; one that scatters widely has recall without "
    "precision."
)
_CHOSEN = (
    "The preset best was compared with its variations on test images too (bench/leads.py): its figures are those of "
    "the last epoch, but not of a choice that never saw the test set."
)
_MIXTURE = (
    "The mixture prior is not the paper's: what can be compared with the paper's ESVAE is the row of the bottleneck "
    "prior."
)
_OWN = "fad_own is by a network of this project's own, and must not be set beside a published FAD."


def table1(systems: list[System], results: Results) -> Section:
    section = Section(
        "table1",
        "Table I: how well images are reconstructed and drawn",
        [
            "The main comparison: an autoencoder has to give back the images that it is shown, and draw new ones that "
            "look like them.",
            _MEASURES[0],
        ],
    )
    reader = Reader(results, section)
    for data, members in by_data(systems).items():
        section.tables += _quality(reader, data, members, published.TABLE1)
    section.notes = [*_quality_notes(section, systems), *section.notes]
    if {FAD, FID, SCORE, "fad_own ↓"} & {column for table in section.tables for column in table.columns}:
        section.about.append(_MEASURES[1])
    return section


def _quality_notes(section: Section, systems: list[System]) -> list[str]:
    """On what the section's tables have."""
    columns = {column for table in section.tables for column in table.columns}
    beside = any(published.known(system.data, published.TABLE1) for system in systems)
    real = any(row[0] == REAL for table in section.tables for row in table.rows)
    notes = [
        "Ours are figures of the last epoch on all test images; ± is the standard deviation over training seeds, "
        "where a system has several runs."
        + " The ESVAE paper's own are the best epoch of each measure, which is chosen on the test images themselves; "
        "of the figures that it cites that is not known." * beside
    ]
    if FAD in columns:
        notes.append(
            "FAD is computed as in the published code of ESVAE (fad_paper): its feature network, each batch normalised "
            "by its own statistics. Compare it with the published ESVAE; the protocols of the cited rows may differ. "
            "It does not see global contrast. fad_eval does: the same distance with the network's running statistics; "
            "nothing is published for it."
        )
    if any(f"{share} ↑" in columns for share in SHARES):
        notes.append(_SHARES)
    if FID in columns or SCORE in columns:
        notes.append(
            "FID and IS name their implementation in each cell."
            + f" The published FID is {published.FID}'s, which resizes differently, and the published IS feeds "
            f"{published.INCEPTION_SCORE} where the network expects -1..1: figures of different implementations must "
            "not be compared." * beside
        )
    if real:
        notes.append(
            "The row of real images, training images in the place of drawn ones (as many as those or all that there "
            "are), is the best that can be expected of distances and coverage; precision and density can exceed it."
        )
    if any(system.first.config is not None and system.first.config.preset == "best" for system in systems):
        notes.append(_CHOSEN)
    if beside and any("mixture" in system.first.priors for system in systems):
        notes.append(_MIXTURE)
    return notes


def _quality(reader: Reader, data: str, members: list[System], rows: list[Published]) -> list[Table]:
    """What is measured like the published figures, and what is measured beside them; columns that have something."""
    columns = ["system", "weights and protocol", MSE, FAD, FAD_AGAIN, FID, SCORE]
    beside = published.known(data, rows)
    main = Table(f"{data_name(data)}: {'beside the published figures' if beside else 'measured'}", columns)
    more = Table(
        f"{data_name(data)}: further measures of drawn images",
        [
            "system",
            "fad_eval ↓",
            "fad_eval of reconstructions ↓",
            "fad_own ↓",
            *(f"{share} ↑" for share in SHARES),
        ],
    )
    for row in published_rows(rows, data):
        cited = row.protocol == published.CITED
        main.add(
            [
                row.system,
                _source(row),
                _figure(row, "mse", ".3f"),
                _figure(row, "fad", ".2f", published.UNKNOWN if cited else ""),
                None,
                _figure(row, "fid", ".2f", published.UNKNOWN if cited else published.FID),
                _figure(row, "inception_score", ".3f", published.UNKNOWN if cited else published.INCEPTION_SCORE),
            ],
            ours=False,
        )
    network = _own_network(reader, members)
    if network is not None and _OWN not in reader.section.notes:
        reader.section.notes.append(_OWN)
    for system in members:
        for prior in system.first.priors:
            _add_quality(reader, system, prior, network, main, more)
    _add_real(reader, members, main, more)
    main, further = main.without_empty_columns(), more.without_empty_columns()
    return [main, further] if len(further.columns) > 1 else [main]


def _own_network(reader: Reader, members: list[System]) -> str | None:
    """The feature network of our own that this table's figures are by: the first run's. Others cannot be compared with
    them (esvae/metrics/own_features.py), and are named."""
    found: dict[Path, str] = {}
    for subject in (subject for system in members for subject in system.subjects):
        result = reader.get(subject, "evaluate")
        if result is not None and (weights := result.get("fad_own_weights")):
            found[subject.folder] = weights
    first = next(iter(found.values()), None)
    for folder, weights in found.items():
        if weights != first:
            reader.section.missing[f"fad_own of {folder}"] = (
                f"measured by the feature network {weights[:8]}, the other runs by {first[:8]}; without "
                f"{folder / FOLDER} it is measured again"
            )
    return first


def _comparable(key: str, result: dict[str, Any], network: str | None) -> bool:
    own = key.startswith("fad_own") or (key.startswith("prdc_") and result.get("prdc_features") == "fad_own")
    return not own or result.get("fad_own_weights") == network


def _add_quality(reader: Reader, system: System, prior: str, network: str | None, main: Table, more: Table) -> None:
    result = reader.get(system.first, "evaluate", prior)
    if result is None:
        main.add([system.name, "not measured, see below", *[None] * 5])
        return

    def value(key: str, form: str = ".2f", note: str = "") -> Value | None:
        def pick(result: dict[str, Any]) -> float | None:
            return result.get(key) if _comparable(key, result, network) else None

        return reader.over_runs(system, "evaluate", pick, form, prior, note=note)

    name = system.name if len(system.first.priors) == 1 else f"{system.name}, {prior} prior"
    size = system.first.model.config.size
    images = f"{result['images']:,} test images of {size}x{size} pixels" if "mse" in result else "no encoder"
    protocol = f"{runs_text(system)}; {images}, T = {result['steps']}, prior {prior}"
    fid = value("fid", note=result.get("fid_implementation", ""))
    score = value("inception_score", ".3f", "standard")
    main.add([name, protocol, value("mse", ".4f"), value("fad_paper"), value("fad_paper_reconstructions"), fid, score])
    keys = ("fad_eval", "fad_eval_reconstructions", "fad_own")
    more.add([name, *(value(key) for key in keys), *(value(f"prdc_{key}", ".3f") for key in SHARES)])


def _add_real(reader: Reader, members: list[System], main: Table, more: Table) -> None:
    """The floors, which every run's result has."""
    for system in members:
        result = reader.get(system.first, "evaluate")
        if result is None or not any(key.endswith("_floor") for key in result):
            continue

        def floor(key: str, form: str = ".2f", note: str = "", result: dict[str, Any] = result) -> Value | None:
            return Value((result[f"{key}_floor"],), form, note=note) if f"{key}_floor" in result else None

        fid = floor("fid", note=result.get("fid_implementation", ""))
        score = floor("inception_score", ".3f", "standard")
        main.add([REAL, "yardstick", None, floor("fad_paper"), None, fid, score])
        cells = [floor("fad_eval"), None, floor("fad_own"), *(floor(f"prdc_{key}", ".3f") for key in SHARES)]
        more.add([REAL, *cells])
        return


# -------------------------------------------------------------------------------------------------------------- table 2


def table2(systems: list[System], results: Results) -> Section:
    from ..robustness import PROTOCOL

    section = Section(
        "table2",
        "Table II: does the order of the spikes in time matter?",
        [
            "Between encoder and decoder an image is a bundle of spike trains, one per latent neuron, T time steps "
            "long. Here these steps are put into another order before they are decoded. If the image stays what it "
            "was, then the number of spikes carries it and not their order: that is what lets ESVAE draw spikes at "
            "random, by their rates.",
            "The columns are mean squared errors on the scale -1 to 1: of the image from the shuffled spikes against "
            "the original, and against the vanilla reconstruction, which is the image from the spikes as they were; "
            "last, that one's own against the original. An image can be as far from the original as before and still "
            "another one: where it was poor or noisy anyway.",
        ],
        notes=[
            f"Ours, one order per image: {PROTOCOL['time_shuffle']}.",
            f"Ours, an order per neuron: {PROTOCOL['time_shuffle_neurons']}.",
            f"Ours, neurons in another order: {PROTOCOL['length_shuffle']}. Each neuron is given another one's spikes: "
            "what an image is told by does not survive that.",
            "Even the vanilla reconstruction has a spread: every repetition draws its own spikes by the encoder's "
            "rates.",
        ],
    )
    if any(published.known(system.data, published.TABLE2) for system in systems):
        section.notes.append(
            "Some published errors of shuffled images are below the error of the same model's undisturbed "
            "reconstructions in Table I (Fashion-MNIST .0169 against .019): the two tables are not of one protocol."
        )
    reader = Reader(results, section)
    for data, members in by_data(systems).items():
        table = Table(
            data_name(data),
            ["system", "weights and protocol", "vs original ↓", "vs vanilla reconstruction ↓", "vanilla vs original ↓"],
        )
        for row in published_rows(published.TABLE2, data):
            errors = [_figure(row, key, ".4f") for key in ("original", "vanilla")]
            table.add([row.system, _source(row), *errors, None], ours=False)
        for system in members:
            result = reader.get(system.first, "robustness")
            if result is None:
                continue
            about = f"{runs_text(system)}; {result['images']:,} test images, T = {result['steps']}"
            for name, how in (
                ("time_shuffle", "one order per image"),
                ("time_shuffle_neurons", "an order per neuron"),
                ("length_shuffle", "neurons in another order"),
            ):
                errors = [_error(reader, system, name, against) for against in ("original", "vanilla")]
                vanilla = _error(reader, system, "vanilla", "original")
                table.add([system.name, f"{how}; {about}", *errors, vanilla])
        if table.rows:
            section.tables.append(table.without_empty_columns())
    return section


def _error(reader: Reader, system: System, disturbance: str, against: str) -> Value | None:
    return reader.over_runs(
        system,
        "robustness",
        lambda r: r[disturbance][against]["mean"],
        ".4f",
        repeats=lambda r: (r[disturbance][against]["sd"], f"{r['seeds']} repetitions"),
    )


# -------------------------------------------------------------------------------------------------------------- table 3


# What the paper's formula is made from, and how it is printed.
FORMULA = {"additions": ".1e", "multiplications": ".1e", "firing_rate": ".3f", "energy_j": ".4g"}


def table3(systems: list[System], results: Results) -> Section:
    from ..energy import AC_PJ, MAC_PJ, SLIPS

    section = Section(
        "table3",
        "Table III: energy per image",
        [
            "On neuromorphic hardware a spike costs an addition at each connection that it goes out on (AC, "
            f"{AC_PJ} pJ), and silence costs nothing. An ordinary network multiplies and adds at every connection "
            f"(MAC, {MAC_PJ} pJ; both 32 bit, 45 nm). But spikes come at each of T time steps, so a spiking network "
            "saves energy only if it fires rarely enough.",
            "Counted are the spikes that really occur, layer by layer. The ANN twin has the same layers, run once with "
            "a MAC for every connection; a ratio below 1 is a saving.",
            "The ratio compares a system with its own twin, which for another system is another network: for that "
            "compare µJ.",
        ],
        notes=[
            "Energy and ratio are of the synapses: the ACs and MACs beside them. The updates of the neurons, a MAC at "
            "each time step even in silence, stand in a column of their own, and the last column is the ratio with "
            "them. The twin's activations count nothing. In no column are memory and random numbers.",
            "Spiking systems have MACs where no spikes come in: the first layer sees pixels, the last sums over time. "
            "The range is what the energy is when these two are run the other way, on spikes or at every step.",
            "The firing rate is that of all neurons of that part; figure 6 has the latent's alone.",
        ],
    )
    if any(published.known(system.data, published.TABLE3) for system in systems):
        section.notes.append(
            "The second table is the paper's own formula, for a comparison with its Table III alone: 0.9 pJ x firing "
            "rate x T x (additions + multiplications), and 4.6 pJ x (additions + multiplications) without spikes. It "
            "is not an energy: " + "; ".join(SLIPS) + "."
        )
    reader = Reader(results, section)
    for data, members in by_data(systems).items():
        measured = Table(
            f"{data_name(data)}: measured operations per image",
            [
                *("system", "part", "ACs", "MACs", "energy, µJ ↓", "range, µJ", "ANN twin, µJ", "ratio ↓"),
                *("firing rate, all neurons", "updates, µJ", "ratio with updates ↓"),
            ],
        )
        formula = Table(
            f"{data_name(data)}: the paper's formula",
            ["system", "counted", "additions", "multiplications", "firing rate", "energy by the formula, J"],
        )
        for row in published_rows(published.TABLE3, data):
            formula.add([row.system, _source(row), *(_figure(row, *key) for key in FORMULA.items())], ours=False)
        for system in members:
            _add_energy(reader, system, measured, formula)
        comparable = published.known(data, published.TABLE3)  # on nothing else does the formula say anything
        section.tables += [t.without_empty_columns() for t in (measured, formula)[: 1 + comparable] if t.rows]
    return section


def _add_energy(reader: Reader, system: System, measured: Table, formula: Table) -> None:
    from ..energy import ratio_with_updates

    result = reader.get(system.first, "energy")
    if result is None:
        return

    def value(pick: Callable[[dict[str, Any]], float | None], form: str) -> Value | None:
        return reader.over_runs(system, "energy", pick, form)

    def span(part: str) -> str | None:
        """Of the energy, where it has one."""
        low, high = (value(lambda r, end=end: r[part]["energy_range_uj"][end], ",.1f") for end in (0, 1))
        texts = dict.fromkeys(f"{end.mean:{end.form}}" for end in (low, high) if end is not None)
        return " to ".join(texts) if len(texts) > 1 else None

    for part, title in (("encode", "encode an image"), ("generate", "draw an image")):
        if result[part] is None:
            continue
        cells = []
        for key, form in (
            ("synaptic_operations", ",.0f"),
            ("macs", ",.0f"),
            ("energy_uj", ",.1f"),
            ("twin_energy_uj", ",.1f"),
            ("energy_ratio", ".2f"),
            ("firing_rate", ".3f"),
            ("neuron_updates_uj", ",.2f"),
        ):
            cells.append(value(lambda r, part=part, key=key: r[part][key], form))
        cells.insert(3, span(part))  # behind the energy
        cells.append(value(lambda r, part=part: ratio_with_updates(r[part]), ".2f"))
        measured.add([system.name, f"{title}; {runs_text(system)}, {result['images']:,} images", *cells])
    cells = [value(lambda r, key=key: r["paper_formula"][key], form) for key, form in FORMULA.items()]
    counted = "encoded and drawn" if result["encode"] is not None else "drawn, since it has no encoder"
    formula.add([system.name, f"ours: per image, {counted}", *cells])


# -------------------------------------------------------------------------------------------------------------- table 4


def table4(systems: list[System], results: Results) -> Section:
    section = Section(
        "table4",
        "Table IV: what the encoder knows of the image's class",
        [
            "The encoder was never told what is on the images. To see how much of it is in its firing rates"
            + " (of the VAE without spikes: in the means of its latent)"
            * any(system.first.model.kind == "vae" for system in systems)
            + ", they are frozen, and a small classifier is trained on them: the paper's, of four fully connected "
            "layers, and a linear probe, one layer, which finds only what a plane can separate. Accuracies are percent "
            "of the test images.",
            "The last column is the accuracy of always naming the commonest class.",
        ],
        notes=[
            "The paper gives neither activation nor batch size nor momentum of its classifier: ours are ReLU, 128 and "
            "none. Ours is the accuracy after the last epoch.",
            "A longer latent (d) makes it easier: compare rows of equal d."
            + " The published d is that of the published configs."
            * any(published.known(system.data, published.TABLE4) for system in systems),
        ],
    )
    reader = Reader(results, section)
    for data, members in by_data(systems).items():
        table = Table(
            data_name(data),
            ["system", "weights and protocol", "d", "classifier, % ↑", "linear probe, % ↑", "commonest class, %"],
        )
        for row in published_rows(published.TABLE4, data):
            d = str(preset("official", data).model.latent)
            table.add([row.system, _source(row), d, _figure(row, "accuracy", ".2f"), None, None], ours=False)
        for system in members:
            result = reader.get(system.first, "classify")
            if result is None:
                continue
            classifier = result["classifier"]
            layers = "-".join(map(str, classifier["layers"]))
            protocol = f"{runs_text(system)}; {layers}, {classifier['epochs']} epochs"
            accuracy = reader.over_runs(
                system,
                "classify",
                lambda r: r["classifier"]["mean"],
                ".2f",
                repeats=lambda r: (r["classifier"]["sd"], f"{len(r['classifier']['accuracy'])} classifiers"),
            )
            probe = reader.over_runs(system, "classify", lambda r: r["linear_probe"]["accuracy"], ".2f")
            majority = reader.over_runs(system, "classify", lambda r: r["majority"], ".2f")
            table.add([system.name, protocol, str(result["latent"]), accuracy, probe, majority])
        if table.rows:
            section.tables.append(table.without_empty_columns())
    return section


# -------------------------------------------------------------------------------------------------------------- table 5


def table5(systems: list[System], results: Results) -> Section:
    section = Section(
        "table5",
        "Table V: with attention modules of others",
        [
            "TAID weighs the time steps at the output by what they contain, and PFA the input by time, channel and "
            "place. Both come from other papers; the question is whether they work with ESVAE as well, which stands "
            "without them above.",
            _MEASURES[1],
        ],
        notes=["FAD, FID and IS are measured as in Table I, and its notes apply."],
    )
    with_attention = [s for s in systems if attends(s)]
    if not with_attention:
        section.missing["TAID and PFA"] = (
            "none of the runs has either; train one with --model.readout taid or --model.attention pfa"
        )
    reader = Reader(results, section)
    without = [row for row in published.TABLE1 if row.system == "ESVAE"]
    shown = by_data(with_attention) or dict.fromkeys(["cifar10"])  # the published rows alone
    for data in shown:
        kinds = {system.first.model.kind for system in shown[data] or ()}
        members = [s for s in systems if s.data == data and s.first.model.kind in kinds] if kinds else []
        section.tables += _quality(reader, data, members, [*without, *published.TABLE5])
    return section


def attends(system: System) -> bool:
    """Whether it has one of the attention modules."""
    config = system.first.model.config
    return config.readout == "taid" or config.attention == "pfa"
