"""What a child process reports. The ``sitecustomize`` of `iostreamsrv.tornado` comes first, and imports this one."""

from tests.conformance.witness import watch_child

watch_child()
