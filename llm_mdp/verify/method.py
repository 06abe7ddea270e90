"""How exact figures came about: group by group, or by classes of responses."""

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["groups", "classes"]
METHODS = ("auto", "groups", "classes")
"""What `exact_certificate` can be asked for: "auto" takes the groups one by one where they are few, else classes."""


@dataclass(frozen=True)
class Method:
    """How the expectation over all outcomes of an update was taken."""

    name: MethodName
    """groups: every group of responses, one by one; classes: responses of the same reward, length and finish together,
    the others of a group through what the estimator reads of them."""
    summary: str
    """What enters of the other responses of a group, in words; empty for groups."""
    states: int
    """Number of groups, or of the values that the summary takes, over all prompts."""
    tries: int
    """Groups on which it was tried whether the summary says all that the weights depend on; 0 for groups."""
    prompts: int = 1
    """P, prompts whose groups are in one update."""

    @property
    def words(self) -> str:
        """One line: method, summary, states, tries."""
        batch = "" if self.prompts == 1 else f" in batches of {self.prompts} prompts"
        if self.name == "groups":
            what = "groups" if self.prompts == 1 else "batches"
            return f"all {self.states:,} {what}, one by one"
        return (
            f"classes of responses{batch}, of the others {self.summary} ({self.states:,} values); "
            f"{self.tries:,} groups agreed"
        )
