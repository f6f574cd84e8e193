"""Instruments: experiments that are built in memory, made like any other, and read by pure functions of science."""
