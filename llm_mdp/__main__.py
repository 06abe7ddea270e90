"""`python -m llm_mdp` is `llm-mdp`."""

from llm_mdp.cli.__main__ import main

if __name__ == "__main__":
    main()
