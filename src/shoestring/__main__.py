"""`python -m shoestring` is the `shoestring` command."""

import sys

from shoestring.cli.main import main

sys.exit(main())
