import sys

from being_vl.cli import main

sys.exit(main())
