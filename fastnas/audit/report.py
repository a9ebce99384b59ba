"""What an audit found, as tables of a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

MIB = 1 << 20
WIDTH = 118


def table(result: dict[str, Any]) -> str:
    """All tables, one after the other; "-" stands for what is not finite or was not measured."""
    parts = [_head(result), _references(result), _estimators(result), _verdict(result)]
    parts += [_sweep(result), _spectra(result), _neumann(result), _reverse(result)]
    return "\n\n".join(parts)


def nearest(result: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The estimator whose second-order term lies nearest to that of reference ``key``: direction and length."""
    rows = [row for row in result["estimators"] if row["to"] and row["to"][key]["term"]["cosine"] is not None]
    return min(rows, key=lambda row: row["to"][key]["term"]["relative_error"], default=None)


def _head(result: dict[str, Any]) -> str:
    c, s, e = result["config"], result["state"], result["environment"]
    where = f"after {s['weight_steps']} weight steps"
    if s["epoch"]:
        where = f"after epoch {s['epoch']} and {s['weight_steps']} weight steps more"
    lines = [
        f"{c['space']}, {c['channels']} channels, {c['layers']} layers: {s['weights']:,} weights, "
        f"{s['alphas']} of alpha; {c['dataset']}, batches of {s['batch_size']}, {where}, seed {c['seed']}",
        f"{e['device']}, {e['threads']} threads, torch {e['torch']}, {c['backend']} executor, {c['dtype']}, "
        f"exact products by {s['exact_by']}; "
        f"{result['cost']['seconds']:.0f} s",
        _spectrum(result),
    ]
    return "\n".join(_wrapped(line) for line in lines)


def _spectrum(result: dict[str, Any]) -> str:
    found, damping = result["spectra"][0], result["references"][0]["damping"]
    ends = f"H = d2L1/dw2 has eigenvalues from {found['lambda_min']:.3g} to {found['lambda_max']:.3g}"
    if found["lambda_min"] > 0:
        theorem = "so the implicit function theorem applies if this is a minimum"
    else:
        theorem = "so it is not positive definite, and the implicit function theorem does not apply"
    if damping == 0:
        return f"{ends}, {theorem}."
    return f"{ends}, {theorem}. The references solve with H + {damping:.3g} I."


def _references(result: dict[str, Any]) -> str:
    lines = ["references"]
    first = result["references"][0]
    for one in result["references"]:
        text = f"{one['name']}; {one['images']} images, residual {_number(one['residual'])}"
        if one is not first:
            text += f"; its second-order term has cosine {_cosine(one['to']['A']['term'])} to A's"
        lines.append(_wrapped(f"  {one['key']}  {text}", indent=5))
        lines += [_wrapped(f"     ({sentence})", indent=6) for sentence in one["noticed"]]
    share = first["term_share"]
    if share is not None:
        lines.append(
            _wrapped(
                f"  A's second-order term, g - dL2/dalpha, is {100 * share:.0f}% as long as g itself.",
                indent=2,
            )
        )
    return "\n".join(lines)


def _estimators(result: dict[str, Any]) -> str:
    keys = [one["key"] for one in result["references"]]
    groups = "".join(f"{f'to {key}':^21}" for key in keys)
    head = f"{'':<18}{'':<18}{groups}"
    columns = "".join(f"{'cos':>7}{'err':>7}{'term':>7}" for _ in keys)
    lines = [
        head.rstrip(),
        f"{'method':<18}{'products':<18}{columns}{'grads':>7}{'exact':>6}{'s':>8}{'MiB':>8}",
    ]
    for row in result["estimators"]:
        start = f"{row['method']:<18}{row['products']:<18}"
        if row["left_out"]:
            lines.append(f"{start}  {row['left_out']}")
            continue
        cells = "".join(_three(row["to"][key]) for key in keys)
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:.1f}"
        costs = f"{row['gradients']:>7}{row['exact_products']:>6}{row['seconds']:>8.2g}{peak:>8}"
        lines.append(f"{start}{cells}{costs}{' !' if row['noticed'] else ''}")
    lines.append(
        "cos, err: of g; term: cosine of g - dL2/dalpha alone; grads, exact: gradients and exact products taken"
    )
    lines += _noticed(result)
    return "\n".join(lines)


def _noticed(result: dict[str, Any]) -> list[str]:
    """What each row with a "!" met, by the names that the row has in place of the solver's."""
    return [
        _wrapped(f"! {row['method']}, {row['products']}: {row['noticed'][0].partition(': ')[2]}", indent=2)
        for row in result["estimators"]
        if row["noticed"]
    ]


def _verdict(result: dict[str, Any]) -> str:
    lines = []
    for one in result["references"]:
        best = nearest(result, one["key"])
        if best is not None:
            how = "" if best["products"] == "-" else f", {best['products']}"
            term = best["to"][one["key"]]["term"]
            lines.append(
                f"nearest to {one['key']} in its second-order term: {best['method']}{how} "
                f"(cosine {_cosine(term)}, relative error {_number(term['relative_error'])})"
            )
    lines.append(
        f"differences here: take r = {result['recommended_radius']:.3g} (--difference-radius, or auto in a search)"
    )
    return "\n".join(lines)


