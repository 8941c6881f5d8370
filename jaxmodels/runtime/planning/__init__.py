"""Memory, traffic and time of a train step, compiled for devices that need not exist.

The compiler runs in a process of its own (`isolated`): libtpu has died of a stack overflow, and
prints warnings that concern nobody. Operations are counted in the traced program (`flops`), since
XLA's cost analysis counts the body of a loop once; what devices send is read off the compiled text
(`hlo`). Times are lower bounds (`plan.roofline`): a real step is slower. `benchmarks/LOG.md` has
plans of wigip:1.7b.
"""
