"""Means over the pairs, and tables of them: what style_judge.py writes of its record."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PLACES = ("whole", "borders", "middle")


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; 0 where one is 0, None of none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return float(np.exp(np.mean(np.log(there)))) if min(there) > 0 else 0.0


def mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def makers_of(record: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry["maker"] for entry in record["pictures"]))


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Of each maker: geometric means over its pairs of what is an error, plain means of the rest."""
    return {name: _of([x for x in record["pictures"] if x["maker"] == name]) for name in makers_of(record)}


def _of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def over(find: Callable[[dict[str, Any]], float | None], how: Callable[..., float | None] = geometric_mean):
        value = how([find(entry) for entry in entries])
        return None if value is None else float(f"{value:.5g}")

    judges: dict[str, Any] = {}
    for name, first in entries[0]["judges"].items():
        taps = list(first["gram"]["whole"])
        gram = {
            place: {tap: over(lambda x, p=place, t=tap, n=name: x["judges"][n]["gram"][p][t]) for tap in taps}
            for place in PLACES
        }
        judges[name] = {
            "gram": gram,
            "all": {place: geometric_mean(list(gram[place].values())) for place in PLACES},
            "content": {p: over(lambda x, p=p, n=name: x["judges"][n]["content"][p]) for p in PLACES},
            **{
                key: over(lambda x, n=name, key=key: x["judges"][n][key], mean)
                for key in ("frechet", "cosine", "combined")
            },
        }
    octaves = ("luma", "chroma", "luma_next", "chroma_next")
    return {
        "pairs": len(entries),
        "judges": judges,
        "colour_distance": over(lambda x: x["colours"]["distance"], mean),
        "clipped_percent": over(lambda x: x["colours"]["clipped_percent"], mean),
        "finest_over_style": {
            key: over(lambda x, k=key: _ratio(x["finest"]["result"][k], x["finest"]["style"][k])) for key in octaves
        },
        "finest_over_content": {
            key: over(lambda x, k=key: _ratio(x["finest"]["result"][k], x["finest"]["content"][k])) for key in octaves
        },
        "alternating_percent": {
            of: over(lambda x, of=of: x["finest"][of]["alternating_percent"], mean)
            for of in ("result", "content", "style")
        },
        "seconds": over(lambda x: x.get("seconds"), mean),
        "evaluations": over(lambda x: x.get("evaluations"), mean),
    }


def _ratio(value: float, by: float) -> float | None:
    """None where there is nothing to divide by, such as the chroma of a grey picture."""
    return value / by if by > 0.01 else None


def against(record: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Errors of each maker over those of the earlier record's first, by the pairs that both have, as geometric means.

    {maker: {judge: {tap: ratio, ..., "all": ratio, "content": ratio}}}, with "pairs", how many they are.
    """
    first = next((name for name in then["makers"]), None)
    old = {_pair(x): x for x in then["pictures"] if x["maker"] == first}
    ratios: dict[str, Any] = {}
    for name in makers_of(record):
        both = [(x, old[_pair(x)]) for x in record["pictures"] if x["maker"] == name and _pair(x) in old]
        if not both:
            continue
        ratios[name] = {"pairs": len(both)}
        for judge in record["judges"]:
            found = {
                tap: geometric_mean([_over(x, y, judge, "gram", tap) for x, y in both])
                for tap in both[0][0]["judges"][judge]["gram"]["whole"]
            }
            found["all"] = geometric_mean(list(found.values()))
            found["content"] = geometric_mean([_over(x, y, judge, "content") for x, y in both])
            ratios[name][judge] = found
    return {"maker": first, "size": then["size"], "ratios": ratios}


def _pair(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["content"], entry["style"]


def _over(new: dict[str, Any], old: dict[str, Any], judge: str, *keys: str) -> float | None:
    values = []
    for entry in (new, old):
        value = entry["judges"][judge][keys[0]]["whole"]
        values.append(value if len(keys) == 1 else value[keys[1]])
    return values[0] / values[1] if values[1] else None


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def markdown(record: dict[str, Any], then: dict[str, Any] | None = None) -> str:
    """All tables of a record; then: an earlier one to divide by."""
    judges, found = list(record["judges"]), record["summary"]
    parts = [f"Longer side {record['size']} px; geometric means over the pairs, of colours and times plain ones."]
    for judge in judges:
        taps = list(next(iter(found.values()))["judges"][judge]["gram"]["whole"])
        head = ["maker", "pairs", *taps, "all", "borders", "middle", "content", "borders", "middle"]
        head += ["Fréchet", "1 - cosine", "combined"]
        rows = []
        for name, of in found.items():
            by = of["judges"][judge]
            gram = [by["gram"]["whole"][tap] for tap in taps]
            places = [*by["all"].values(), *by["content"].values()]
            rows.append(
                [name, str(of["pairs"]), *map(number, [*gram, *places, by["frechet"], by["cosine"], by["combined"]])]
            )
        parts += [f"**Judged by {judge}**: relative Gram errors by layer, then content", table(head, rows)]
    head = ["maker", "colour distance", "clipped %", "luma / style", "chroma / style", "luma / content"]
    head += ["chroma / content", "alternating %", "of the content", "of the style", "seconds", "evaluations"]
    rows = []
    for name, of in found.items():
        values = [of["colour_distance"], of["clipped_percent"]]
        values += [of[f"finest_over_{by}"][key] for by in ("style", "content") for key in ("luma", "chroma")]
        values += [*of["alternating_percent"].values(), of["seconds"], of["evaluations"]]
        rows.append([name, *map(number, values)])
    parts += ["**Colours and the top octave**", table(head, rows)]
    if then is not None:
        parts += _against(against(record, then), judges)
    parts += ["**Pair by pair**", _pair_by_pair(record, judges)]
    return "\n\n".join(parts) + "\n"


def _against(found: dict[str, Any], judges: Sequence[str]) -> list[str]:
    rows, head = [], ["maker", "pairs"]
    for name, of in found["ratios"].items():
        head = ["maker", "pairs", *(f"{judge} {key}" for judge in judges for key in of[judge])]
        rows.append([name, str(of["pairs"]), *(number(value) for judge in judges for value in of[judge].values())])
    about = f"**Over the earlier record** ({found['maker']}, {found['size']} px): ratios of errors"
    return [about, table(head, rows) if rows else "They have no pair in common."]


def _pair_by_pair(record: dict[str, Any], judges: Sequence[str]) -> str:
    first = record["pictures"][0]["judges"]
    head = ["content + style", "maker"]
    for judge in judges:
        head += [*first[judge]["gram"]["whole"], "content"]
    rows = []
    for x in record["pictures"]:
        values: list[float | None] = []
        for judge in judges:
            values += [*x["judges"][judge]["gram"]["whole"].values(), x["judges"][judge]["content"]["whole"]]
        rows.append([f"{x['content']} + {x['style']}", x["maker"], *map(number, values)])
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def number(value: float | None) -> str:
    """Three digits: .0123, 1.23, 123."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"
