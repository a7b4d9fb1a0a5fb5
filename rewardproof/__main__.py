"""`python -m rewardproof`."""

from rewardproof.cli.main import main

main()
