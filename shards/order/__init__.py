"""Which sample comes at which position: a pure function of the position."""
