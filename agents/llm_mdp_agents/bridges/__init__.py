"""Engines that exist, trained with estimators of ours: one module an engine, which imports it when it is used."""
