"""Memory, traffic and time of a train step, compiled for devices that need not exist.

The compiler (`tpu`, `gpu`) runs in a process of its own (`isolated`): libtpu has died of a stack
overflow, and prints warnings that concern nobody. Operations are counted in the traced program
(`flops`), since XLA's cost analysis counts the body of a loop once; what devices send, which
kernels run and what the compiler expects is read off the compiled text (`program`). The roofline
(`report.roofline`) is a lower bound: a real step is slower. `benchmarks/LOG.md` has plans.
"""
