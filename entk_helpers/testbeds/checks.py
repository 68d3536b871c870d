"""What all test beds ask of their arguments."""

from collections.abc import Collection, Sequence


def check(ok: bool, message: str) -> None:
    """Raise ValueError with the message unless all is well."""
    if not ok:
        raise ValueError(message)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless there are seeds, each given once."""
    check(len(seeds) >= 1, "seeds is empty; give at least one seed")
    check(len(set(seeds)) == len(seeds), f"seeds is {seeds}; give each seed once")


def check_epochs(checkpoints: Collection[int], epochs: int) -> None:
    """Raise ValueError unless all checkpoints are epochs from 0 to the last."""
    check(
        all(0 <= step <= epochs for step in checkpoints),
        f"checkpoints is {sorted(checkpoints)}; give epochs from 0 to {epochs}",
    )
