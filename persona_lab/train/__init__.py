"""Verbs on a model: pretrain the embedded base, fine-tune a bank of adapters. One loop does both."""