def _sweep(result: dict[str, Any]) -> str:
    rows = result["sweep"]
    sizes = sorted({row["images"] for row in rows if row["network"] == "kinked"})
    fewest, most = sizes[0], sizes[-1]
    smooth = next(row["images"] for row in rows if row["network"] == "smooth")
    groups = list(dict.fromkeys([("kinked", fewest), ("kinked", most), ("smooth", smooth)]))
    found = {(row["network"], row["images"], row["radius"]): row for row in rows}
    titles = [f"{network} network, {images} images" for network, images in groups]
    lines = [
        "differences beside exact products of the same images: cosine (relative error)",
        f"{'':>9}" + "".join(f"{title:^34}" for title in titles),
        f"{'r':>9}" + "".join(f"{'H v':>16}{'mixed':>16}  " for _ in groups),
    ]
    for radius in dict.fromkeys(row["radius"] for row in rows if row["radius"] is not None):
        pairs = [found[network, images, radius] for network, images in groups]
        cells = "".join(f"{_both(pair['hessian']):>16}{_both(pair['mixed']):>16}  " for pair in pairs)
        mark = "  <- recommended" if radius == result["recommended_radius"] else ""
        lines.append(f"{radius:>9.3g}{cells}{mark}".rstrip())
    lines += ["", *_batches(result, sizes)]
    return "\n".join(lines)


def _batches(result: dict[str, Any], sizes: list[int]) -> list[str]:
    """Over more and more images, each beside the exact product over all of them."""
    radii = [None, result["config"]["difference_radius"], result["recommended_radius"]]
    if radii[1] == "auto":
        del radii[1]
    rows = {(row["images"], row["radius"]): row for row in result["sweep"] if row["network"] == "kinked"}
    kinds = list(dict.fromkeys(radii))
    lines = [
        f"over more images, beside the exact product over all {sizes[-1]}: cosine of H v, of the mixed product",
        f"{'images':>9}" + "".join(f"{'exact' if r is None else f'r = {r:.3g}':>18}" for r in kinds),
    ]
    for images in sizes:
        cells = ""
        for radius in kinds:
            row = rows[images, radius]
            cells += f"{_cosine(row['hessian_over_all']):>10},{_cosine(row['mixed_over_all']):>7}"
        lines.append(f"{images:>9}{cells}")
    return lines


def _spectra(result: dict[str, Any]) -> str:
    """The ends, each with the bound of its error, and the trace with its standard error."""
    lines = [
        "spectra on one minibatch, by exact products (error)",
        f"{'':<14}{'size':>10}{'lambda_min':>20}{'lambda_max':>20}{'trace':>20}",
    ]
    for one in result["spectra"]:
        ends = (
            f"{one[end]:.4g} ({_number(one[f'{end}_error'])})"
            for end in ("lambda_min", "lambda_max", "trace")
        )
        lines.append(f"{one['name']:<14}{one['size']:>10,}" + "".join(f"{end:>20}" for end in ends))
    return "\n".join(lines)


def _neumann(result: dict[str, Any]) -> str:
    found = result["neumann"]
    convex = "" if found["strongly_convex"] else ", as H is not positive definite,"
    lines = [
        _wrapped(
            f"Neumann series, exact products, against A{convex} with delta = {found['damping']:.3g}: |g_K - g| beside "
            f"Theorem 1's bound C (1/mu) (1 - gamma mu)^(K+1), mu = {found['mu']:.3g}, L = {found['lambda_max']:.3g}"
        ),
        f"{'':>4}" + "".join(f"{_gamma(curve):^32}" for curve in found["curves"]),
        f"{'K':>4}" + "".join(f"{'error':>10}{'bound':>11}{'term':>9}  " for _ in found["curves"]),
    ]
    for k in _shown(len(found["curves"][0]["points"])):
        cells = ""
        for curve in found["curves"]:
            point = curve["points"][k]
            cells += f"{_number(point['error']):>10}{_number(point['bound']):>11}{_cosine(point['agreement']):>9}  "
        lines.append(f"{k:>4}{cells}".rstrip())
    if not all(curve["bounded"] for curve in found["curves"]):
        lines.append("no bound: the theorem wants gamma <= 1/L and mu > 0")
    return "\n".join(lines)


def _gamma(curve: dict[str, Any]) -> str:
    return f"gamma = {curve['gamma']:.3g}, {curve['name']}"


def _shown(count: int) -> list[int]:
    """Of K = 0, 1, ..., those that a table has."""
    return [k for k in (0, 1, 2, 4, 8, 12, 16, 20) if k < count]


def _reverse(result: dict[str, Any]) -> str:
    rows = result["reverse"]
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    lines = [
        "T weight steps and the hypergradient behind them: peak MiB (vectors of w kept)",
        f"{'T':>18}" + "".join(f"{count:>16}" for count in steps),
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = "".join(f"{_peak(row):>16}" for row in rows if row["method"] == name)
        lines.append(f"{name:>18}{cells}")
    return "\n".join(lines)


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_bytes'] / MIB:.1f} ({row['kept']})"


def _three(to: dict[str, Any]) -> str:
    return f"{_cosine(to):>7}{_number(to['relative_error']):>7}{_cosine(to['term']):>7}"


def _both(agreement: dict[str, Any]) -> str:
    return f"{_cosine(agreement)} ({_number(agreement['relative_error'])})"


def _cosine(agreement: dict[str, Any]) -> str:
    value = agreement["cosine"]
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.2g}"


def _wrapped(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="", subsequent_indent=" " * indent, drop_whitespace=True)
