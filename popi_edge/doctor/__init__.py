"""Is everything in order here, and does anything leave? ``checks`` looks at this device, ``child`` walks the main path
under a hook that sees every socket and file of Python's, ``watch`` runs it and adds what native code did."""
