"""What federation is measured against: all data in one place, and no federation at all. Both train B only."""

from dataclasses import replace

from fedasym.methods.asymmetric import asymmetric

central = replace(asymmetric, name="central", label="central (all data in one place)")
local = replace(asymmetric, name="local", label="local (no federation)", head="local", private="B")
