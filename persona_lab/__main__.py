"""`python -m persona_lab`, and what `accelerate launch -m persona_lab run CONFIG` starts."""

from persona_lab.cli import main

main()
