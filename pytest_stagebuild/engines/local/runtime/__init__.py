"""What makes sandboxes and serves them, in processes of its own: see :mod:`.zygote`.

The modules of this folder stand alone: they import the standard library and each other, so that the process that they
run in starts in a few milliseconds, and so that nothing has to be read once a process has left the host's file system.
"""
