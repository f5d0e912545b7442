"""`python -m orchestrator.cli` is `ditlaw`."""

from orchestrator.cli import main

main()
