"""Valid inputs made invalid: bytes changed, cut, repeated, put in, taken from another one."""

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.fuzz.target import Target


def mutated(target: Target, most: int = 4) -> st.SearchStrategy[bytes]:
    """A seed of ``target`` after up to ``most`` changes."""
    return _mutated(tuple(target.seeds()), target.tokens, most)


@st.composite
def _mutated(draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes], most: int) -> bytes:
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.sampled_from((1, 2, 4, 16, 256))))
        match draw(st.sampled_from(("change", "cut", "drop", "repeat", "splice", "put", "overwrite"))):
            case "change":
                content[at:to] = (
                    draw(st.binary(min_size=to - at, max_size=to - at)) if to - at < 5 else bytes(to - at)
                )
            case "cut":
                del content[at:]
            case "drop":
                del content[at:to]
            case "repeat":
                content[at:at] = content[at:to]
            case "splice":
                other = draw(st.sampled_from(seeds))
                content[at:] = other[draw(st.integers(0, len(other))) :]
            case kind:
                token = draw(st.sampled_from(tokens)) if tokens else draw(st.binary(max_size=8))
                content[at : at + len(token) if kind == "overwrite" else at] = token
    return bytes(content)
