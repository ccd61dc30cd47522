"""What computes the findings of filters: this process, unless a subclass has others do it."""

from collections.abc import Iterator, Sequence

from pallava.data.clean.filters import Candidate, Filter, Findings
from pallava.io.processes import batches

BATCH = 256  # candidates


class Engine:
    """Compute findings in this process, and in those that filters start."""

    window = BATCH  # number of candidates that pass one filter before any of them meets the next

    def iter_parts(self, each: Filter, candidates: Sequence[Candidate]) -> Iterator[list[tuple[int, Findings]]]:
        """Yield (index into candidates, findings), in any order, in parts that are to be stored at once."""
        return batches(each.iter_scores(candidates), 1 if each.is_costly else BATCH)

    def close(self) -> None:
        """End what it has started."""
