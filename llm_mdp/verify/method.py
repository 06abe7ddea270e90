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
    apart: bool = False
    """Is the update the mean of what every prompt's group gives alone? Then one group says all."""
    instead: str = ""
    """Why it is not by classes, where that was tried first."""

    @property
    def words(self) -> str:
        """One line: method, summary, states, tries."""
        batches = self.prompts > 1 and not self.apart
        mean = f"; an update is the mean of {self.prompts:,} such groups" if self.apart else ""
        if self.name == "groups":
            why = f" (not by classes: {self.instead})" if self.instead else ""
            return f"all {self.states:,} {'batches' if batches else 'groups'}, one by one{why}{mean}"
        where = f" in batches of {self.prompts:,} prompts" if batches else ""
        return (
            f"classes of responses{where}, of the others {self.summary} ({self.states:,} values); "
            f"{self.tries:,} {'batches' if batches else 'groups'} agreed{mean}"
        )
