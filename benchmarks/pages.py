"""Every page that is made of stored results, again: `python benchmarks/pages.py`, a part of `make docs`.

Nothing is computed here that takes long, and no figure is drawn: their text depends on the machine. What writes the
results and the figures is `make results`, `make bench`, `make variance` and `make audit`.
"""

from pathlib import Path

import adversary_report
import api_pages
import performance_report
import summary
import variance_report

from llm_mdp.cli import agents_listed, reference
from llm_mdp.report import audit_docs, claim_docs, errata, readme
from llm_mdp_agents.zoo import __main__ as agents
from llm_mdp_envs import registry

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


def main() -> None:
    ledger = str(RESULTS / "ledger.json")
    readme.main([ledger, str(ROOT / "README.md"), str(DOCS / "ledger.md")])
    for name in ("group_sizes", "batches"):
        readme.main([str(RESULTS / f"{name}.json"), str(DOCS / "certificates.md")])
    errata.main([ledger, str(DOCS / "errata.md")])
    claim_docs.main([ledger, str(DOCS / "claims")])
    audit_docs.main([str(RESULTS / "audit.json"), str(DOCS / "audit.md"), str(RESULTS / "audit.html")])
    adversary_report.main()
    summary.main()
    performance_report.main()
    variance_report.pages()
    registry.main([])
    agents.main([])
    agents_listed.keep()
    reference.main()
    api_pages.main()


if __name__ == "__main__":
    main()
