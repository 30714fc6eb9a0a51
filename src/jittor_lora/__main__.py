"""`python -m jittor_lora` is the command `jittor-lora`."""

import sys

from jittor_lora.cli.main import main

sys.exit(main())
